"""Some tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 2**19  # elements, 2 MiB in float32: what fits a cache; half as many are about as fast


def tokens_at_once(x: Tensor) -> int:
    """The number of tokens of ``x`` (..., C) in a chunk."""
    return max(1, CHUNK // x.shape[-1])


def chunked(length: int, dim: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors, all cut alike into ``length`` entries along ``dim``."""
    return zip(*(x.split(length, dim) for x in tensors), strict=True)
