"""Writes the config that trains on data of one's own, over one of mmvit's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat

from matplotlib import colormaps
from mmengine.config import Config

from mmvit.checkpoints.files import CONFIGS
from mmvit.own_data.weights import Use

BOXES = ('retinanet', 'atss', 'deformable_detr', 'dino')
MASKS = ('maskrcnn', 'cascade_maskrcnn')
SEMANTIC = ('fpn', 'segformer', 'upernet')
FROM_RANDOM = 16  # the learning rates of the recipes are for pretrained weights; random ones need larger steps
STEPS = 3000  # a training takes about so many, in 12 to 100 passes over the images

SHARED = """\
_base_ = '{base}'
{start}classes = {classes}
palette = {palette}
scale = ({long}, {short})  # longer and shorter side, in pixels
"""
RATE = """\
# {images} training images, {batch} a step, {epochs} times: {steps} steps. The recipe has {base_batch} images a step,
# and {batch}/{base_batch} of its learning rate is taken{times}.
optim_wrapper = dict(optimizer=dict(lr={rate:.3g}))
auto_scale_lr = dict(base_batch_size={batch})
"""
DETECTION = """\
model = dict({model})

loaded = dict(_delete_=True, type='CocoDataset', metainfo=dict(classes=classes, palette=palette))
images = dict(img='{folder}/')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size={batch},
    dataset=dict(loaded, ann_file='{out}/train.json', data_prefix=images, pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(loaded, ann_file='{out}/val.json', data_prefix=images, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{out}/val.json', metric={metrics!r})
test_evaluator = val_evaluator

train_cfg = dict(max_epochs={epochs}, val_interval={interval})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end={epochs}, milestones={milestones}, gamma=0.1),
]
"""
SEGMENTATION = """\
crop_size = ({short}, {short})
model = dict(data_preprocessor=dict(size=crop_size), {model})

loaded = dict(
    _delete_=True,
    type='BaseSegDataset',
    metainfo=dict(classes=classes, palette=palette),
    data_prefix=dict(img_path='{folder}', seg_map_path='{labels}'),
    img_suffix='{suffix}',
    seg_map_suffix='.png',
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size={batch},
    dataset=dict(loaded, ann_file='{out}/train.txt', pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(loaded, ann_file='{out}/val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters={steps}, val_interval={interval})
default_hooks = dict(checkpoint=dict(interval={interval}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin={warmup}, end={steps}),
]
"""


@dataclass(frozen=True)
class Project:
    """What a config is made of: absolute paths, and the network's (shorter, longer) side in pixels."""

    folder: Path  # of the images
    labels: Path
    out: Path
    head: str
    backbone: str
    size: tuple[int, int]
    weights: Path | None = None  # to begin with
    use: Use = 'backbone'  # what they fill

    @property
    def base(self) -> Path:
        """The config of mmvit that the new one inherits from."""
        return CONFIGS.resolve() / f'{self.head}_{self.backbone}.py'


def detection_config(project: Project, classes: Sequence[str], images: int) -> str:
    """The config of a detector, for so many training images."""
    _, epochs = schedule(project, images)
    return (SHARED + DETECTION + RATE).format(
        **shared(project, classes, images),
        model=backbone(project) + detector(project.head, len(classes)),
        masks=project.head in MASKS,
        metrics=['bbox', 'segm'] if project.head in MASKS else 'bbox',
        interval=max(1, epochs // 12),
        milestones=[epochs * 8 // 12, epochs * 11 // 12],
    )


def segmentation_config(project: Project, classes: Sequence[str], images: int, suffix: str) -> str:
    """The config of a segmenter, for so many training images that end on ``suffix``."""
    each, epochs = schedule(project, images)
    count = f'dict(num_classes={len(classes)})'
    auxiliary = ', auxiliary_head=' + count if project.head == 'upernet' else ''
    return (SHARED + SEGMENTATION + RATE).format(
        **shared(project, classes, images),
        model=f'{backbone(project)}decode_head={count}{auxiliary}',
        labels=project.labels,
        suffix=suffix,
        interval=max(1, each * epochs // 12),
    )


def shared(project: Project, classes: Sequence[str], images: int) -> dict[str, object]:
    """What both kinds of config name."""
    recipe = Config.fromfile(project.base)
    each, epochs = schedule(project, images)
    batch, base_batch = batch_size(project, images), recipe.auto_scale_lr.base_batch_size
    return dict(
        base=project.base,
        start=f"load_from = '{project.weights}'\n" if project.weights and project.use == 'model' else '',
        classes=wrapped(tuple(classes), len('classes = ')),
        palette=wrapped(colours(len(classes)), len('palette = ')),
        short=project.size[0],
        long=project.size[1],
        folder=project.folder,
        out=project.out,
        images=images,
        batch=batch,
        base_batch=base_batch,
        epochs=epochs,
        steps=each * epochs,
        warmup=min(1000, each * epochs // 10),
        rate=recipe.optim_wrapper.optimizer.lr * batch / base_batch * (1 if project.weights else FROM_RANDOM),
        times='' if project.weights else f', times {FROM_RANDOM} since all weights begin at random',
    )


def wrapped(value: object, column: int) -> str:
    """Python's text of a value that begins in this column."""
    return pformat(value, width=120 - column, compact=True).replace('\n', '\n' + ' ' * column)


def schedule(project: Project, images: int) -> tuple[int, int]:
    """Steps for a pass over the images, and passes."""
    each = math.ceil(images / batch_size(project, images))
    return each, min(100, max(12, math.ceil(STEPS / each)))


def batch_size(project: Project, images: int) -> int:
    return min(images, 4 if project.size[0] <= 512 else 2)


def backbone(project: Project) -> str:
    """The option that gives the backbone its weights, if they are the file's only use."""
    if not project.weights or project.use == 'model':
        return ''
    initial = f"dict(type='mmvit.OfficialWeights', checkpoint='{project.weights}')"
    return f'\n    backbone=dict(init_cfg={initial}),\n    '


def detector(head: str, count: int) -> str:
    """The options of a detector with so many classes."""
    classes = f'dict(num_classes={count})'
    if head in BOXES:
        return f'bbox_head={classes}'
    stages = f'[dict(stage, num_classes={count}) for stage in _base_.model.roi_head.bbox_head]'
    return f'roi_head=dict(bbox_head={classes if head == "maskrcnn" else stages}, mask_head={classes})'


def colours(count: int) -> list[tuple[int, int, int]]:
    """RGB colours, far apart."""
    table = (255 * colormaps['hsv']([i / count for i in range(count)])[:, :3]).round().astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in table]
