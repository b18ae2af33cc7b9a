"""README's tables from the metafiles: writes, or with --check compares, what stands between their markers.

python tests/readme_tables.py [--check]
"""

import re
import sys
from pathlib import Path

import yaml

README = Path('README.md')
SIZES = ('Parameters (M)', 'FLOPs (G)')
SIZE_HEADS = ['parameters (published)', '(measured)', 'multiply-adds (published)', '(measured)']


def models() -> dict[str, dict]:
    """Every entry of the metafiles by its name, with the metrics of its results together under 'Metrics'."""
    found = {}
    for path in yaml.safe_load(Path('model-index.yml').read_text())['Import']:
        for model in yaml.safe_load(Path(path).read_text())['Models']:
            metrics = [result['Metrics'] for result in model.get('Results', [])]
            found[model['Name']] = {**model, 'Metrics': {k: v for m in metrics for k, v in m.items()}}
    return found


def sizes(model: dict) -> list[str]:
    """Published and measured parameters, then multiply-adds."""
    data = model['Metadata']
    return [
        f'{data[key]} {unit[-2]}' if (key := f'{source} {unit}') in data else ''
        for unit in SIZES
        for source in ('Published', 'Measured')
    ]


def backbones() -> list[list[str]]:
    rows = [['backbone', 'class and arch', *SIZE_HEADS, 'ImageNet top-1 (published)', 'released file']]
    for name, model in models().items():
        if 'Config' in model:
            continue
        data = model['Metadata']
        file = f'[address]({model["Weights"]})' if 'Weights' in model else ''
        notes = ', '.join(filter(None, [file, data.get('Weights Status')]))
        top1 = str(model['Metrics']['Published Top-1'])
        rows.append([name, f"`{model['In Collection']}('{data['Arch']}')`", *sizes(model), top1, notes])
    return rows


def method(prefix: str, *metrics: str, schedules: tuple[str, ...] = ('1x', '3x')) -> list[list[str]]:
    """A row for each network, which several schedules may share."""
    heads = [f'{metric} {schedule} (published)' for schedule in schedules for metric in metrics]
    rows = [['config', *heads, *SIZE_HEADS]]
    index = models()
    for name in index:
        if not name.startswith(f'{prefix}_') or name.endswith('_3x'):
            continue
        long = index.get(f'{name}_3x')
        runs = [index[name], long or {'Metrics': {}}][: len(schedules)]
        values = [str(run['Metrics'].get(f'Published {metric}', '')) for run in runs for metric in metrics]
        rows.append([f'`{name}[_3x]`' if long else f'`{name}`', *values, *sizes(index[name])])
    return rows


TABLES = {
    'backbones': backbones,
    'retinanet': lambda: method('retinanet', 'box AP'),
    'maskrcnn': lambda: method('maskrcnn', 'box AP', 'mask AP'),
    'cascade': lambda: method('cascade_maskrcnn', 'box AP', 'mask AP'),
    'upernet': lambda: method('upernet', 'mIoU', schedules=('160k',)),
}


def markdown(rows: list[list[str]]) -> str:
    head, *body = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([head, '|---' * len(rows[0]) + '|', *body])


def filled(text: str) -> str:
    """The README with every table as the metafiles have it."""

    def fill(match: re.Match[str]) -> str:
        return f'<!-- table: {match[1]} -->\n{markdown(TABLES[match[1]]())}\n<!-- end -->'

    return re.sub(r'<!-- table: (\w+) -->.*?<!-- end -->', fill, text, flags=re.DOTALL)


if __name__ == '__main__':
    new = filled(README.read_text())
    if sys.argv[1:] != ['--check']:
        README.write_text(new)
    elif new != README.read_text():
        sys.exit("README's tables differ from the metafiles: run make tables")
