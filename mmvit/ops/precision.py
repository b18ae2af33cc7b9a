"""The floating-point type that the operators compute in."""

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it has a 16-bit type, which torchvision's CPU kernels lack."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
