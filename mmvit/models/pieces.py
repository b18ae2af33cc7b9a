"""Work on a CPU in pieces of tokens.

On a CPU a map of an 800x1333 image does not fit the cache, and each new buffer of its size costs fresh pages. Working
through a few thousand tokens at a time, in place where no gradient is wanted, takes neither: measured, it beats
everything else there. Elsewhere (GPUs, compiled and exported programs) whole tensors are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvit.compat import is_compiling

PIECE = 2**19  # elements; half as many are about as fast


def in_pieces(x: Tensor) -> bool:
    """Whether to work on ``x`` piece by piece."""
    return x.device.type == 'cpu' and not is_recorded()


def in_place(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` shall work piece by piece in the memory of ``x`` itself."""
    return in_pieces(x) and not module.training and not torch.is_grad_enabled()


def tokens_at_once(x: Tensor) -> int:
    """The number of tokens of ``x`` (..., C) that make a piece."""
    return max(1, PIECE // x.shape[-1])


def tokenwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, for one that changes every token of ``x`` (..., C) for itself, to the same width."""
    if not in_pieces(x):
        return function(x)
    pieces = x.flatten(0, -2).split(tokens_at_once(x))
    return torch.cat([function(piece) for piece in pieces]).view(x.shape) if len(pieces) > 1 else function(x)


def in_step(length: int, dim: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors, all cut alike into pieces of ``length`` along ``dim``."""
    return zip(*(x.split(length, dim) for x in tensors), strict=True)


def recomputed(function: Callable[..., Tensor], wanted: bool) -> Callable[..., Tensor]:
    """``function``, which draws nothing at random; where wanted, computed again in the backward pass."""
    if not (wanted and torch.is_grad_enabled()):
        return function
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


def is_recorded() -> bool:
    """Whether a compiler, exporter, tracer or CUDA graph records what is computed now."""
    if is_compiling() or torch.jit.is_tracing():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y; into ``x``, which nobody else may hold, where no gradient needs it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class GELU(nn.Module):
    """For an MLP: on the CPU in the memory of its hidden tokens, where no gradient needs them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(x) if in_place(self, x) else F.gelu(x)


class Kept(nn.Module):
    """What an evaluating module last computed from a weight, kept between its forwards.

    Nothing stale comes out: it is made anew when gradients are wanted or the weight, its dtype or its device changed;
    it is forgotten when the module is told to train or to evaluate, which also ends what cannot be seen on the weight
    (an averaged model's ``.data`` swapped in). Recorded programs make their own, and so does a weight that was built
    under inference mode: it does not count its changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Any, Any] = (None, None)

    def get(self, key: Any, weight: Tensor, make: Callable[[], Any]) -> Any:
        """The result of ``make()``, or of the last call if ``key`` and ``weight`` are the same."""
        if self.training or torch.is_grad_enabled() or is_recorded() or weight.is_inference():
            return make()
        key = (key, weight.data_ptr(), weight._version, weight.dtype, weight.device)
        last = self.last  # read once: another thread may replace it at any moment
        if last[0] != key:
            self.last = last = (key, make())
        return last[1]

    def train(self, mode: bool = True) -> Kept:
        self.last = (None, None)
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self.last = (None, None)
        return super()._apply(*args, **kwargs)
