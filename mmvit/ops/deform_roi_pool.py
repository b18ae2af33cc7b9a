"""Deformable RoI pooling: each bin of a region is moved by an offset of its own (arXiv:1703.06211, arXiv:1811.11168).

Features are (n, channels, h, w), regions (regions, 5) with the image's index and (x1, y1, x2, y2) in pixels of the
image, offsets (regions, 2, pooled_height, pooled_width) with x before y, in units of ``gamma`` times the region's size;
an empty tensor stands for none. A bin is the mean of the points of a grid, interpolated as in RoIAlign.

An embedding bag computes it: its table is the pixels of all images, its bags the bins, each with the pixels around its
points and their weights. So the values of the points are never held.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widened

POINTS = 2**20  # computed at once: each needs about 100 bytes


class Bins(NamedTuple):
    """Where the bins of all regions lie along one axis, in pixels of the features."""

    start: Tensor  # (regions, pooled_height, pooled_width)
    size: Tensor  # (regions,)
    points: Tensor  # (regions,), how many points the grid has along the axis
    reach: Tensor  # (regions,), how far an offset of 1 moves a bin


class Neighbours(NamedTuple):
    """The pixels before and after each point along one axis; all (regions, pooled_height, pooled_width, points, 2)."""

    pixels: Tensor
    weights: Tensor
    slopes: Tensor  # the derivatives of the weights
    other_weights: Tensor  # mmcv's weights in the other axis' derivative: they go on growing beyond the rim


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills the output (regions, channels, pooled_height, pooled_width).

    With a ``sampling_ratio`` of 0 a grid has a point for each started pixel of a bin.
    """
    if output.numel() == 0:
        return
    pixels = _pixels(input)
    x, y = _bins(rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma, pixels.dtype)
    sums = pixels.new_zeros(output.shape[0] * pooled_height * pooled_width, input.shape[1])
    for columns, rows in _pieces(x, y, sampling_ratio, input):
        indices = _indices(columns, rows, rois, input)
        weights = _crossed(torch.mul, rows.weights, columns.weights)
        sums += F.embedding_bag(indices, pixels, mode='sum', per_sample_weights=weights)
    means = sums.unflatten(0, (-1, pooled_height, pooled_width)) / _counts(x, y)
    output.copy_(means.permute(0, 3, 1, 2))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills the gradients of the features and of the offsets, the latter with mmcv's derivatives at the rims."""
    if grad_output.numel() == 0:
        return
    pixels = _pixels(input).detach().requires_grad_()
    x, y = _bins(rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma, pixels.dtype)
    grads = (widened(grad_output).permute(0, 2, 3, 1) / _counts(x, y)).flatten(0, 2)
    pixel_grads = torch.zeros_like(pixels, requires_grad=False)
    moves = grads.new_zeros(2, grads.shape[0])
    for columns, rows in _pieces(x, y, sampling_ratio, input):
        indices = _indices(columns, rows, rois, input)
        weights = _crossed(torch.mul, rows.weights, columns.weights).requires_grad_()
        with torch.enable_grad():
            sums = F.embedding_bag(indices, pixels, mode='sum', per_sample_weights=weights)
        more, dots = torch.autograd.grad(sums, (pixels, weights), grads)  # dots of each pixel and its bin's gradient
        pixel_grads += more
        moves[0] += (dots * _crossed(torch.mul, rows.other_weights, columns.slopes)).sum(1)
        moves[1] += (dots * _crossed(torch.mul, rows.slopes, columns.other_weights)).sum(1)
    grad_input.copy_(pixel_grads.view(input.shape[0], *input.shape[2:], -1).permute(0, 3, 1, 2))
    if grad_offset.numel():
        by_region = moves.view(2, -1, pooled_height, pooled_width).transpose(0, 1)
        grad_offset.copy_(by_region * torch.stack([x.reach, y.reach], 1)[:, :, None, None])


def _pixels(features: Tensor) -> Tensor:
    """The pixels of all images, one after the other: (n * h * w, channels)."""
    return widened(features).permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _bins(
    rois: Tensor,
    offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    dtype: torch.dtype,
) -> tuple[Bins, Bins]:
    """The bins along x and along y."""
    corners = rois[:, 1:].to(dtype) * spatial_scale - 0.5  # a pixel's centre has whole coordinates
    axes = []
    for axis, bins in enumerate((pooled_width, pooled_height)):
        region = corners[:, axis + 2] - corners[:, axis]
        size = region / bins
        points = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil().clamp(min=0)
        steps = torch.arange(bins, device=rois.device, dtype=dtype)
        start = corners[:, axis, None, None].expand(-1, pooled_height, pooled_width)
        if offset.numel():
            start = start + (gamma * region)[:, None, None] * offset[:, axis].to(dtype)
        start = start + size[:, None, None] * (steps if axis == 0 else steps[:, None])
        axes.append(Bins(start, size, points, gamma * region))
    return axes[0], axes[1]


def _counts(x: Bins, y: Bins) -> Tensor:
    """How many points each region's bins have, 1 for none: (regions, 1, 1, 1)."""
    return (x.points * y.points).clamp(min=1)[:, None, None, None]


def _pieces(x: Bins, y: Bins, sampling_ratio: int, features: Tensor) -> Iterator[tuple[Neighbours, Neighbours]]:
    """The neighbours of all columns of the grids, each time with those of some rows."""
    columns, rows = (sampling_ratio if sampling_ratio > 0 else int(axis.points.max()) for axis in (x, y))
    height, width = features.shape[2:]
    rows_at_once = max(POINTS // max(x.start.numel() * columns, 1), 1)
    for first in range(0, rows if columns else 0, rows_at_once):
        some = range(first, min(first + rows_at_once, rows))
        yield _neighbours(x, range(columns), width), _neighbours(y, some, height)


def _neighbours(bins: Bins, steps: range, size: int) -> Neighbours:
    """Those of some points of the grids. Points beyond a region's grid or beyond the rim by a pixel weigh nothing."""
    step = torch.arange(steps.start, steps.stop, device=bins.start.device)
    distances = (step + 0.5) * (bins.size / bins.points.clamp(min=1))[:, None]
    points = bins.start[..., None] + distances[:, None, None]
    outside = (step >= bins.points[:, None])[:, None, None] | (points < -1) | (points > size)
    inner = points.clamp(0, size - 1)
    before = inner.nan_to_num().floor()  # the weights keep a NaN
    after = (before + 1).clamp(max=size - 1)
    ones = torch.ones_like(points)
    pairs = (1 - (inner - before), inner - before), (-ones, ones), (after - points, points - before)
    weights, slopes, other_weights = (torch.stack(pair, -1).masked_fill(outside[..., None], 0) for pair in pairs)
    return Neighbours(torch.stack([before, after], -1).long(), weights, slopes, other_weights)


def _indices(columns: Neighbours, rows: Neighbours, rois: Tensor, features: Tensor) -> Tensor:
    """Where the points' pixels stand in the table: (bins, 4 * points)."""
    height, width = features.shape[2:]
    image = rois[:, 0].long()[:, None, None, None, None]
    return _crossed(torch.add, (image * height + rows.pixels) * width, columns.pixels)


def _crossed(operation: Callable[[Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """The operation on each row with each column of a grid, and on their pixels: (bins, 4 * points)."""
    return operation(rows[..., :, None, :, None], columns[..., None, :, None, :]).flatten(3).flatten(0, 2)
