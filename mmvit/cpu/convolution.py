"""Convolutions whose weight gradient a CPU finds fast, and which compile for training at any size.

PyTorch's library for convolutions on CPUs, oneDNN, has no good kernel for two weight gradients in channels-last memory:
a dense convolution's takes six times its forward pass, a depthwise one's twenty times if its kernel has more than three
columns (measured with AVX2). The first is quick in channels-first memory, copies and all; the second in strips of three
columns, each the weight gradient of a narrow kernel over the shifted input.

In bfloat16 oneDNN is wrong where a stride leaves one column, see ``is_miscomputed``.

PyTorch's compiler, inductor, either fails on a convolution's backward pass or makes a program for one size (2.13). By
default it makes no kernel of its own for it: nothing is lost when it gets an operation that it cannot look into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.compat import cpu_autocast_dtype, custom_op, is_autocast_enabled, is_compiled_for_training
from mmvit.cpu.door import is_recorded

STRIP = 3  # columns


def use_in(network: nn.Module) -> None:
    """Make a :class:`CPUConv2d` of every convolution in a network that can be one; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and is_simple(module):
            module.__class__ = CPUConv2d


def is_simple(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is dense or depthwise, without dilation, and with a number of zeros around the map."""
    return (
        convolution.groups in (1, convolution.in_channels)
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == 'zeros'
        and not isinstance(convolution.padding, str)
    )


class CPUConv2d(nn.Conv2d):
    """PyTorch's convolution with other ways on CPUs; dense or depthwise, without dilation and with zeros around."""

    def forward(self, x: Tensor) -> Tensor:
        geometry: Any = self.stride, self.padding, self.groups
        if not is_recorded() and is_miscomputed(x, self.weight, self.stride, self.padding):
            return convolve(x, self.weight, self.bias, *geometry)
        if not torch.is_grad_enabled():
            return super().forward(x)
        if is_compiled_for_training():
            x, weight, bias = mixed_precision(x, self.weight, self.bias)
            # The compiler would make a program for one size of a slice: it writes its strides down as numbers.
            return opaque(x.contiguous(memory_format=torch.channels_last), weight, bias, *geometry)
        is_plain = x.device.type != 'cpu' or is_recorded() or is_autocast_enabled('cpu')
        if is_plain or not self.weight.requires_grad or is_quick(self.weight, self.groups):
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.bias, *geometry)


def is_quick(weight: Tensor, groups: int) -> bool:
    """Whether a CPU has a good kernel for the gradient of this weight, in channels-last memory."""
    return weight.shape[2:] == (1, 1) or (groups > 1 and weight.shape[3] <= STRIP)


def is_miscomputed(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> bool:
    """Whether a CPU computes this convolution wrongly.

    oneDNN does in bfloat16 if the stride is more than 1 and the output is one column wide, as if it read memory that
    is not its own. With AVX-512 the weight gradient is wrong, with AMX also the output; they are NaN or any number
    (PyTorch 2.13; ``nn.Conv2d(16, 32, 3, 2, 1, groups=16).bfloat16()`` on an input (2, 16, 4, 1)). The memory format
    does not matter. float32 and float16 are right.
    """
    if x.device.type != 'cpu' or stride[1] == 1:
        return False
    dtype = cpu_autocast_dtype() if is_autocast_enabled('cpu') and x.dtype != torch.float64 else x.dtype
    return dtype == torch.bfloat16 and x.shape[-1] + 2 * padding[1] - weight.shape[-1] < stride[1]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int) -> Tensor:
    """PyTorch's convolution; in float32, of rounded input and rounded in the end, where bfloat16 is wrong."""
    if not is_miscomputed(x, weight, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)
    x, weight, bias = (None if t is None else t.bfloat16().float() for t in (x, weight, bias))  # type: ignore[assignment]
    with torch.autocast('cpu', enabled=False):
        return F.conv2d(x, weight, bias, stride, padding, groups=groups).bfloat16()


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
        wanted, wants_bias = ctx.needs_input_grad[:2], ctx.needs_input_grad[2]
        grad_x, grad_weight = gradients(wanted, grad, x, weight, *ctx.geometry)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if wants_bias else None, None, None, None


def gradients(
    wanted: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, groups: int
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients for the input and for the weight, None for one that is not wanted."""
    geometry = stride, padding, groups
    grad = grad.contiguous(memory_format=torch.channels_last)
    if x.device.type != 'cpu' or is_quick(weight, groups) or not wanted[1]:
        return gradient(wanted, grad, x, weight, *geometry)
    grad_x, _ = gradient((True, False), grad, x, weight, *geometry) if wanted[0] else (None, None)
    if groups > 1:
        return grad_x, gradient_in_strips(grad, x, weight, *geometry)
    return grad_x, gradient((False, True), grad.contiguous(), x.contiguous(), weight, *geometry)[1]


def gradient_in_strips(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Tensor:
    """The gradient for the weight, some columns at a time."""
    padded = F.pad(x, (padding[1], padding[1]))
    strips, column = [], 0
    for strip in weight.split(STRIP, dim=-1):
        width = strip.shape[-1] + stride[1] * (grad.shape[-1] - 1)
        seen = padded.narrow(-1, column, width)
        strips.append(gradient((False, True), grad, seen, strip, stride, (padding[0], 0), groups)[1])
        column += strip.shape[-1]
    return torch.cat(strips, dim=-1)


def gradient(
    wanted: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, groups: int
) -> Any:
    """PyTorch's gradients of a convolution for its input and its weight, None for one that is not wanted."""
    backward = torch.ops.aten.convolution_backward
    options = None, stride, padding, (1, 1), False, (0, 0), groups, (*wanted, False)
    if not is_miscomputed(x, weight, stride, padding):
        return backward(grad, x, weight, *options)[:2]
    found = backward(grad.float(), x.float(), weight.float(), *options)[:2]
    return [None if g is None else g.to(x.dtype) for g in found]


def mixed_precision(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a convolution gets under autocast, which does not know of ``opaque``."""
    if not is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@custom_op('mmvit::convolution', mutates_args=())
def opaque(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    """A convolution that a compiler takes as it is; channels-last."""
    out = convolve(x, weight, bias, tuple(stride), tuple(padding), groups)
    return out.contiguous(memory_format=torch.channels_last)


@custom_op('mmvit::convolution_backward', mutates_args=())
def opaque_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Its gradients: channels-last for the input, contiguous for the weight, empty for one that is not wanted."""
    grad_x, grad_weight = gradients(wanted, grad, x, weight, tuple(stride), tuple(padding), groups)
    grad_x = x.new_empty(0) if grad_x is None else grad_x.contiguous(memory_format=torch.channels_last)
    return grad_x, weight.new_empty(0) if grad_weight is None else grad_weight.contiguous()


@opaque.register_fake
def _(x, weight, bias, stride, padding, groups):
    # (n + stride) // stride, for n // stride + 1 is a sum: inductor fails at comparing products of sums.
    size = [(x.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i] + stride[i]) // stride[i] for i in (0, 1)]
    return x.new_empty(x.shape[0], weight.shape[0], *size).contiguous(memory_format=torch.channels_last)


@opaque_backward.register_fake
def _(wanted, grad, x, weight, stride, padding, groups):
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else x.new_empty(0)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[1] else weight.new_empty(0)
    return grad_x, grad_weight


def _save(ctx, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    *wanted, wants_bias = ctx.needs_input_grad[:3]
    found = None, None
    if any(wanted):
        grad = grad.contiguous(memory_format=torch.channels_last)
        found = opaque_backward(wanted, grad, *ctx.saved_tensors, *ctx.geometry)
    grad_x, grad_weight = (g if want else None for g, want in zip(found, wanted, strict=True))
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if wants_bias else None, None, None, None


opaque.register_autograd(_backward, setup_context=_save)
