"""What makes backbones fast in engines. Their files are right without it.

PyramidTNT-S at 800x1333 (float32, 2 cores of an AMD EPYC with AVX-512) takes 0.51 of its time in onnxruntime 1.32 and
0.70 in OpenVINO 2026.4. Half of what onnxruntime gains comes from the products that resize. The whole tables take
240 to 420 MiB.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit.cpu.pyramid_tnt import WholeTable
from mmvit.models.pyramid_tnt import Grid, RelativePosition, Stage, Stem


def made_fast(model: nn.Module) -> nn.Module:
    """The model itself, whose PyramidTNT, if it has one, now makes its positions in the way that is fast in engines."""
    for module in model.modules():
        if isinstance(module, Stem):
            module.outer_position = MethodType(outer_position, module)  # type: ignore[method-assign]
        elif isinstance(module, Stage):
            module.relative_position = MethodType(relative_position, module)  # type: ignore[method-assign]
    return model


def outer_position(self: Stem, size: Grid) -> Tensor:
    """``Stem.outer_position`` by products."""
    return resize(self.outer_pos, self.grid, size).unflatten(1, size)


def relative_position(self: Stage, size: Grid) -> WholeTable:
    """``Stage.relative_position`` by products, with a whole table: engines take longer for wide queries and keys."""
    return WholeTable(ByProducts(self.relative_pos, self.grid, size, self.reduction))


class ByProducts(RelativePosition):
    """A relative position that is resized by products."""

    def resized(self, table: Tensor, trained: Grid, size: Grid) -> Tensor:
        """As :func:`resize`."""
        return resize(table, trained, size)


def resize(table: Tensor, trained: Grid, size: Grid) -> Tensor:
    """As ``mmvit.models.pyramid_tnt.resize``, by two products with matrices of weights: onnxruntime is slow in cubics.

    The table is the first factor. As the second one it would count as weights, which become integers.
    """
    rows, columns = (cubic_weights(n, length, table) for n, length in zip(trained, size, strict=True))
    by_place = rearrange(table, 'b (h w) c -> b c h w', h=trained[0], w=trained[1])
    return rearrange(rows.transpose(0, 1) @ (by_place @ columns), 'b c h w -> b (h w) c')


def cubic_weights(n: int, length: int, like: Tensor) -> Tensor:
    """The matrix (n, length) that resizes rows of n values, bicubic."""
    units = torch.eye(n, dtype=like.dtype, device=like.device)
    return F.interpolate(units[None, :, None], (1, length), mode='bicubic')[0, :, 0]
