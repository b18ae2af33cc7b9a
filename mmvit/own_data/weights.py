"""Finds out how a training can begin with the weights of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvit.checkpoints.files import read_checkpoint
from mmvit.checkpoints.layouts import find_weights
from mmvit.models.base import Backbone
from mmvit.models.families import recognise

BACKBONE = 'backbone.'

Use = Literal['backbone', 'model']


def find_use(path: Path, base: Path) -> Use:
    """What of a config's model a file of weights fills: the backbone, or the whole model but for its classes.

    Raises:
        FileNotFoundError: There is no such file.
        RuntimeError: The file is damaged or not safe.
        ValueError: It does not have the weights of the config's backbone.
    """
    config = Config.fromfile(base)
    loaded = read_checkpoint(str(path))
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    check_backbone(loaded, model.backbone, config.model.backbone.arch, path)
    return 'model' if head_names(find_weights(loaded)) == head_names(model.state_dict()) else 'backbone'


def check_backbone(loaded: Mapping[str, Any], backbone: Backbone, arch: str, path: Path) -> None:
    """Raises ValueError, with what the file holds, if it does not fill the backbone."""
    name = f'{type(backbone).__name__} {arch!r}'
    try:
        backbone.load_converted(backbone.convert_official(loaded).weights, str(path))
    except ValueError as error:
        found = recognise(find_weights(loaded)) or 'no backbone of mmvit'
        why = f'. {error}' if found.startswith(name) else ''
        raise ValueError(
            f'--weights {path} does not fit --backbone, which is {name}: the file holds {found}. Mend one of them{why}'
        ) from None


def head_names(weights: Mapping[str, Any]) -> set[str]:
    """The weights of a model that are not the backbone's, but for counters that frozen batch norms lack."""
    return {key for key in weights if not key.startswith(BACKBONE) and not key.endswith('num_batches_tracked')}
