"""The table of what networks ask of a GPU."""

from pathlib import Path

import gpu_floor
import pytest

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
