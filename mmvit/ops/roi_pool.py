"""RoIPool (Fast R-CNN, https://arxiv.org/abs/1504.08083) of feature maps (n, c, h, w), as in mmcv's CUDA kernel.

RoIs (r, 5) are an image's number and a box (x1, y1, x2, y2) in pixels of the image, the last pixel included.
torchvision rounds the boxes, so that its operator pools other pixels.
"""

import torch
from torch import Tensor

from .precision import widened
from .roi_align import finite


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fills ``output`` (r, c, pooled_height, pooled_width) with the bins' maxima and ``argmax`` with their pixels.

    A pixel is ``y * w + x``. It is -1, and the maximum zero, for a bin without pixels.
    """
    features = widened(input)
    rois = finite(rois.to(features.dtype))
    image, (_, channels, height, width) = rois[:, 0].long(), features.shape
    top, bottom = _bounds(rois[:, 2], rois[:, 4], pooled_height, spatial_scale, height)
    left, right = _bounds(rois[:, 1], rois[:, 3], pooled_width, spatial_scale, width)
    empty = ((bottom <= top)[:, :, None] | (right <= left)[:, None])[..., None]
    maxima = torch.where(empty, 0.0, torch.finfo(torch.float32).min).to(features.dtype).repeat(1, 1, 1, channels)
    pixels = torch.full_like(maxima, -1, dtype=torch.long)
    channels_last = features.permute(0, 2, 3, 1).contiguous()
    for row in range(_longest(top, bottom)):
        for column in range(_longest(left, right)):
            y, x = top + row, left + column
            inside = (y < bottom)[:, :, None] & (x < right)[:, None]
            some = inside.flatten(1).any(1).nonzero()[:, 0]
            y, x = y[some, :, None].clamp(max=height - 1), x[some, None].clamp(max=width - 1)
            values = channels_last[image[some, None, None], y, x]
            higher = inside[some, ..., None] & (values > maxima[some])
            maxima[some] = torch.where(higher, values, maxima[some])
            pixels[some] = torch.where(higher, (y * width + x)[..., None], pixels[some])
    output.copy_(maxima.permute(0, 3, 1, 2))
    argmax.copy_(pixels.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds the gradient to ``grad_input`` (n, c, h, w), at the pixels of the maxima."""
    grad = widened(grad_output) * (argmax >= 0)
    _, channels, height, width = grad_input.shape
    image = finite(rois)[:, 0].long()
    maps = image[:, None] * channels + torch.arange(channels, device=rois.device)
    pixels = maps[..., None, None] * (height * width) + argmax.clamp(min=0)
    gradient = grad.new_zeros(grad_input.numel())
    gradient.index_add_(0, pixels.flatten(), grad.flatten())
    grad_input += gradient.view(grad_input.shape)


def _bounds(start: Tensor, end: Tensor, bins: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """The first pixel of each bin along an axis of the map and the one after its last: two of shape (r, bins)."""
    start, extent = start[:, None] * scale, ((end + 1) * scale - start * scale)[:, None]
    numbers = torch.arange(bins, device=start.device)
    first = (numbers * (extent / bins) + start).floor().clamp(0, size)
    last = ((numbers + 1) * (extent / bins) + start).ceil().clamp(0, size)
    return first.long(), torch.where(extent > 0, last, first).long()


def _longest(first: Tensor, last: Tensor) -> int:
    """The most pixels that a bin has along an axis."""
    return int((last - first).max()) if first.numel() else 0
