"""What a computation costs: its multiply-adds and its memory traffic, counted by the operators that PyTorch runs.

PyTorch's own counter is underneath. It sees into ``scaled_dot_product_attention``, autograd functions and the backward
pass, where mmengine's ``FlopAnalyzer``, which reads a trace, sees nothing; norms and activations are free here.
Compiled code cannot be seen: count it before it is compiled, or under ``torch.compiler.set_stance('force_eager')``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """Cost of a computation.

    Args:
        multiply_adds: Of matrix products, convolutions and attention; one multiplication with its addition is one.
        traffic: Bytes that the operators read and write, if none finds its input in a cache and views cost nothing.
        kernels: Operators that are no views. Each is a kernel on a GPU, or more than one.
    """

    multiply_adds: int
    traffic: int
    kernels: int = 0


def count_work(function: Callable[..., Any], *args: Any) -> Work:
    """Run ``function(*args)`` once and count what it does, a backward pass included if it makes one."""
    flops = FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS)
    with _Traffic() as traffic, flops:  # the counter, entered last, splits operators first
        function(*args)
    return Work(flops.get_total_flops() // 2, traffic.bytes, traffic.kernels)


class _Traffic(TorchDispatchMode):
    """Counts the operators that are no views, and sums up the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, outputs = ([t for t in tree_flatten(x)[0] if isinstance(t, Tensor)] for x in ((args, kwargs), out))
        owned = {t.untyped_storage()._cdata for t in inputs}
        is_view = not func._schema.is_mutable and any(t.untyped_storage()._cdata in owned for t in outputs)
        if not is_view and 'empty' not in func.__name__:
            self.bytes += sum(map(_bytes, inputs + outputs))
            self.kernels += 1
        return out


def _bytes(tensor: Tensor) -> int:
    """What is read of a tensor; one that was expanded is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _added_product(total: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(a) * b[-1]


def _convolution_backward(grad: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """Of a grouped convolution too, which PyTorch's formula takes for a dense one."""
    transposed, output_mask = args[4], args[7]
    one_product = 2 * prod(x if transposed else grad) * prod(weight[1:])
    return one_product * sum(output_mask[:2])  # for the input and for the weight


# Formulas over the operands' shapes, two for each multiply-add as in PyTorch's own. Not every PyTorch has all of these.
OWN_FORMULAS: dict[Any, Callable[..., int]] = {
    getattr(aten, name): formula
    for name, formula in (
        ('addmm_', _added_product),
        ('baddbmm_', _added_product),
        ('convolution_backward', _convolution_backward),
        ('_scaled_dot_product_flash_attention_for_cpu', _attention),
        ('_scaled_dot_product_flash_attention_for_cpu_backward', _attention_backward),
    )
    if hasattr(aten, name)
}
