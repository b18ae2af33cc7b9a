"""The networks written a second time, independently: channels first, step by step, and without attention kernels.

The tests compare the backbones with them. Each takes its weights from a backbone of mmvit.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from mmvit.models import MPViT, PyramidTNT, RegionViT
from mmvit.models.base import Backbone
from plain import mpvit, pyramid_tnt, regionvit

FORWARDS = {MPViT: mpvit.forward, PyramidTNT: pyramid_tnt.forward, RegionViT: regionvit.forward}


class Plain(nn.Module):
    """A backbone's weights, computed plainly (without stochastic depth)."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(FORWARDS[type(self.model)](self.model, x))


# For the benchmark: `plain:mpvit_small` beside `mpvit_small`.
mpvit_small = partial(lambda: Plain(MPViT('small')))
regionvit_small = partial(lambda: Plain(RegionViT('small')))
pyramid_tnt_small = partial(lambda: Plain(PyramidTNT('small')))
