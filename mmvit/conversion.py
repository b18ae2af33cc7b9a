"""Released checkpoints, whole detectors and segmenters too, as files that OpenMMLab's commands take.

``convert_checkpoint`` does all of it; ``tools/convert_checkpoint.py`` is its command.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmvit.checkpoint import (
    as_tensors,
    describe_keys,
    describe_mismatch,
    describe_quantised,
    find_weights,
    new_names,
)
from mmvit.files import read_checkpoint
from mmvit.models import MPViT, PyramidTNT, RegionViT
from mmvit.models.base import Backbone

FAMILIES: tuple[type[Backbone], ...] = (MPViT, PyramidTNT, RegionViT)


def convert_checkpoint(source: str, config: str, out: str) -> tuple[Path, str]:
    """Convert a released file for the model of a config, and write it whole or not at all.

    Args:
        source: Path or http(s) address of the released file: of a detector (detectron2), a segmenter (mmseg 0.x) or a
            classifier.
        config: Path of a config whose model is the same network. Of a classifier's file only the backbone is
            converted, for ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the config's backbone.
        out: Path to write to, ending in ``.pth`` or ``.safetensors``; ``-`` and the first 8 digits of the file's
            sha256 are put before the suffix.

    Returns:
        The path written, and a summary of what was mapped and what was left out, and why.

    Raises:
        FileNotFoundError: There is no such source.
        RuntimeError: The source cannot be read safely.
        ValueError: It is not a released file, holds something that has no explanation, or does not fit the config.
    """
    if Path(out).suffix not in WRITERS:
        raise ValueError(f'{out} must end in {" or ".join(WRITERS)}')
    cfg = Config.fromfile(config)
    checkpoint = read_checkpoint(source)
    try:
        released = recognise(checkpoint)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    try:
        weights = fit(released, MODELS.build(cfg.model))
    except ValueError as error:
        raise ValueError(f'{source} is {released}, and {config} does not fit it: {error}') from error
    path = write_checkpoint({'meta': {'dataset_meta': dataset_meta(cfg)}, 'state_dict': weights}, Path(out))
    return path, f'{source} is {released}\n{released.summary()}\nwritten: {path}'


@dataclass(frozen=True)
class Kind:
    """A kind of released file, by what stands in it around the backbone.

    Args:
        name: For people.
        model: Class of the model that it holds, in mmdet or mmseg.
        landmark: A key that tells it from the others.
        renames: Pairs of key beginnings (theirs, ours), see ``new_names``; one of theirs may lead to several of ours.
        from_detectron2: It was trained in detectron2, whose ways the config has to set.
    """

    name: str
    model: str
    landmark: str
    renames: Sequence[tuple[str, str]]
    from_detectron2: bool = False


def _fpn(first: int) -> list[tuple[str, str]]:
    """detectron2 numbers maps by the logarithm of their stride, beginning here with ``first``, and mmdet from 0."""
    return [
        (f'backbone.fpn_lateral#+{first}.', 'neck.lateral_convs.#.conv.'),
        (f'backbone.fpn_output#+{first}.', 'neck.fpn_convs.#.conv.'),
        (f'backbone.top_block.p#+{first}.', 'neck.fpn_convs.#.conv.'),
    ]


_RPN = [
    ('proposal_generator.rpn_head.conv.', 'rpn_head.rpn_conv.'),
    ('proposal_generator.rpn_head.objectness_logits.', 'rpn_head.rpn_cls.'),
    ('proposal_generator.rpn_head.anchor_deltas.', 'rpn_head.rpn_reg.'),
]


def _box_head(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Both flatten a region's map as (channel, row, column), and have the background as the last class."""
    return [
        (f'roi_heads.box_head{theirs}.fc#+1.', f'roi_head.bbox_head{ours}.shared_fcs.#.'),
        (f'roi_heads.box_predictor{theirs}.cls_score.', f'roi_head.bbox_head{ours}.fc_cls.'),
        (f'roi_heads.box_predictor{theirs}.bbox_pred.', f'roi_head.bbox_head{ours}.fc_reg.'),
    ]


def _mask_head(ours: str) -> list[tuple[str, str]]:
    return [
        ('roi_heads.mask_head.mask_fcn#+1.', f'roi_head.mask_head{ours}.convs.#.conv.'),
        ('roi_heads.mask_head.deconv.', f'roi_head.mask_head{ours}.upsample.'),
        ('roi_heads.mask_head.predictor.', f'roi_head.mask_head{ours}.conv_logits.'),
    ]


CLASSIFIER = Kind('a classifier', model='', landmark='', renames=())
KINDS = [
    Kind(
        'a detectron2 RetinaNet',
        model='RetinaNet',
        landmark='head.cls_score.weight',
        renames=[
            *_fpn(3),
            # The towers alternate convolutions and activations.
            *((f'head.cls_subnet.{2 * i}.', f'bbox_head.cls_convs.{i}.conv.') for i in range(4)),
            *((f'head.bbox_subnet.{2 * i}.', f'bbox_head.reg_convs.{i}.conv.') for i in range(4)),
            ('head.cls_score.', 'bbox_head.retina_cls.'),
            ('head.bbox_pred.', 'bbox_head.retina_reg.'),
        ],
        from_detectron2=True,
    ),
    Kind(
        'a detectron2 Mask R-CNN',
        model='MaskRCNN',
        landmark='roi_heads.box_predictor.cls_score.weight',
        renames=[*_fpn(2), *_RPN, *_box_head('', ''), *_mask_head('')],
        from_detectron2=True,
    ),
    Kind(
        'a detectron2 Cascade Mask R-CNN',
        model='CascadeRCNN',
        landmark='roi_heads.box_predictor.0.cls_score.weight',
        renames=[
            *_fpn(2),
            *_RPN,
            *_box_head('.#', '.#'),
            # detectron2 has one mask head; mmdet has three and takes the mean of what they predict.
            *(rename for stage in range(3) for rename in _mask_head(f'.{stage}')),
        ],
        from_detectron2=True,
    ),
    Kind(
        'an mmseg 0.x segmenter',
        model='EncoderDecoder',
        landmark='decode_head.conv_seg.weight',
        renames=[('decode_head.', 'decode_head.'), ('auxiliary_head.', 'auxiliary_head.')],
    ),
]

# Entries beside the weights, and why no test needs them.
BESIDE = {
    'the state of the training run': (
        'optimizer', 'scheduler', 'lr_scheduler', 'scaler', 'amp_scaler', 'trainer', 'iteration', 'epoch',
        'best_acc', 'max_accuracy', 'metric',
    ),
    'notes on the training run': ('meta', 'args', 'config', 'arch', 'version', '__author__', 'matching_heuristics'),
    'another copy of the weights': ('model', 'state_dict', 'model_ema', 'state_dict_ema'),
}  # fmt: skip

# What detectron2 once stored among the weights and the config says instead; check_settings compares them.
ANCHORS = ('anchor_generator.cell_anchors.', 'proposal_generator.anchor_generator.cell_anchors.')
NORMALISATION = {'pixel_mean': 'mean', 'pixel_std': 'std'}  # names in the file and in the data preprocessor
SETTINGS = re.compile('|'.join([*NORMALISATION, *(re.escape(beginning) + r'\d+' for beginning in ANCHORS)]))


@dataclass
class Released:
    """A released file in which everything is explained.

    Attributes:
        family: Class of its backbone.
        arch: Name of its backbone's arch.
        kind: What stands around the backbone.
        weights: In our names: the model's, or of a classifier's file the backbone's.
        settings: What the file stores and the config says instead, by the names in the file.
        left_out: Keys by the reason why they are not among the weights.
    """

    family: type[Backbone]
    arch: str
    kind: Kind
    weights: dict[str, Tensor]
    settings: dict[str, Tensor]
    left_out: dict[str, list[str]]

    def __str__(self) -> str:
        return f"{self.kind.name} with {self.family.__name__} '{self.arch}'"

    def summary(self) -> str:
        """What was mapped, by parts of the model, and what was left out, and why: one line each."""
        tensors = Counter('backbone' if self.kind is CLASSIFIER else part_of(name) for name in self.weights)
        mapped = [f'mapped to {part}: {count} tensors' for part, count in tensors.items()]
        left_out = [f'left out: {describe_keys(keys, 3)} ({reason})' for reason, keys in self.left_out.items() if keys]
        return '\n'.join(mapped + left_out)


def recognise(checkpoint: Mapping[str, Any]) -> Released:
    """Tell by its keys what a loaded file is, and convert its weights.

    Raises:
        ValueError: There is no backbone of ours in it, or something in it has no explanation.
    """
    weights = find_weights(checkpoint)
    family, prefix = find_backbone(weights)
    backbone = family.convert_official(weights)
    arch = family.recognise_arch(backbone)
    classifier = [
        key for key in weights if key.startswith(tuple(prefix + c for c in family.official_layout.classifier))
    ]
    wrapper = 'module.' if prefix.startswith('module.') else ''
    heads = as_tensors({k.removeprefix(wrapper): v for k, v in weights.items() if not k.startswith(prefix)})
    kind = find_kind(heads)
    settings = {key: heads.pop(key) for key in list(heads) if SETTINGS.fullmatch(key)}
    if kind is not CLASSIFIER:
        backbone = {f'backbone.{name}': value for name, value in backbone.items()}
    return Released(
        family,
        arch,
        kind,
        weights=backbone | rename_heads(heads, kind),
        settings=settings,
        left_out={
            'no backbone has a classifier': classifier,
            "the config's part, and equal there": list(settings),
            **({} if weights is checkpoint else explain_beside(checkpoint, weights)),
        },
    )


def find_backbone(weights: Mapping[str, Any]) -> tuple[type[Backbone], str]:
    """The family of the backbone that is among some weights, and what stands before its keys."""
    for family in FAMILIES:
        prefix = family.official_layout.find_prefix(weights)
        if prefix is not None:
            return family, prefix
    names = ', '.join(family.__name__ for family in FAMILIES)
    raise ValueError(f'not a released file: found the backbone of none of {names} in it; {describe_keys(weights)}')


def find_kind(heads: Mapping[str, Any]) -> Kind:
    """By the keys that are not the backbone's."""
    if not heads:
        return CLASSIFIER
    for kind in KINDS:
        if kind.landmark in heads:
            return kind
    known = ' or '.join(kind.name for kind in KINDS)
    raise ValueError(f'the entries around the backbone are not those of {known}; {describe_keys(heads)}')


def rename_heads(heads: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Weights of neck and heads in our names.

    Raises:
        ValueError: Some of them are unknown, or two would get one name.
    """
    names = {key: new_names(key, kind.renames) for key in heads}
    times = Counter(name for found in names.values() for name in found)
    if unknown := [key for key, found in names.items() if not found or any(times[name] > 1 for name in found)]:
        raise ValueError(f'it has entries that do not belong to {kind.name}; {describe_keys(unknown)}')
    return {name: heads[key] for key, found in names.items() for name in found}


def explain_beside(checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, list[str]]:
    """The entries beside the weights by reason why they are left out.

    Raises:
        ValueError: Some have none.
    """
    beside = [key for key, value in checkpoint.items() if value is not weights]
    if unknown := [key for key in beside if not any(key in keys for keys in BESIDE.values())]:
        raise ValueError(f'it has unknown entries beside the weights; {describe_keys(unknown)}')
    return {reason: [key for key in beside if key in keys] for reason, keys in BESIDE.items()}


def part_of(name: str) -> str:
    """The part of a model that a weight belongs to; a RoI head has two."""
    words = name.split('.')
    return '.'.join(words[: 1 + (words[0] == 'roi_head')])


def fit(released: Released, model: Any) -> dict[str, Tensor]:
    """The state dict of a model built from a config (of a classifier's file: of its backbone), with these weights.

    Raises:
        ValueError: The model is not the released network.
    """
    check_model(released, model)
    if released.kind is CLASSIFIER:
        model.backbone.load_converted(released.weights, 'this file')
        return own_copies(released.weights)
    check_settings(released, model)
    return own_copies(load_whole(released, model))


def check_model(released: Released, model: Any) -> None:
    """Raise ValueError unless method and backbone are the released ones."""
    kind, family = released.kind, released.family
    if kind.model and kind.model not in {cls.__name__ for cls in type(model).__mro__}:
        raise ValueError(f'its model is a {type(model).__name__}, not a {kind.model}')
    backbone = getattr(model, 'backbone', None)
    wanted = f"it must have backbone=dict(type='mmvit.{family.__name__}', arch='{released.arch}', ...)"
    if not isinstance(backbone, family):
        raise ValueError(f'its backbone is a {type(backbone).__name__}; {wanted}')
    if backbone.arch != family.resolve_arch(released.arch):
        raise ValueError(f'its backbone is of another arch; {wanted}')
    if kind.from_detectron2 and not any(type(module).__module__ == 'mmvit.detectron2' for module in model.modules()):
        raise ValueError("it tests in mmdet's ways, and these weights need detectron2's: give its _d2 config")


def check_settings(released: Released, model: Any) -> None:
    """Raise ValueError if the file stores another normalisation or other anchors than the config sets."""
    head: Any = model.rpn_head if hasattr(model, 'rpn_head') else getattr(model, 'bbox_head', None)
    for key, found in released.settings.items():
        if key in NORMALISATION:
            place = f'model.data_preprocessor.{NORMALISATION[key]}'
            own = getattr(model.data_preprocessor, NORMALISATION[key])
        else:
            place = 'anchor_generator'
            level = int(key.rpartition('.')[2])
            own = (
                head.prior_generator.base_anchors[level] if level < head.prior_generator.num_levels else torch.empty(0)
            )
        found, own = found.flatten().float(), own.flatten()
        if found.shape != own.shape or not torch.allclose(found, own, rtol=5e-3):  # as bfloat16 may have rounded
            raise ValueError(f'the file was trained with {key} {found.tolist()}, and its {place} has {own.tolist()}')


def load_whole(released: Released, model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model after a strict load.

    Raises:
        ValueError: The weights are not all of the model's.
    """
    found, own = ({k: v.shape for k, v in weights.items()} for weights in (released.weights, model.state_dict()))
    if mismatch := describe_mismatch(found, own):
        raise ValueError(f'these weights are not those of its model; {mismatch}')
    if quantised := describe_quantised(released.weights, model.state_dict()):
        raise ValueError(f'it has {quantised}')
    model.load_state_dict(released.weights, strict=True)
    return model.state_dict()


def own_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, those of floating point in float32."""
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in floats.items()}


def dataset_meta(config: Config) -> dict[str, Any]:
    """Classes and palette of the config's test data, which need not be there."""
    if not config.get('test_dataloader'):
        return {}
    dataset = DATASETS.build({**config.test_dataloader.dataset, 'lazy_init': True})
    return {key: dataset.metainfo[key] for key in ('classes', 'palette') if key in dataset.metainfo}


def write_checkpoint(checkpoint: dict[str, Any], out: Path) -> Path:
    """Write ``{'meta': ..., 'state_dict': ...}``, whole or not at all; ``convert_checkpoint`` says under which name."""
    data = WRITERS[out.suffix](checkpoint)
    path = out.with_stem(f'{out.stem}-{hashlib.sha256(data).hexdigest()[:8]}')
    part = path.with_suffix(f'.{os.getpid()}.part')  # in the same folder, so that replacing is one step
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def to_pickle(checkpoint: dict[str, Any]) -> bytes:
    """As ``torch.load(..., weights_only=True)`` reads it."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def to_safetensors(checkpoint: dict[str, Any]) -> bytes:
    """As ``load_from_safetensors`` reads it."""
    return safetensors.torch.save(checkpoint['state_dict'], metadata={'meta': json.dumps(checkpoint['meta'])})


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {'.pth': to_pickle, '.safetensors': to_safetensors}


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Lets mmengine (``--checkpoint``, ``load_from``, ``Pretrained``) load local safetensors files."""
    device = str(map_location or 'cpu')
    with safetensors.safe_open(Path(filename).expanduser(), framework='pt', device=device) as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        return {'meta': meta, 'state_dict': {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
