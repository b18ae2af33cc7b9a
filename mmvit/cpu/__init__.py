"""What makes the networks of ``mmvit.models`` fast, and sparing with memory, on CPUs. They are right without it.

The map of an 800x1333 image does not fit a CPU's cache, and each new buffer of its size costs fresh pages of memory. So
in inference a block works on some tokens at a time, in a tensor of its own.

A block's ``forward`` asks :func:`takes` whether to come here. GPUs, compilers, exporters and training get the networks
as they are written. ``bfloat16`` mends faults of PyTorch's in 16 bits.

The modules say what they save, measured at 800x1333 (batch 1, float32, 2 cores of an AMD EPYC with AVX-512, PyTorch
2.13.0).
"""

from torch import nn

from mmvit.cpu import bfloat16, mpvit, pyramid_tnt, regionvit
from mmvit.cpu.door import takes

__all__ = ['bfloat16', 'give_back', 'mpvit', 'pyramid_tnt', 'regionvit', 'takes']


def give_back(network: nn.Module) -> None:
    """Give back the memory that inference keeps for a network's next image."""
    for module in network.modules():
        pyramid_tnt.give_back(module)
