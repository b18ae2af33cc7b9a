"""Operators of mmcv.ops as models for ``benchmark.py``: ours, and mmcv's compiled ones where they are installed.

    python tools/benchmark.py benchmark_operators:compiled_nms benchmark_operators:nms --time-only --sizes 32
    python tools/benchmark.py benchmark_operators:compiled_roi_align benchmark_operators:roi_align --step train \
        --time-only --sizes 32

Operators: nms, soft_nms (1000 boxes each), roi_align (1000 boxes, 7x7 bins, 256 channels, a map of 200x336),
deform_conv (256 channels, 3x3, a map of 50x84). The image that the benchmark makes is not used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import mmcv.ops
import torch
from torch import Tensor, nn

import mmvit.ops
from mmvit.environment import compiled_operators


class Operator(nn.Module):
    """One of mmcv's operators on fixed tensors.

    Args:
        run: Calls the operator on the map.
        module: The module of mmcv.ops that calls the compiled functions.
        functions: The compiled functions, or those that stand in for them.
        shape: Shape of the map, the input that gets a gradient.
    """

    def __init__(
        self, run: Callable[[Tensor], Tensor], module: str, functions: ModuleType, shape: tuple[int, ...] = (1,)
    ) -> None:
        super().__init__()
        self.run = run
        self.module = sys.modules[f'mmcv.ops.{module}']  # some have their function's name
        self.functions = functions
        self.map = nn.Parameter(torch.rand(shape))

    def forward(self, images: Tensor) -> Tensor:
        """What the operator returns; the images are not used."""
        self.module.ext_module = self.functions  # type: ignore[attr-defined]
        return self.run(self.map)


def boxes(count: int, height: int, width: int) -> Tensor:
    """Boxes (count, 4) of 16 to 272 pixels a side."""
    corners = torch.rand(count, 2) * torch.tensor([width - 272.0, height - 272.0])
    return torch.cat([corners, corners + 16 + 256 * torch.rand(count, 2)], dim=1)


def nms(functions: ModuleType = mmvit.ops) -> nn.Module:
    found, scores = boxes(1000, 800, 1344), torch.rand(1000)
    return Operator(lambda _: mmcv.ops.nms(found, scores, 0.5)[0], 'nms', functions)


def soft_nms(functions: ModuleType = mmvit.ops) -> nn.Module:
    found, scores = boxes(1000, 800, 1344), torch.rand(1000)
    return Operator(lambda _: mmcv.ops.soft_nms(found, scores, 0.3, min_score=0.05)[0], 'nms', functions)


def roi_align(functions: ModuleType = mmvit.ops) -> nn.Module:
    rois = torch.cat([torch.zeros(1000, 1), boxes(1000, 800, 1344)], dim=1)
    layer = mmcv.ops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=0)
    return Operator(lambda x: layer(x, rois), 'roi_align', functions, (1, 256, 200, 336))


def deform_conv(functions: ModuleType = mmvit.ops) -> nn.Module:
    offset, weight = torch.randn(1, 18, 50, 84), nn.Parameter(torch.randn(256, 256, 3, 3))
    offset.requires_grad_()
    return Operator(
        lambda x: mmcv.ops.deform_conv2d(x, offset, weight, 1, 1), 'deform_conv', functions, (1, 256, 50, 84)
    )


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """``compiled_NAME``: the operator with mmcv's compiled functions."""
    if not name.startswith('compiled_'):
        raise AttributeError(name)
    if compiled_operators() is None:
        raise ImportError('mmcv has no compiled operators here (docs/install.md says how to build them)')
    from mmcv import _ext  # noqa: PLC0415

    operator = globals()[name.removeprefix('compiled_')]
    return lambda: operator(_ext)
