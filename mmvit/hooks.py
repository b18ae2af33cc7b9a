"""Hooks for mmengine's runner that speed up the backbone alone, whatever model it stands in.

In a config: ``custom_hooks = [dict(type='mmvit.CompileBackboneHook')]``. Neither touches weights or checkpoints.
"""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

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
    """Compile the backbone, and nothing else, with ``torch.compile``.

    Args:
        dynamic: True makes one program for all image sizes, False one for each (bounded by
            ``torch._dynamo.config.recompile_limit``, and eager from there on), None starts with one size and
            generalises when another comes.
        options: Others of ``torch.compile``.
    """

    def __init__(self, dynamic: bool | None = None, **options: Any) -> None:
        self.options = dict(options, dynamic=dynamic)

    def before_run(self, runner: Runner) -> None:
        backbone_of(runner).compile(**self.options)


def backbone_of(runner: Runner) -> Backbone:
    """The backbone in a runner's model."""
    model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, Backbone):
        raise TypeError(f'this hook is for models with a backbone of mmvit, not for one with {type(backbone).__name__}')
    return backbone
