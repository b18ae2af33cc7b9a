"""When the code for CPUs is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmvit.compat import is_compiling


def takes(module: nn.Module, x: Tensor) -> bool:
    """Whether the code for CPUs computes ``module(x)``; if not, the module computes it as it is written.

    It does in inference on a CPU: no training mode, no gradients, nothing that records the operations.
    """
    return x.device.type == 'cpu' and not module.training and not torch.is_grad_enabled() and not is_recorded()


def is_recorded() -> bool:
    """Whether a compiler, exporter, tracer or CUDA graph records the operations."""
    if is_compiling() or torch.jit.is_tracing():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
