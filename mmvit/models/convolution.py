"""Convolutions whose weight gradient a CPU finds fast.

PyTorch's library for convolutions on CPUs, oneDNN, has no good kernel for two weight gradients in channels-last memory:
a dense convolution's takes six times its forward pass, a depthwise one's twenty times if its kernel has more than three
columns (measured with AVX2). The first is quick in channels-first memory, copies and all; the second in strips of three
columns, each the weight gradient of a narrow kernel over the shifted input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.models.pieces import is_recorded

STRIP = 3  # columns


class Conv2d(nn.Conv2d):
    """PyTorch's, dense or depthwise, without dilation and with zeros around."""

    def forward(self, x: Tensor) -> Tensor:
        is_trained = torch.is_grad_enabled() and self.weight.requires_grad
        is_plain = x.device.type != 'cpu' or is_recorded() or torch.is_autocast_enabled('cpu')
        if is_trained and not is_plain and self.kernel_size != (1, 1):
            return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding, self.groups)
        return super().forward(x)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        stride, padding, groups = geometry
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, _, wants_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = gradient(0, grad, x, weight, *ctx.geometry) if wants_x else None
        if weight.shape[1] > 1:
            grad_weight = gradient(1, grad.contiguous(), x.contiguous(), weight, *ctx.geometry)
        else:
            grad_weight = gradient_in_strips(grad, x, weight, *ctx.geometry)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if wants_bias else None, None, None, None


def gradient_in_strips(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Tensor:
    """The gradient for the weight, some columns at a time."""
    padded = F.pad(x, (padding[1], padding[1]))
    strips, column = [], 0
    for strip in weight.split(STRIP, dim=-1):
        width = strip.shape[-1] + stride[1] * (grad.shape[-1] - 1)
        seen = padded.narrow(-1, column, width)
        strips.append(gradient(1, grad, seen, strip, stride, (padding[0], 0), groups))
        column += strip.shape[-1]
    return torch.cat(strips, dim=-1)


def gradient(which: int, grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, groups: int) -> Tensor:
    """PyTorch's gradient of a convolution for its input (0) or its weight (1)."""
    wanted = [which == 0, which == 1, False]
    backward = torch.ops.aten.convolution_backward
    return backward(grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted)[which]
