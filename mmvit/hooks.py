"""Hooks for mmengine's runner that speed up a model or its backbone alone; none touches weights or checkpoints.

In a config: ``custom_hooks = [dict(type='mmvit.CompileBackboneHook')]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from mmvit.environment import compiled_operators
from mmvit.models.base import Backbone
from mmvit.registry import HOOKS, register


@register(HOOKS)
class FuseBackboneHook(Hook):
    """Test with ``backbone.fuse()``: batch norms folded into convolutions, for the time of the test."""

    priority = 'VERY_LOW'  # after averaged weights were swapped in

    def before_test_epoch(self, runner: Runner) -> None:
        backbone: Any = backbone_of(runner)
        backbone.forward = backbone.fuse().forward  # parameters stay where other hooks look for them

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        backbone: Any = backbone_of(runner)
        del backbone.forward


@register(HOOKS)
class CompileBackboneHook(Hook):
    """Compile the backbone's transformer blocks, each by itself and nothing else, with ``torch.compile``.

    A block has few sizes, and simple ones. Those of a stage, which come out of strided convolutions and windows, make
    formulas that take the compiler minutes, and on some of which PyTorch 2.13's fails.

    The hook sets ``torch._dynamo.config.specialize_float`` for the whole process.

    Args:
        dynamic: True makes a few programs of a block for all image sizes: in training, in evaluation, and where a case
            differs (no window padded, the size that tables were trained for, few tokens). False makes one for each
            size, None starts with one size and generalises when another comes. Beyond
            ``torch._dynamo.config.recompile_limit`` programs of a block, or ``accumulated_recompile_limit`` of all,
            blocks run eagerly.
        options: Others of ``torch.compile``.

    Raises:
        RuntimeError: This PyTorch is too old.
    """

    def __init__(self, dynamic: bool | None = True, **options: Any) -> None:
        if 'isolate_recompiles' not in signature(torch.compile).parameters:
            raise RuntimeError(
                f'CompileBackboneHook needs a PyTorch whose torch.compile takes isolate_recompiles, as 2.13 does, '
                f'not {torch.__version__}; train without the hook or upgrade'
            )
        # Without isolation the blocks of one class would share its limit.
        self.options = dict(dynamic=dynamic, isolate_recompiles=True, **options)

    def before_run(self, runner: Runner) -> None:
        # Epsilons and drop rates are constants; as symbols they fail inside what is recomputed.
        torch._dynamo.config.specialize_float = True
        backbone = backbone_of(runner)
        for module in backbone.modules():
            if isinstance(module, backbone.block_class):
                module.compile(**self.options)


@register(HOOKS)
class RoIAlignHook(Hook):
    """Give mmcv's compiled RoIAlign maps that it can read: contiguous, and in float32 where they are in bfloat16.

    The compiled operator (mmcv 2.1.0) takes channels-last memory for channels-first without a word, and refuses
    bfloat16. ``mmvit.ops`` takes both, so the hook does nothing where mmcv has no compiled operators.
    """

    def before_run(self, runner: Runner) -> None:
        if compiled_operators() is None:
            return
        from mmcv.ops import RoIAlign  # noqa: PLC0415  it takes a while to import

        for module in runner.model.modules():
            if isinstance(module, RoIAlign):
                module.forward = partial(readable, module.forward)


def readable(roi_align: Callable[[Tensor, Tensor], Tensor], maps: Tensor, regions: Tensor) -> Tensor:
    """RoIAlign of maps (B, C, H, W) in any memory format and float type, for regions (N, 5): (N, C, h, w)."""
    dtype = torch.float32 if maps.dtype == torch.bfloat16 else maps.dtype
    return roi_align(maps.to(dtype).contiguous(), regions.to(dtype)).to(maps.dtype)


@register(HOOKS)
class ChannelsLastHook(RoIAlignHook):
    """Keep all convolutions of a model in channels-last memory (the backbones' always are)."""

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        model: Any = runner.model
        model.to(memory_format=torch.channels_last)


def backbone_of(runner: Runner) -> Backbone:
    """The backbone in a runner's model."""
    model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, Backbone):
        raise TypeError(f'this hook is for models with a backbone of mmvit, not for one with {type(backbone).__name__}')
    return backbone
