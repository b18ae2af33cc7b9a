"""The table of what networks ask of a GPU."""

from pathlib import Path

import gpu_floor
import pytest
from torch import nn
from versions import needs_torch

from mmvit.flops import Work
from mmvit.models import MPViT


def test_floors_by_hand():
    work = Work(multiply_adds=int(gpu_floor.PEAK), traffic=int(3 * gpu_floor.BANDWIDTH), kernels=1000)
    assert gpu_floor.floors(work) == pytest.approx((3.0, 2.0, 1000 * gpu_floor.LAUNCH))


@pytest.mark.slow
def test_docs_have_todays_numbers(monkeypatch):
    monkeypatch.setattr(gpu_floor, 'BATCHES', (1,))
    docs = Path('docs/speed.md').read_text()
    for numbers, times in gpu_floor.costs(lambda: MPViT('small')):
        row = ('MPViT-S', *numbers, *(f'{1e3 * time:.2f}' for time in times))
        assert f'| {" | ".join(row)} |' in docs


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Dropout(0.5))

    def forward(self, x):
        return [self.layers(x)]


@needs_torch('2.13', 'tools/fused_kernels.py')
def test_kernels_after_fusion_by_hand():
    """Forward, the GELU is between two products. Training has three more, and the rest is fused around them."""
    from fused_kernels import count, forward, step  # noqa: PLC0415  what it imports is not in every PyTorch

    assert count(Mlp(), forward, (4, 16)) == (1, 2)
    assert count(Mlp(), step, (4, 16)) == (4, 5)
