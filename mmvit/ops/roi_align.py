"""RoIAlign (Mask R-CNN, https://arxiv.org/abs/1703.06870) of feature maps (n, c, h, w).

RoIs (r, 5) are an image's number and a box (x1, y1, x2, y2) in pixels of the image. The average of a bin's samples is
torchvision's; the maximum is computed here.
"""

import torch
import torchvision  # noqa: F401  registers the operators
from torch import Tensor

from .precision import widened

MAX = 0  # mmcv's number of a pooling mode; 1 is the average
LOWEST = -10000  # the maximum of a bin without samples in mmcv's CPU kernel


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``output`` (r, c, aligned_height, aligned_width) and, for the maximum, its samples' coordinates."""
    features = widened(input)
    rois = finite(rois.to(features.dtype))
    if pool_mode == MAX:
        size = (aligned_height, aligned_width)
        for filled, values in zip(
            (output, argmax_y, argmax_x),
            _maxima(features, rois, size, spatial_scale, sampling_ratio, aligned),
            strict=True,
        ):
            filled.copy_(values)
    else:
        output.copy_(
            torch.ops.torchvision.roi_align(
                features, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
            )
        )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient to ``grad_input`` (n, c, h, w)."""
    grad = widened(grad_output)
    rois = finite(rois.to(grad.dtype))
    if pool_mode == MAX:
        grad_input += _gradient_of_maxima(grad, rois, widened(argmax_y), widened(argmax_x), grad_input.shape)
    else:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad, rois, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
        )


def finite(rois: Tensor) -> Tensor:
    """The RoIs, but outside of the first image where one has a number that is not finite: it pools zeros there.

    The kernels would turn such a number into a number of samples.
    """
    known = rois.isfinite().all(1, keepdim=True)
    image, start, end = rois.split([1, 2, 2], dim=1)
    parts = (torch.where(known, part, outside) for part, outside in ((image, 0), (start, -10000), (end, -9999)))
    return torch.cat(list(parts), dim=1)


def _maxima(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The highest sample of each bin, and its y and x on the map, each of shape (r, c, height, width)."""
    start, bins, samples = _bins(rois, size, scale, sampling_ratio, aligned)
    channels_last = features.permute(0, 2, 3, 1).contiguous()
    shape = (len(rois), *size, features.shape[1])
    maxima = features.new_full(shape, LOWEST)
    at_y, at_x = features.new_full(shape, -1), features.new_full(shape, -1)
    rows, columns = samples.amax(0).int().tolist() if len(rois) else (0, 0)
    for row, column in ((row, column) for row in range(rows) for column in range(columns)):
        some = ((samples[:, 0] > row) & (samples[:, 1] > column)).nonzero()[:, 0]
        y, x = (
            _coordinates(start[some, axis], bins[some, axis], samples[some, axis], size[axis], sample)
            for axis, sample in enumerate((row, column))
        )
        values = _bilinear(channels_last, rois[some, 0].long(), y, x)
        higher = values > maxima[some]
        maxima[some] = torch.where(higher, values, maxima[some])
        at_y[some] = torch.where(higher, y[:, :, None, None], at_y[some])
        at_x[some] = torch.where(higher, x[:, None, :, None], at_x[some])
    return maxima.permute(0, 3, 1, 2), at_y.permute(0, 3, 1, 2), at_x.permute(0, 3, 1, 2)


def _bins(
    rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Each RoI's start, size of a bin and number of samples in a bin, each (r, 2): along y and along x on the map."""
    corners = rois[:, [2, 1, 4, 3]] * scale - (0.5 if aligned else 0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / extent.new_tensor(size)
    samples = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    return start, bins, samples


def _coordinates(start: Tensor, bins: Tensor, samples: Tensor, size: int, sample: int) -> Tensor:
    """Where one of the bins' samples lies along an axis of the map: (r, size)."""
    places = start[:, None] + torch.arange(size, device=start.device) * bins[:, None]
    return places + ((sample + 0.5) * bins / samples)[:, None]


def _bilinear(channels_last: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values (r, height, width, c) of maps (n, h, w, c) at all pairs of y (r, height) and x (r, width)."""
    _, height, width, channels = channels_last.shape
    top, bottom, from_top, from_bottom = _neighbours(y[:, :, None, None], height)
    left, right, from_left, from_right = _neighbours(x[:, None, :, None], width)
    pixels = channels_last.view(-1, channels)
    first = image[:, None, None, None] * height

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        return pixels[((first + row) * width + column)[..., 0]]

    return (
        from_top * from_left * pixel(top, left)
        + from_top * from_right * pixel(top, right)
        + from_bottom * from_left * pixel(bottom, left)
        + from_bottom * from_right * pixel(bottom, right)
    )


def _neighbours(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels before and after places along an axis, and their weights: zero more than a pixel off the map."""
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    before = places.floor()
    weight = places - before
    before = before.long()
    return before, (before + 1).clamp(max=size - 1), (1 - weight) * inside, weight * inside


def _gradient_of_maxima(grad: Tensor, rois: Tensor, at_y: Tensor, at_x: Tensor, shape: torch.Size) -> Tensor:
    """The gradient (n, c, h, w) that goes to the pixels around each maximum."""
    _, channels, height, width = shape
    top, bottom, from_top, from_bottom = _neighbours(at_y, height)
    left, right, from_left, from_right = _neighbours(at_x, width)
    grad = grad * (at_y != -1)  # bins without samples
    maps = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    gradient = grad.new_zeros(shape.numel())
    for row, from_row in ((top, from_top), (bottom, from_bottom)):
        for column, from_column in ((left, from_left), (right, from_right)):
            pixels = (maps[..., None, None] * height + row) * width + column
            gradient.index_add_(0, pixels.flatten(), (grad * from_row * from_column).flatten())
    return gradient.view(shape)
