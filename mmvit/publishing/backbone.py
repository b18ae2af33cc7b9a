"""The backbone of a detector or segmenter as a model of timm, which ``local-dir:`` and ``hf-hub:`` load."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
from mmengine.config import Config
from timm.models import save_for_hf

from mmvit.checkpoints.trained import mean_and_std
from mmvit.classifiers import DEFAULT_CFG
from mmvit.models.base import Backbone

# What timm's model has from elsewhere, or what only a training needs.
NOT_OPTIONS = {
    *('type', 'arch', 'out_indices', 'in_channels', 'init_cfg'),
    *('frozen_stages', 'drop_path_rate', 'norm_eval', 'with_cp'),
}


def why_not_in_timm(model: Any) -> str:
    """Why timm cannot have a model's backbone; empty if it can."""
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, Backbone):
        return 'the backbone is not one of mmvit'
    if arch_name(backbone) is None:
        return 'its arch has no name'
    if len(backbone.stages) < backbone.num_stages:
        return f'it was built without its last {backbone.num_stages - len(backbone.stages)} stages'
    return ''


def write_backbone(model: Any, config: Config, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, with the means and deviations of the model's images."""
    backbone: Backbone = model.backbone
    defaults = inspect.signature(type(backbone)).parameters
    settings = {
        **{key: defaults[key].default for key in backbone.classifier_options},  # which timm's model has otherwise
        **config.model.backbone.to_dict(),
    }
    options = {key: value for key, value in settings.items() if key not in NOT_OPTIONS}
    if (options.get('norm_cfg') or {}).get('type') == 'SyncBN':
        options['norm_cfg']['type'] = 'BN'
    arch: Any = arch_name(backbone)
    size = backbone.timm_cfg(arch).get('input_size', DEFAULT_CFG['input_size'])[1:]
    # No linear layer: a detector has none. A norm before it keeps its initial values.
    classifier: Any = timm.create_model(
        f'mmvit_{backbone.family_name}_{arch}',
        num_classes=0,
        in_chans=backbone.in_channels,
        pretrained_cfg_overlay=dict(input_size=(backbone.in_channels, *size), num_classes=0, **normalisation(model)),
        **options,
    )
    classifier.backbone.load_state_dict(backbone.state_dict(), strict=True)
    arguments = dict(num_classes=0, in_chans=backbone.in_channels, **options)
    save_for_hf(classifier, str(folder), model_args=arguments, safe_serialization=True)
    readable = (folder / 'config.json').stat().st_mode
    (folder / 'model.safetensors').chmod(readable)  # safetensors lets only its owner read it


def arch_name(backbone: Backbone) -> str | None:
    """The name of its arch, or None if its settings are those of no named one."""
    return next((name for name, settings in backbone.arch_zoo.items() if settings == backbone.arch), None)


def normalisation(model: Any) -> dict[str, tuple[float, ...]]:
    """Means and deviations of a model's images, for pixels of 0 to 1."""
    return {
        name: tuple(round(value / 255, 6) for value in values.tolist())
        for name, values in zip(('mean', 'std'), mean_and_std(model), strict=True)
    }
