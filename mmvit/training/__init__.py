"""Hooks that let a training survive: kills, full disks, signals, losses that are not finite.

Every recipe has all four (``configs/_base_/training_hooks.py``). A config over other bases takes them so::

    default_hooks = dict(
        checkpoint=dict(type='mmvit.AtomicCheckpointHook'),
        finite_loss=dict(type='mmvit.FiniteLossHook'),
        random_states=dict(type='mmvit.RandomStatesHook'),
        interrupt=dict(type='mmvit.InterruptHook'),
    )
"""

from mmvit.training.checkpoints import AtomicCheckpointHook
from mmvit.training.finite import FiniteLossHook
from mmvit.training.interruption import InterruptHook
from mmvit.training.random_states import RandomStatesHook

__all__ = ['AtomicCheckpointHook', 'FiniteLossHook', 'InterruptHook', 'RandomStatesHook']
