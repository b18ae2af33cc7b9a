"""Layers that a CPU computes rightly in 16 bits, where PyTorch's are wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mmvit.compat import cpu_autocast_dtype, is_autocast_enabled
from mmvit.cpu.door import is_recorded


def use_in(network: nn.Module) -> None:
    """Put the layers of this module in the place of PyTorch's and timm's in a network; weights and names stay."""
    for module in network.modules():
        module.__class__ = RIGHT.get(type(module), type(module))


class CPUConv2d(nn.Conv2d):
    """PyTorch's convolution; in float32 where a CPU is wrong in bfloat16.

    PyTorch's library for convolutions, oneDNN, is wrong in bfloat16 if the stride is more than 1 and the output is one
    column wide, as if it read memory that is not its own. With AVX-512 the weight gradient is wrong, with AMX also the
    output, which large kernels (16x16) have wrong with AVX-512, too; they are NaN or any number (PyTorch 2.13;
    ``nn.Conv2d(16, 32, 3, 2, 1, groups=16).bfloat16()`` on an input (2, 16, 4, 1)). Some convolutions are wrong in
    channels-last memory alone. float32 and float16 are right.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_recorded() or not self.is_miscomputed(x):
            return super().forward(x)
        x, weight = x.bfloat16().float(), self.weight.bfloat16().float()
        bias = None if self.bias is None else self.bias.bfloat16().float()
        with torch.autocast('cpu', enabled=False):
            return self._conv_forward(x, weight, bias).bfloat16()

    def is_miscomputed(self, x: Tensor) -> bool:
        """Whether the convolution of ``x`` would be wrong."""
        if x.device.type != 'cpu' or self.stride[1] == 1 or isinstance(self.padding, str):
            return False
        dtype = cpu_autocast_dtype() if is_autocast_enabled('cpu') and x.dtype != torch.float64 else x.dtype
        span = self.dilation[1] * (self.kernel_size[1] - 1) + 1
        return dtype == torch.bfloat16 and x.shape[-1] + 2 * self.padding[1] - span < self.stride[1]


class CPULayerNorm(nn.LayerNorm):
    """PyTorch's layer norm; in float32 in training on a CPU in 16 bits.

    PyTorch sums the gradients of weight and bias over the tokens in 16 bits there, whatever type weight and bias have,
    autocast included. The sum of 10 000 ones is 512 (PyTorch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(self, x) if sums_are_wrong(self, x) else super().forward(x)


class CPULayerNorm2d(LayerNorm2d):
    """timm's layer norm over the channels of maps (B, C, H, W), as :class:`CPULayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        if not sums_are_wrong(self, x):
            return super().forward(x)
        return in_float32(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def sums_are_wrong(norm: nn.LayerNorm, x: Tensor) -> bool:
    """Whether the gradients of a layer norm's weight and bias would be wrong."""
    if x.device.type != 'cpu' or x.dtype not in (torch.bfloat16, torch.float16) or is_recorded():
        return False
    return torch.is_grad_enabled() and norm.weight.requires_grad


def in_float32(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The layer norm over the last dimension, computed in float32; of the type of ``x``."""
    with torch.autocast('cpu', enabled=False):
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps).to(x)


RIGHT: dict[type, type] = {nn.Conv2d: CPUConv2d, nn.LayerNorm: CPULayerNorm, LayerNorm2d: CPULayerNorm2d}
