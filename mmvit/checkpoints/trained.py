"""Trained models of a config, read without running anything in their file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmvit.checkpoints.files import read_checkpoint


def load_trained(config: Config, checkpoint: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """A config's model in eval mode with the weights of a file or address, and what the file says of its classes.

    mmdet's ``init_detector`` and mmseg's ``init_model`` would run what is in the file.

    Args:
        config: mmdet's or mmseg's.
        checkpoint: As mmengine saves it, or a bare state dict.

    Raises:
        FileNotFoundError: There is no such file.
        RuntimeError: The file is not safe, or does not fit the config.
    """
    model = build_model(config)
    loaded = read_checkpoint(checkpoint)
    model.load_state_dict(loaded.get('state_dict', loaded))
    return model, loaded.get('meta', {}).get('dataset_meta', {})


def build_model(config: Config) -> nn.Module:
    """A config's model in eval mode, for one process, with random weights."""
    init_default_scope(config.get('default_scope'))
    model = revert_sync_batchnorm(MODELS.build(config.model))
    model.cfg = config
    return model.eval()


def mean_and_std(model: Any) -> tuple[Tensor, Tensor]:
    """Of each channel of images from 0 to 255. Zeros and ones if the model does not normalise."""
    found = dict(model.data_preprocessor.named_buffers())
    channels = model.backbone.in_channels
    return (
        found.get('mean', torch.zeros(channels)).flatten(),
        found.get('std', torch.ones(channels)).flatten(),
    )
