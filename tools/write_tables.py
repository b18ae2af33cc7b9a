"""Write the tables of README.md and docs/ from the metafiles of the configs.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. With --check nothing is written, and a table that
differs from the metafiles is an error.

    python tools/write_tables.py [--check]
"""

import re
import sys
from pathlib import Path

import yaml
from mmengine.config import Config

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
        if not name.startswith(f'{prefix}_') or name.removesuffix('_3x') in index.keys() - {name}:
            continue
        none: dict = {'Metrics': {}}
        long = index.get(f'{name}_3x')
        runs = [none, index[name]] if name.endswith('_3x') else [index[name], long or none][: len(schedules)]
        values = [[str(run['Metrics'].get(f'Published {metric}', '')) for metric in metrics] for run in runs]
        cells = ['/'.join(value or '-' for value in found) if any(found) else '' for found in values]
        rows.append([f'`{name}[_3x]`' if long else f'`{name}`', *cells, *sizes(index[name])])
    return rows


def heads(task: str = 'COCO') -> list[list[str]]:
    """The detectors on COCO or segmenters on ADE20K whose head no paper reports with these backbones."""
    rows = [['config', 'data', 'parameters, M', 'multiply-adds, G']]
    index = models()
    for name, model in index.items():
        data = model['Metadata'].get('Training Data', '')
        if not name.startswith(HEADS) or not data.startswith(task) or name.endswith('_3x'):
            continue
        long = '[_3x]' if f'{name}_3x' in index else ''
        _, parameters, _, flops = sizes(model)
        rows.append([f'`{name}{long}`', data, parameters, flops])
    return rows


HEADS = ('dino', 'atss', 'mask2former', 'panoptic_fpn', 'segformer')

# A config for each recipe, with the names of all that follow it.
RECIPES = {
    'retinanet_mpvit_s': '`{retinanet,maskrcnn,cascade_maskrcnn}_{mpvit,pyramid_tnt}_*`',
    'retinanet_mpvit_s_3x': '`{retinanet,maskrcnn,cascade_maskrcnn}_{mpvit,pyramid_tnt}_*_3x`',
    'retinanet_regionvit_s': '`{retinanet,maskrcnn,cascade_maskrcnn}_regionvit_*`',
    'retinanet_regionvit_s_3x': '`{retinanet,maskrcnn,cascade_maskrcnn}_regionvit_*_3x`',
    'retinanet_regionvit_b_w14_peg_896': '`{retinanet,maskrcnn}_regionvit_b_w14_peg_896`',
    'retinanet_regionvit_b_w14_peg_896_3x': '`{retinanet,maskrcnn}_regionvit_b_w14_peg_896_3x`',
    'deformable_detr_mpvit_s': '`deformable_detr_*`',
    'dino_mpvit_s': '`dino_*`',
    'dino_mpvit_s_3x': '`dino_*_3x`',
    'atss_mpvit_s': '`atss_*`',
    'mask2former_mpvit_s': '`mask2former_*`, `mask2former_*_panoptic`',
    'panoptic_fpn_mpvit_s': '`panoptic_fpn_*`',
    'upernet_mpvit_s': '`upernet_*`',
    'segformer_mpvit_s': '`segformer_*`',
    'mask2former_mpvit_s_ade20k': '`mask2former_*_ade20k`',
    'fpn_regionvit_s_w14': '`fpn_*`',
}


def recipes() -> list[list[str]]:
    """What the configs set, read from them."""
    heads = ['configs', 'images in training', 'in testing', 'AdamW: rate', 'weight decay', 'gradients', 'images a step']
    rows = [[*heads, 'warm-up', 'length']]
    for name, configs in RECIPES.items():
        config = Config.fromfile(f'configs/{name}.py')
        train, test = (config[f'{stage}_dataloader'].dataset.pipeline for stage in ('train', 'test'))
        wrapper = config.optim_wrapper
        rows.append(
            [
                configs,
                crop(config) or ' or '.join(map(sizes_of, resizes(train))),
                ' or '.join(map(sizes_of, resizes(test))),
                rate(wrapper),
                decay(wrapper),
                f'clipped to {wrapper.clip_grad.max_norm}' if wrapper.get('clip_grad') else 'as they are',
                str(config.auto_scale_lr.base_batch_size),
                warm_up(config),
                length(config),
            ]
        )
    return rows


def resizes(pipeline: list[dict]) -> list[dict]:
    """The steps of a pipeline that resize, those before a crop last."""
    found = []
    for step in pipeline:
        if step['type'] == 'RandomChoice':
            first, second = step['transforms']
            found += [*resizes(first), *resizes(second)[:1]]
        elif step['type'].endswith('Resize'):
            found.append(step)
    return found


def sizes_of(step: dict) -> str:
    """The sides that a step resizes to, in pixels."""
    shorts = sorted({min(scale) for scale in step.get('scales', [step.get('scale')])})
    long = max(step.get('scales', [step.get('scale')])[0])
    if not step.get('keep_ratio'):
        return f'exactly {shorts[0]}x{long}'
    if 'ratio_range' in step:
        least, most = step['ratio_range']
        return f'{least:g} to {most:g} times {shorts[0]}, then a crop of {long}'
    short = str(shorts[0]) if len(shorts) == 1 else f'{shorts[0]} to {shorts[-1]}'
    return f'{short}, then a crop' if long > 4000 else f'{short}, at most {long}'


def crop(config: Config) -> str:
    """The crop of a segmenter's training."""
    return f'crops of {config.crop_size[0]}x{config.crop_size[1]}' if 'crop_size' in config else ''


def rate(wrapper: dict) -> str:
    keys = wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    slow = [f'`{key}` {value["lr_mult"]}' for key, value in keys.items() if is_slow(value)]
    return f'{wrapper["optimizer"]["lr"]:g}' + (f'; times {", ".join(slow)}' if slow else '')


def is_slow(multipliers: dict) -> bool:
    """Whether a rate is changed, and not for what is named for its weight decay."""
    return multipliers.get('lr_mult', 1) != 1 and multipliers.get('decay_mult', 1) == 1


def decay(wrapper: dict) -> str:
    paramwise, whole = wrapper.get('paramwise_cfg', {}), wrapper['optimizer']['weight_decay']
    keys = paramwise.get('custom_keys', {})
    if '.bias' in keys:
        biases = whole * keys['.bias']['decay_mult']
        return f'{whole:g}; biases {biases:g}, weights of layer norms {whole * paramwise["norm_decay_mult"]:g}'
    spares = any(value.get('decay_mult') == 0 for value in keys.values())
    return f'{whole:g}; norms and positions 0' if spares else f'{whole:g}'


def schedulers(config: Config) -> list:
    found = config.param_scheduler
    return found if isinstance(found, list) else [found]


def warm_up(config: Config) -> str:
    first = schedulers(config)[0]
    return f'{first.end} iterations from {first.start_factor:g}' if first.type == 'LinearLR' else 'none'


def length(config: Config) -> str:
    last, loop = schedulers(config)[-1], config.train_cfg
    steps = f'a tenth after {" and ".join(map(str, last.get("milestones", [])))}'
    if loop.type == 'EpochBasedTrainLoop':
        return f'{loop.max_epochs} epochs, {steps}'
    return f'{loop.max_iters // 1000}k iterations, {steps if last.type == "MultiStepLR" else f"power {last.power:g}"}'


TABLES = {
    'zoo': zoo,
    'backbones': backbone_table,
    'weights': weights,
    'retinanet': lambda: method('retinanet', 'box AP'),
    'maskrcnn': lambda: method('maskrcnn', 'box AP', 'mask AP'),
    'cascade': lambda: method('cascade_maskrcnn', 'box AP', 'mask AP'),
    'deformable_detr': lambda: method('deformable_detr', 'box AP', schedules=('50 epochs',)),
    'heads': heads,
    'upernet': lambda: method('upernet', 'mIoU', schedules=('160k',)),
    'segmentation_heads': lambda: heads('ADE20K'),
    'fpn': lambda: method('fpn', 'mIoU', schedules=('80k',)),
    'recipes': recipes,
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
