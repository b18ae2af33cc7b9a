"""CARAFE: every pixel of an upsampled map is a weighted sum of the pixels around its source (arXiv:1905.02188).

Features are (n, channels, h, w); masks are (n, groups * kernel_size ** 2, h * scale_factor, w * scale_factor) and hold
the weights. mmcv's two forms of the operator differ in their kernels alone. Both are computed by the same functions,
channels last, one position of the window after the other, so that no copy of the features for each position is held.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widened


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Fills the output (n, channels, h * scale_factor, w * scale_factor)."""
    _reassemble(features.permute(0, 2, 3, 1), masks, output, kernel_size, group_size, scale_factor)


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills the gradients of the features and of the masks from the output's gradient."""
    last = features.permute(0, 2, 3, 1)
    _reassemble_backward(top_grad, last, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills the output as ``carafe_naive_forward`` does, and ``rfeatures`` (n, h, w, channels) for the backward pass.

    mmcv's other buffers, ``routput`` and ``rmasks``, are not needed.
    """
    last = features.permute(0, 2, 3, 1)
    rfeatures.resize_(last.shape).copy_(last)
    _reassemble(rfeatures, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills the gradients of the features and of the masks. mmcv's other buffers are not needed."""
    _reassemble_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def _reassemble(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, groups: int, scale_factor: int
) -> None:
    """Fills the output from the features (n, h, w, channels)."""
    weights = widened(_blocks(masks, groups, scale_factor))
    padded = _padded(features, kernel_size, groups)
    sums = padded.new_zeros(_blocks(output, groups, scale_factor).shape)
    for position, window in enumerate(_windows(padded, kernel_size)):
        sums.addcmul_(window, weights[..., position, None])
    _blocks(output, groups, scale_factor).copy_(sums)


def _reassemble_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    groups: int,
    scale_factor: int,
) -> None:
    """Fills the gradients of the features (n, h, w, channels) and of the masks."""
    weights = widened(_blocks(masks, groups, scale_factor))
    grads = widened(_blocks(top_grad, groups, scale_factor)).contiguous()
    padded = _padded(features, kernel_size, groups)
    padded_grad = torch.zeros_like(padded)
    weights_grad = grads.new_zeros(weights.shape)
    windows = zip(_windows(padded, kernel_size), _windows(padded_grad, kernel_size), strict=True)
    for position, (window, window_grad) in enumerate(windows):
        weights_grad[..., position] = (grads * window).sum(-1)
        window_grad += (grads * weights[..., position, None]).sum((2, 4), keepdim=True)
    half = kernel_size // 2
    height, width = features.shape[1:3]
    inner = padded_grad[:, half : half + height, 0, half : half + width, 0].flatten(-2)
    bottom_grad.copy_(inner.permute(0, 3, 1, 2))
    _blocks(mask_grad, groups, scale_factor).copy_(weights_grad)


def _blocks(upsampled: Tensor, groups: int, scale_factor: int) -> Tensor:
    """A view of an upsampled map: (n, h, scale_factor, w, scale_factor, groups, channels of a group)."""
    channels, height, width = upsampled.shape[1:]
    split = upsampled.unflatten(3, (width // scale_factor, scale_factor))
    split = split.unflatten(2, (height // scale_factor, scale_factor)).unflatten(1, (groups, channels // groups))
    return split.permute(0, 3, 4, 5, 6, 1, 2)


def _padded(features: Tensor, kernel_size: int, groups: int) -> Tensor:
    """The features in zeros for the windows at the rims: (n, padded h, 1, padded w, 1, groups, channels of a group)."""
    half = kernel_size // 2
    padded = F.pad(widened(features), (0, 0, half, half, half, half))
    return padded[:, :, None, :, None].unflatten(-1, (groups, features.shape[-1] // groups))


def _windows(padded: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """Views of the padded map: for each position in the window, row by row, the pixel that it holds for each source."""
    height, width = padded.shape[1] - kernel_size + 1, padded.shape[3] - kernel_size + 1
    for row in range(kernel_size):
        for column in range(kernel_size):
            yield padded[:, row : row + height, :, column : column + width]
