"""Convolutions that a CPU computes rightly in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmvit.compat import cpu_autocast_dtype, is_autocast_enabled
from mmvit.cpu.door import is_recorded


def use_in(network: nn.Module) -> None:
    """Make a :class:`CPUConv2d` of every convolution in a network; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = CPUConv2d


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
