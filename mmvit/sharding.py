"""Training with PyTorch's FSDP: the units of a model, and a strategy that can go on."""

from __future__ import annotations

from mmengine._strategy import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvit.models.families import FAMILIES
from mmvit.registry import STRATEGIES, register

BLOCK_CLASSES = tuple(family.block_class for family in FAMILIES)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: each transformer block is a unit, and the rest of the model is one more."""
    return recurse or isinstance(module, BLOCK_CLASSES)


@register(STRATEGIES)
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy``, which can resume.

    mmengine 0.10.7 hands over the optimizer's state in an order that PyTorch has not taken since 2.1.
    """

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the state of an optimizer that is sharded, or was not yet."""
        optimizer = self.optim_wrapper.optimizer
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(sharded)
