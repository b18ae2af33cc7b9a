"""What differs between the versions of PyTorch (2.1 and later) and NumPy (1.26 and later) that mmvit supports.

No network asks for a version.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np
import torch

__all__ = [
    'add_safe_globals',
    'cpu_autocast_dtype',
    'is_autocast_enabled',
    'is_compiling',
    'multiarray',
    'safe_globals',
]

multiarray = import_module('numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray')  # NumPy 2
is_compiling = (torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._utils).is_compiling  # PyTorch 2.3


def is_autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a type of device."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # below PyTorch 2.4 it takes no argument and means CUDA
        return torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()


def cpu_autocast_dtype() -> torch.dtype:
    """What autocast computes in on a CPU."""
    if hasattr(torch, 'get_autocast_dtype'):  # PyTorch 2.4
        return torch.get_autocast_dtype('cpu')
    return torch.get_autocast_cpu_dtype()


def safe_globals(classes: Iterable[Any]) -> AbstractContextManager:
    """``torch.load(..., weights_only=True)`` takes these classes; below PyTorch 2.5 it takes only its own."""
    if hasattr(torch.serialization, 'safe_globals'):
        return torch.serialization.safe_globals(list(classes))
    return nullcontext()


def add_safe_globals(entries: Iterable[Any]) -> None:
    """Put classes, and (function, name) pairs, on the list that ``torch.load`` goes by since PyTorch 2.6."""
    if torch.__version__ >= '2.6':
        torch.serialization.add_safe_globals(list(entries))
