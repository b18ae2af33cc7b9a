"""The units of a model for training with PyTorch's FSDP."""

from __future__ import annotations

from torch import nn

from mmvit.models.families import FAMILIES

BLOCK_CLASSES = tuple(family.block_class for family in FAMILIES)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: each transformer block is a unit, and the rest of the model is one more."""
    return recurse or isinstance(module, BLOCK_CLASSES)
