"""Hooks that let a training survive: kills, full disks, signals, losses that are not finite, a wrong start, neighbours.

Every recipe has all six (``configs/_base_/training_hooks.py``). A config over other bases takes them so::

    default_hooks = dict(
        checkpoint=dict(type='mmvit.AtomicCheckpointHook'),
        finite_loss=dict(type='mmvit.FiniteLossHook'),
        random_states=dict(type='mmvit.RandomStatesHook'),
        interrupt=dict(type='mmvit.InterruptHook'),
        check_setup=dict(type='mmvit.CheckSetupHook'),
        threads=dict(type='mmvit.FitThreadsHook'),
    )
"""

from mmvit.training.checkpoints import AtomicCheckpointHook
from mmvit.training.finite import FiniteLossHook
from mmvit.training.interruption import InterruptHook
from mmvit.training.random_states import RandomStatesHook
from mmvit.training.setup import CheckSetupHook
from mmvit.training.threads import FitThreadsHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckSetupHook',
    'FiniteLossHook',
    'FitThreadsHook',
    'InterruptHook',
    'RandomStatesHook',
]
