"""Deformable convolution (https://arxiv.org/abs/1703.06211), modulated or not, by torchvision's operators.

Shapes: input (n, c, h, w), weight (o, c / group, kH, kW), output (n, o, h', w'), offset
(n, 2 * deformable_group * kH * kW, h', w') with y before x in pixels, mask (n, deformable_group * kH * kW, h', w').
mmcv and torchvision agree on all of them. mmcv's buffers ``columns`` and ``ones`` are not used, nor is
``im2col_step``: torchvision itself chooses how many images go at once.
"""
# ruff: noqa: N803  mmcv's names of the arguments

from math import gcd

import torch
import torchvision  # noqa: F401  registers the operators
from torch import Tensor

from .precision import widened


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fills ``output``; strides are ``dH`` and ``dW``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolved(input, weight, offset, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Adds the gradient to ``gradInput`` and fills ``gradOffset``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    tensors = (gradOutput, input, weight, offset, _no_mask(input), _no_bias(weight))
    grad_input, _, grad_offset, _, _ = torch.ops.torchvision._deform_conv2d_backward(
        *map(widened, tensors), *geometry, False
    )
    gradInput.add_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds the gradient times ``scale`` to ``gradWeight``.

    torchvision's operator would compute all gradients for it, the costly ones of input and offset too.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    grads = widened(gradOutput).flatten(2).unflatten(1, (group, -1))
    total = grads.new_zeros(group, grads.shape[2], gradWeight[0].numel())
    for image, image_offset, grad in zip(widened(input), widened(offset), grads, strict=True):
        samples = _samples(image[None], image_offset[None], (kH, kW), geometry, deformable_group)
        total.baddbmm_(grad, samples.view(group, -1, grad.shape[-1]).transpose(1, 2))
    gradWeight.add_(total.view(gradWeight.shape), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fills ``output``. The mask scales each sample; ``bias`` is empty without ``with_bias``."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = (input, weight, offset, mask, bias if with_bias else _no_bias(weight))
    output.copy_(torch.ops.torchvision.deform_conv2d(*map(widened, tensors), *geometry, True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Adds the gradients of input, weight and bias to their tensors and fills those of offset and mask."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = (grad_output, input, weight, offset, mask, bias if with_bias else _no_bias(weight))
    of_input, of_weight, of_offset, of_mask, of_bias = torch.ops.torchvision._deform_conv2d_backward(
        *map(widened, tensors), *geometry, True
    )
    grad_input.add_(of_input)
    grad_weight.add_(of_weight)
    grad_offset.copy_(of_offset)
    grad_mask.copy_(of_mask)
    if with_bias:
        grad_bias.add_(of_bias)


def _convolved(input: Tensor, weight: Tensor, offset: Tensor, geometry: tuple[int, ...]) -> Tensor:
    tensors = (input, weight, offset, _no_mask(input), _no_bias(weight))
    return torch.ops.torchvision.deform_conv2d(*map(widened, tensors), *geometry, False)


def _samples(
    image: Tensor, offset: Tensor, kernel: tuple[int, int], geometry: tuple[int, ...], deformable_group: int
) -> Tensor:
    """What the kernel's places see of each channel: (1, c * kH * kW, h', w').

    This is a convolution whose kernels each see one place. Its groups of at most 16 channels cost little on a CPU,
    and on a GPU they are few calls.
    """
    places, channels = kernel[0] * kernel[1], image.shape[1]
    together = gcd(channels, 16)
    one_place = torch.eye(together * places, dtype=image.dtype, device=image.device).view(-1, together, *kernel)
    weight = one_place.repeat(channels // together, 1, 1, 1)
    return _convolved(image, weight, offset, (*geometry, channels // together, deformable_group))


def _no_mask(input: Tensor) -> Tensor:
    return input.new_zeros(len(input), 1)


def _no_bias(weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight))
