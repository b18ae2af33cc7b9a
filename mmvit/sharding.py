"""The transformer blocks: the modules to shard in training with PyTorch's FSDP, and to compile."""

from __future__ import annotations

from torch import nn

from mmvit.models import mpvit, pyramid_tnt, regionvit

BLOCKS = (mpvit.Block, pyramid_tnt.Block, regionvit.Block)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every transformer block is a unit, and the rest of the model one more."""
    return recurse or isinstance(module, BLOCKS)
