"""Write the tables of README.md and docs/ from the metafiles of the configs.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. With --check nothing is written, and a table that
differs from the metafiles is an error.

    python tools/write_tables.py [--check]
"""

import re
import sys
from pathlib import Path

import yaml

PAGES = [Path('README.md'), *sorted(Path('docs').glob('*.md'))]
SIZES = ('Parameters (M)', 'FLOPs (G)')
SIZE_HEADS = ['parameters, M (paper)', '(ours)', 'multiply-adds, G (paper)', '(ours)']


def models() -> dict[str, dict]:
    """Every entry of the metafiles by its name, with the metrics of its results together under 'Metrics'."""
    found = {}
    for path in yaml.safe_load(Path('model-index.yml').read_text())['Import']:
        for model in yaml.safe_load(Path(path).read_text())['Models']:
            metrics = [result['Metrics'] for result in model.get('Results', [])]
            found[model['Name']] = {**model, 'Metrics': {k: v for m in metrics for k, v in m.items()}}
    return found


def sizes(model: dict) -> list[str]:
    """Published and measured parameters in millions, then multiply-adds in billions."""
    return [
        str(model['Metadata'].get(f'{source} {unit}', '')) for unit in SIZES for source in ('Published', 'Measured')
    ]


def backbones() -> dict[str, dict]:
    """The entries that are backbones, not configs."""
    return {name: model for name, model in models().items() if 'Config' not in model}


def code(model: dict) -> str:
    """How a backbone is built."""
    return f"`{model['In Collection']}('{model['Metadata']['Arch']}')`"


def zoo() -> list[list[str]]:
    """A short table: each backbone with its Mask R-CNN, where a paper has one."""
    rows = [['backbone', 'in Python', 'parameters, M', 'multiply-adds, G', 'ImageNet top-1', 'box AP', 'mask AP']]
    runs = {model['Metadata'].get('Backbone'): model for name, model in models().items() if is_short_maskrcnn(name)}
    for name, model in backbones().items():
        run = runs.get(name, {'Metrics': {}})['Metrics']
        top1 = model['Metrics'].get('Published Top-1', '')
        metrics = [str(value) for value in (top1, *(run.get(f'Published {kind} AP', '') for kind in ('box', 'mask')))]
        _, parameters, _, flops = sizes(model)
        rows.append([name, code(model), parameters, flops, *metrics])
    return rows


def is_short_maskrcnn(name: str) -> bool:
    """Whether a config is a Mask R-CNN with a plain variant of a backbone and the 1x schedule."""
    return re.fullmatch(r'maskrcnn_(mpvit|pyramid_tnt|regionvit)_[a-z]+', name) is not None


def backbone_table() -> list[list[str]]:
    rows = [['backbone', 'in Python', *SIZE_HEADS, 'ImageNet top-1 (paper)']]
    for name, model in backbones().items():
        rows.append([name, code(model), *sizes(model), str(model['Metrics'].get('Published Top-1', ''))])
    return rows


def weights() -> list[list[str]]:
    """Where the authors' files are."""
    rows = [['backbone', "the authors' file"]]
    for name, model in backbones().items():
        file = f'[address]({model["Weights"]})' if 'Weights' in model else ''
        rows.append([name, ', '.join(filter(None, [file, model['Metadata'].get('Weights Status')])) or 'none'])
    return rows


def method(prefix: str, *metrics: str, schedules: tuple[str, ...] = ('1x', '3x')) -> list[list[str]]:
    """A row for each network, which several schedules may share."""
    title = '/'.join(metrics).replace(' AP/', '/')  # box/mask AP
    heads = [f'{title} {schedule} (paper)' for schedule in schedules]
    rows = [['config', *heads, *SIZE_HEADS]]
    index = models()
    for name in index:
        if not name.startswith(f'{prefix}_') or name.endswith('_3x'):
            continue
        long = index.get(f'{name}_3x')
        runs = [index[name], long or {'Metrics': {}}][: len(schedules)]
        values = [[str(run['Metrics'].get(f'Published {metric}', '')) for metric in metrics] for run in runs]
        cells = ['/'.join(filter(None, found)) for found in values]
        rows.append([f'`{name}[_3x]`' if long else f'`{name}`', *cells, *sizes(index[name])])
    return rows


TABLES = {
    'zoo': zoo,
    'backbones': backbone_table,
    'weights': weights,
    'retinanet': lambda: method('retinanet', 'box AP'),
    'maskrcnn': lambda: method('maskrcnn', 'box AP', 'mask AP'),
    'cascade': lambda: method('cascade_maskrcnn', 'box AP', 'mask AP'),
    'upernet': lambda: method('upernet', 'mIoU', schedules=('160k',)),
}


def markdown(rows: list[list[str]]) -> str:
    head, *body = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([head, '|---' * len(rows[0]) + '|', *body])


def filled(text: str) -> str:
    """A page with every table as the metafiles have it."""

    def fill(match: re.Match[str]) -> str:
        return f'<!-- table: {match[1]} -->\n{markdown(TABLES[match[1]]())}\n<!-- end -->'

    return re.sub(r'<!-- table: (\w+) -->.*?<!-- end -->', fill, text, flags=re.DOTALL)


def main() -> None:
    new = {page: filled(page.read_text()) for page in PAGES}
    stale = [page for page, text in new.items() if text != page.read_text()]
    if sys.argv[1:] != ['--check']:
        for page in stale:
            page.write_text(new[page])
    elif stale:
        sys.exit(f'the tables of {", ".join(map(str, stale))} differ from the metafiles: run `make tables`')


if __name__ == '__main__':
    main()
