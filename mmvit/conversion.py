"""Conversion of official checkpoints, also of whole detectors and segmenters, to files for OpenMMLab's commands.

``convert_checkpoint`` does the conversion; ``tools/convert_checkpoint.py`` is its command.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from mmvit.checkpoints.files import CONFIGS, read_checkpoint
from mmvit.checkpoints.layouts import as_tensors, describe_keys, find_weights, new_names
from mmvit.checkpoints.loading import describe_mismatch
from mmvit.checkpoints.writing import WRITERS, write_checkpoint
from mmvit.models.base import Backbone
from mmvit.models.families import FAMILIES


def convert_checkpoint(source: str, config: str | None, out: str, weights: str | None = None) -> tuple[Path, str]:
    """Convert an official file for the model of a config, and write it completely or not at all.

    Args:
        source: Path or http(s) address of the official file: of a detector (detectron2), a segmenter (mmseg 0.x) or a
            classifier.
        config: Path of a config with the same network. None: the config of this package that fits the file, where the
            file and its name tell which. Of a classifier's file only the backbone is converted, for
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the config's backbone.
        out: Path to write to, ending in ``.pth`` or ``.safetensors``. ``-`` and the first 8 digits of the file's
            sha256 are inserted before the suffix.
        weights: The entry of the file to take, such as ``model_ema``. Needed if it has several copies of the weights.

    Returns:
        The path of the new file, and a summary: what was converted, what was left out, and why, and which config to
        test the file with.

    Raises:
        FileNotFoundError: There is no such source.
        RuntimeError: The source cannot be read safely.
        ValueError: The source is not an official file, has entries of unknown meaning, or does not fit the config.
    """
    if Path(out).suffix not in WRITERS:
        raise ValueError(f'{out} must end in {" or ".join(WRITERS)}')
    checkpoint = read_checkpoint(source)
    try:
        official = recognise_checkpoint(checkpoint, weights)
        fitting = fitting_configs(official, source)
        config, choice = choose_config(config, fitting)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    try:
        converted = converted_state_dict(official, MODELS.build(cfg.model))
        if RELEASED.search(unquote(source)) and len(fitting) == 1:
            check_image_size(cfg, fitting[0])
    except ValueError as error:
        raise ValueError(f'{source} is {official}, and {config} does not fit it: {error}') from error
    path = write_checkpoint({'meta': {'dataset_meta': dataset_meta(cfg)}, 'state_dict': converted}, Path(out))
    lines = [f'{source} is {official}', official.summary(), f'config: {config} ({choice})']
    if official.model is not CLASSIFIER:
        lines.append(f'test with: mim test {cfg.default_scope} {config} --checkpoint {path}')
    return path, '\n'.join([*lines, f'written: {path}'])


def fitting_configs(official: OfficialCheckpoint, source: str) -> list[Path]:
    """The configs of this package for testing an official file; none for a classifier.

    RegionViT's detectors were tested at several image sizes, which only the names of the released files tell.
    """
    start = f'{official.model.method}_{official.family.family_name}_{short_arch(official.arch)}'
    end = '_d2' if official.model.from_detectron2 else ''
    variants = re.compile(rf'{start}(_896)?(_3x)?{end}')
    configs = sorted(path for path in CONFIGS.glob(f'{start}*{end}.py') if variants.fullmatch(path.stem))
    released = RELEASED.search(unquote(source))
    if released is None or len(configs) == 1:
        return configs
    is_896, is_3x = 'dagger' in released[0], released[1] == '3x'
    return [path for path in configs if ('_896' in path.stem, '_3x' in path.stem) == (is_896, is_3x)]


def short_arch(arch: str) -> str:
    """The name of an arch in the names of configs: ``small_w14`` is ``s_w14``."""
    size, *rest = arch.split('_')
    return '_'.join([{'tiny': 't', 'xsmall': 'xs', 'small': 's', 'base': 'b'}.get(size, size), *rest])


def choose_config(given: str | None, fitting: Sequence[Path]) -> tuple[str, str]:
    """The config to use, and why, in words.

    Raises:
        ValueError: None is given, and not exactly one fits.
    """
    names = ', '.join(path.name for path in fitting)
    if given is None and len(fitting) == 1:
        return os.path.relpath(fitting[0]), 'the one that fits this file'
    if given is None:
        one_of = f'its name does not tell which of {names} fits it' if fitting else 'no config of mmvit is made for it'
        raise ValueError(f'{one_of}: say which with --config')
    if len(fitting) > 1:
        return given, f"as given: the file's name does not tell which of {names} fits it"
    return given, 'as given'


def check_image_size(cfg: Config, fitting: Path) -> None:
    """Raise ValueError if a config tests at another image size than the one that fits the file."""
    wanted, found = image_size(Config.fromfile(fitting)), image_size(cfg)
    if found != wanted:
        raise ValueError(f'it tests at {found}, and this file needs {wanted}: give {fitting.name}, or one over it')


def image_size(cfg: Config) -> str:
    """The image size that a config tests at, in words."""
    loader = cfg.get('test_dataloader') or {}
    pipeline = loader.get('dataset', {}).get('pipeline', [])
    step = next((step for step in pipeline if step['type'].endswith('Resize')), None)
    if step is None:
        return 'an unknown size'
    short, long = sorted(step['scale'])
    return f'a short side of {short}, at most {long}' if step.get('keep_ratio') else f'exactly {short}x{long}'


@dataclass(frozen=True)
class OfficialModel:
    """A kind of model in the official files. It is recognised by the weights around the backbone.

    Args:
        description: The kind in words, for messages.
        model: Class name of the same model in mmdet or mmseg.
        method: Its name in the names of configs.
        landmark: A key that only files of this kind have.
        renames: Pairs of key prefixes (official, OpenMMLab), see ``new_names``. If an official prefix has several
            pairs, the weight is copied.
        from_detectron2: Whether it was trained with detectron2. The config must then test like detectron2.
    """

    description: str
    model: str
    method: str
    landmark: str
    renames: Sequence[tuple[str, str]]
    from_detectron2: bool = False


def _fpn(first: int) -> list[tuple[str, str]]:
    """detectron2 numbers the maps by the logarithm of their stride, from ``first`` on; mmdet from 0 on."""
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


def _box_head(detectron2: str, mmdet: str) -> list[tuple[str, str]]:
    """Both libraries flatten a region's map as (channel, row, column), and use the last class as background."""
    return [
        (f'roi_heads.box_head{detectron2}.fc#+1.', f'roi_head.bbox_head{mmdet}.shared_fcs.#.'),
        (f'roi_heads.box_predictor{detectron2}.cls_score.', f'roi_head.bbox_head{mmdet}.fc_cls.'),
        (f'roi_heads.box_predictor{detectron2}.bbox_pred.', f'roi_head.bbox_head{mmdet}.fc_reg.'),
    ]


_MASK_HEAD = [
    ('roi_heads.mask_head.mask_fcn#+1.', 'roi_head.mask_head.convs.#.conv.'),
    ('roi_heads.mask_head.deconv.', 'roi_head.mask_head.upsample.'),
    ('roi_heads.mask_head.predictor.', 'roi_head.mask_head.conv_logits.'),
]


CLASSIFIER = OfficialModel('a classifier', model='', method='', landmark='', renames=())
OFFICIAL_MODELS = [
    OfficialModel(
        'a detectron2 RetinaNet',
        model='RetinaNet',
        method='retinanet',
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
    OfficialModel(
        'a detectron2 Mask R-CNN',
        model='MaskRCNN',
        method='maskrcnn',
        landmark='roi_heads.box_predictor.cls_score.weight',
        renames=[*_fpn(2), *_RPN, *_box_head('', ''), *_MASK_HEAD],
        from_detectron2=True,
    ),
    OfficialModel(
        'a detectron2 Cascade Mask R-CNN',
        model='CascadeRCNN',
        method='cascade_maskrcnn',
        landmark='roi_heads.box_predictor.0.cls_score.weight',
        renames=[*_fpn(2), *_RPN, *_box_head('.#', '.#'), *_MASK_HEAD],
        from_detectron2=True,
    ),
    OfficialModel(
        'an mmseg 0.x segmenter',
        model='EncoderDecoder',
        method='upernet',
        landmark='decode_head.conv_seg.weight',
        renames=[('decode_head.', 'decode_head.'), ('auxiliary_head.', 'auxiliary_head.')],
    ),
]

RELEASED = re.compile(r'_(1x|3x)_RegionViT-[^/]*$')  # names of detectors, at the end of a path or address
AVERAGES = ('model_ema', 'ema_state', 'state_dict_ema')
# Entries of a file other than the weights, by the reason why they are left out.
OTHER_ENTRIES = {
    'the state of the training run': (
        'optimizer', 'scheduler', 'lr_scheduler', 'scaler', 'amp_scaler', 'trainer', 'iteration', 'epoch',
        'best_acc', 'max_accuracy', 'metric',
    ),
    'notes on the training run': ('meta', 'args', 'config', 'arch', 'version', '__author__', 'matching_heuristics'),
    'another copy of the weights': ('model', 'state_dict', *AVERAGES),
}  # fmt: skip

# Settings that older versions of detectron2 stored among the weights. check_settings compares them with the config.
ANCHORS = ('anchor_generator.cell_anchors.', 'proposal_generator.anchor_generator.cell_anchors.')
NORMALISATION = {'pixel_mean': 'mean', 'pixel_std': 'std'}  # names in the file: in the data preprocessor
SETTINGS = re.compile('|'.join([*NORMALISATION, *(re.escape(beginning) + r'\d+' for beginning in ANCHORS)]))


@dataclass
class OfficialCheckpoint:
    """A converted official file.

    Attributes:
        family: Class of its backbone.
        arch: Name of its backbone's arch.
        model: Kind of model.
        weights: With the names of the OpenMMLab model; of a classifier's file, those of the backbone alone.
        settings: Settings of the model that the file stores among the weights, by their official names.
        left_out: Official keys that are not converted, by the reason.
        added: Official keys that the file lacks and that were set to 0, by the reason.
    """

    family: type[Backbone]
    arch: str
    model: OfficialModel
    weights: dict[str, Tensor]
    settings: dict[str, Tensor]
    left_out: dict[str, list[str]]
    added: dict[str, list[str]]

    def __str__(self) -> str:
        return f"{self.model.description} with {self.family.__name__} '{self.arch}'"

    def summary(self) -> str:
        """What was converted, by parts of the model, and what was left out, and why: one line each."""
        tensors = Counter('backbone' if self.model is CLASSIFIER else model_part(name) for name in self.weights)
        mapped = [f'mapped to {part}: {count} tensors' for part, count in tensors.items()]
        left_out = [f'left out: {describe_keys(keys, 3)} ({reason})' for reason, keys in self.left_out.items() if keys]
        added = [f'set to 0: {describe_keys(keys, 3)} ({reason})' for reason, keys in self.added.items() if keys]
        return '\n'.join(mapped + added + left_out)


def recognise_checkpoint(checkpoint: Mapping[str, Any], entry: str | None = None) -> OfficialCheckpoint:
    """Recognise a loaded official file by its keys, and convert its weights.

    Args:
        checkpoint: The file.
        entry: The entry of the weights, if the file has several copies of them.

    Raises:
        ValueError: The file has no official backbone, has entries of unknown meaning, or weights that are not finite.
    """
    found = chosen_weights(checkpoint, entry)
    family, prefix = find_backbone(found)
    check_finite(found)
    counters = batch_counters(found)
    weights = {**found, **counters}
    arch, backbone = family.convert_official(weights)
    if arch is None:
        raise ValueError('not an official file: its backbone has the names of mmvit')
    classifier = [
        key for key in weights if key.startswith(tuple(prefix + c for c in family.official_layout.classifier))
    ]
    wrapper = 'module.' if prefix.startswith('module.') else ''
    heads = as_tensors({k.removeprefix(wrapper): v for k, v in weights.items() if not k.startswith(prefix)})
    model = recognise_model(heads)
    settings = {key: heads.pop(key) for key in list(heads) if SETTINGS.fullmatch(key)}
    if model is not CLASSIFIER:
        backbone = {f'backbone.{name}': value for name, value in backbone.items()}
    return OfficialCheckpoint(
        family,
        arch,
        model,
        weights=backbone | rename_heads(heads, model),
        settings=settings,
        left_out={
            'no backbone has a classifier': classifier,
            'settings, equal in the config': list(settings),
            **({} if found is checkpoint else explain_other_entries(checkpoint, found)),
        },
        added={'counters of batches, which only training uses, and which this file lacks': list(counters)},
    )


def chosen_weights(checkpoint: Mapping[str, Any], entry: str | None) -> Mapping[str, Any]:
    """The entry of a file that holds the weights.

    Raises:
        ValueError: It has none of that name; or no name is given, and it has averaged weights beside others.
    """
    copies = [key for key in ('model', 'state_dict', *AVERAGES) if isinstance(checkpoint.get(key), Mapping)]
    if entry is None and len(copies) > 1 and any(key in AVERAGES for key in copies):
        raise ValueError(f'it has weights under {" and ".join(copies)}: say which with --weights')
    if entry is not None and entry not in copies:
        raise ValueError(f'it has no weights under {entry}, but {" and ".join(copies) or "in the file itself"}')
    return checkpoint[entry or copies[0]] if copies else find_weights(checkpoint)


def check_finite(weights: Mapping[str, Any]) -> None:
    """Raise ValueError if some weights are NaN or infinite."""
    broken = [
        key
        for key, value in weights.items()
        if isinstance(value, Tensor | np.ndarray) and not torch.as_tensor(value).isfinite().all()
    ]
    if broken:
        raise ValueError(f'these weights are NaN or infinite; {describe_keys(broken)}')


def batch_counters(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The ``num_batches_tracked`` that batch norms lack, because they were frozen."""
    norms = [key.removesuffix('running_mean') for key in weights if key.endswith('.running_mean')]
    names = [f'{norm}num_batches_tracked' for norm in norms]
    return {name: torch.tensor(0) for name in names if name not in weights}


def find_backbone(weights: Mapping[str, Any]) -> tuple[type[Backbone], str]:
    """The family of the backbone in some weights, and the prefix of its keys."""
    for family in FAMILIES:
        prefix = family.official_layout.find_prefix(weights)
        if prefix is not None:
            return family, prefix
    names = ', '.join(family.__name__ for family in FAMILIES)
    raise ValueError(f'not an official file: found the backbone of none of {names} in it; {describe_keys(weights)}')


def recognise_model(heads: Mapping[str, Any]) -> OfficialModel:
    """The kind of model, by the keys of its weights without those of the backbone."""
    if not heads:
        return CLASSIFIER
    for model in OFFICIAL_MODELS:
        if model.landmark in heads:
            return model
    known = ' or '.join(model.description for model in OFFICIAL_MODELS)
    raise ValueError(f'the entries around the backbone are not those of {known}; {describe_keys(heads)}')


def rename_heads(heads: Mapping[str, Tensor], model: OfficialModel) -> dict[str, Tensor]:
    """Convert the names of a model's neck and heads to those of OpenMMLab.

    Raises:
        ValueError: Some keys are unknown, or two of them would get one name.
    """
    names = {key: new_names(key, model.renames) for key in heads}
    times = Counter(name for found in names.values() for name in found)
    if unknown := [key for key, found in names.items() if not found or any(times[name] > 1 for name in found)]:
        raise ValueError(f'it has entries that do not belong to {model.description}; {describe_keys(unknown)}')
    return {name: heads[key] for key, found in names.items() for name in found}


def explain_other_entries(checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys of a file other than the weights, by the reason why they are left out.

    Raises:
        ValueError: Some keys are unknown.
    """
    others = [key for key, value in checkpoint.items() if value is not weights]
    if unknown := [key for key in others if not any(key in keys for keys in OTHER_ENTRIES.values())]:
        raise ValueError(f'it has unknown entries beside the weights; {describe_keys(unknown)}')
    return {reason: [key for key in others if key in keys] for reason, keys in OTHER_ENTRIES.items()}


def model_part(name: str) -> str:
    """The part of a model that a weight belongs to. The two heads of a RoI head count as two parts."""
    words = name.split('.')
    return '.'.join(words[: 1 + (words[0] == 'roi_head')])


def converted_state_dict(official: OfficialCheckpoint, model: Any) -> dict[str, Tensor]:
    """Load converted weights into the model of a config, and return what to save.

    Args:
        official: The converted file.
        model: A model that a config's ``model`` describes.

    Returns:
        The model's state dict; for a classifier's file, that of its backbone.

    Raises:
        ValueError: The model is not the official network.
    """
    check_model(official, model)
    if official.model is CLASSIFIER:
        model.backbone.load_converted(official.weights, 'this file')
        return contiguous_float32(official.weights)
    check_settings(official, model)
    if mismatch := describe_mismatch(official.weights, model.state_dict()):
        raise ValueError(f'these weights are not those of its model; {mismatch}')
    model.load_state_dict(official.weights, strict=True)
    return contiguous_float32(model.state_dict())


def check_model(official: OfficialCheckpoint, model: nn.Module) -> None:
    """Raise ValueError unless method and backbone are the official ones."""
    kind, family = official.model, official.family
    if kind.model and kind.model not in {cls.__name__ for cls in type(model).__mro__}:
        raise ValueError(f'its model is a {type(model).__name__}, not a {kind.model}')
    backbone = getattr(model, 'backbone', None)
    wanted = f"it must have backbone=dict(type='mmvit.{family.__name__}', arch='{official.arch}', ...)"
    if not isinstance(backbone, family):
        raise ValueError(f'its backbone is a {type(backbone).__name__}; {wanted}')
    if backbone.arch != family.resolve_arch(official.arch):
        raise ValueError(f'its backbone is of another arch; {wanted}')
    if kind.from_detectron2 and type(first_head(model)).__module__ != 'mmvit.detectron2':
        raise ValueError("it tests in mmdet's ways, and these weights need detectron2's: give its _d2 config")


def first_head(model: Any) -> Any:
    """The head of a detector that works on its maps."""
    return model.rpn_head if hasattr(model, 'rpn_head') else getattr(model, 'bbox_head', None)


def check_settings(official: OfficialCheckpoint, model: Any) -> None:
    """Raise ValueError if the file has another normalisation or other anchors than the config."""
    head = first_head(model)
    for key, found in official.settings.items():
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


def contiguous_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to contiguous memory that no two of them share, floats as float32."""
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in floats.items()}


def dataset_meta(config: Config) -> dict[str, Any]:
    """Classes and palette of the config's test dataset. Its files need not be there."""
    if not config.get('test_dataloader'):
        return {}
    dataset = DATASETS.build({**config.test_dataloader.dataset, 'lazy_init': True})
    return {key: dataset.metainfo[key] for key in ('classes', 'palette') if key in dataset.metainfo}
