"""The networks without the code for CPUs."""

import pytest
from torch import nn

from mmvit import cpu


def as_written(patch: pytest.MonkeyPatch) -> None:
    """Let the networks compute as they are written, as they do on GPUs."""
    patch.setattr(cpu, 'takes', lambda module, x: False)
    patch.setattr(cpu.bfloat16.CPUConv2d, 'forward', nn.Conv2d.forward)
