"""Stops a training whose loss is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmvit.registry import HOOKS, register
from mmvit.training.stopping import anywhere, stop


@register(HOOKS)
class FiniteLossHook(Hook):
    """Stop at the first loss that is not finite in any process, before anything is saved.

    It looks at one number an iteration, which mmengine's ``RuntimeInfoHook`` has read already. Several processes ask
    one another, so that none of them saves weights that another has spoilt.
    """

    priority = 'VERY_HIGH'  # before hooks that save or average

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        outputs = outputs or {}
        if anywhere(not is_finite(outputs.get('loss', 0.0))):
            broken = all_gather_object([name for name, value in outputs.items() if not is_finite(value)])
            names = sorted({name for names in broken for name in names})
            stop(
                f'Training stopped at iteration {runner.iter + 1}: not finite: {", ".join(names)}. Nothing was saved '
                'since the last checkpoint. Lower the learning rate, clip gradients or look at the data, and go on '
                'with --resume.'
            )


def is_finite(value: Any) -> bool:
    """Whether a number or a tensor is finite; True for anything else."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, float) or isfinite(value)
