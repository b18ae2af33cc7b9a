"""How many kernels PyTorch's compiler makes of a network for a GPU, counted without one: a table in Markdown.

    python tools/fused_kernels.py

The operators are recorded on fake tensors at batch 1, in float32, and PyTorch's compiler fuses them as for an H100. It
is stopped before it generates code, which would need the GPU's driver. This takes private names of PyTorch 2.13.
Attention is recorded as two products and a softmax, which a GPU has one kernel for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.config as inductor
from benchmark import Job, find_builder
from gpu_floor import NETWORKS, SIZE
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx_inner, joint_graph_passes
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from write_tables import markdown

HEADER = ['network', 'pass', 'compiled', 'of libraries', 'all']
H100 = SimpleNamespace(  # as published
    name='NVIDIA H100',
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    gcnArchName='',
)


def main() -> None:
    print(markdown([HEADER, *rows()]))


def rows() -> Iterator[list[str]]:
    """A row for each network and pass."""
    for name, model in NETWORKS.items():
        for kind, run in (('forward', forward), ('training', step)):
            made, called = count(find_builder(Job(model))(), run, (1, 3, *SIZE))
            yield [name, kind, str(made), str(called), str(made + called)]


def count(model: nn.Module, run: Callable, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many kernels the compiler makes, and how many it calls in libraries, for one pass over images of a shape."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        recorded, inputs = on_cuda(*record(model, run, shape))
        with tracing(TracingContext(mode)), V.set_fake_mode(mode), as_on_h100(), torch.no_grad():
            return fuse(recorded, inputs)


def record(model: nn.Module, run: Callable, shape: tuple[int, ...]) -> tuple[GraphModule, list[Tensor]]:
    """A pass as a graph, and its inputs. A backward pass cannot be recorded on CUDA without a driver."""
    values = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = {n: torch.empty(v.shape, dtype=v.dtype, requires_grad=v.requires_grad) for n, v in values.items()}
    inputs = (weights, torch.empty(shape))
    with sdpa_kernel(SDPBackend.MATH):
        recorded = make_fx(partial(run, model), select_decomp_table())(*inputs)
    return recorded, tree_leaves(inputs)


def forward(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Maps. Gradients stay enabled: without them the code for CPUs would be recorded."""
    model.eval()
    return [out.detach() for out in functional_call(model, weights, (x,))]


def step(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Gradients of a forward and a backward pass."""
    model.train()
    total = sum(out.sum() for out in functional_call(model, weights, (x,)))
    trained = [weight for weight in weights.values() if weight.requires_grad]
    return [grad for grad in torch.autograd.grad(total, trained, allow_unused=True) if grad is not None]


def on_cuda(recorded: GraphModule, inputs: list[Tensor]) -> tuple[GraphModule, list[Tensor]]:
    """The graph, of functional operators, and its inputs on a fake GPU."""
    for node in recorded.graph.nodes:
        if 'device' in node.kwargs:
            node.kwargs = {**node.kwargs, 'device': torch.device('cuda:0')}
    recorded.graph.set_codegen(CodeGen())  # leaves in, leaves out
    recorded.recompile()
    moved = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device='cuda') for x in inputs]
    functional = functionalize(lambda *leaves: tuple(tree_leaves(recorded(*leaves))))
    return make_fx(functional, select_decomp_table())(*moved), moved


class Fused(Exception):  # noqa: N818  it is no error
    """All that can be fused has been."""


def fuse(recorded: GraphModule, inputs: list[Tensor]) -> tuple[int, int]:
    """Let the compiler fuse, and stop it."""
    kinds: Counter[str] = Counter()

    def stop(scheduler: Any) -> None:
        kinds.update(type(node).__name__ for node in scheduler.nodes)
        raise Fused

    with mock.patch('torch._inductor.scheduler.Scheduler.codegen', stop):
        try:
            joint_graph_passes(recorded)
            compile_fx_inner(recorded, inputs)
        except Exception:  # the compiler wraps ours
            if not kinds:
                raise
    called = kinds.pop('ExternKernelSchedulerNode', 0)
    kinds.pop('NopKernelSchedulerNode', 0)
    return sum(kinds.values()), called


@contextmanager
def as_on_h100() -> Iterator[None]:
    """What the compiler asks of a GPU is answered. What would compute something on it is turned off."""
    interface = 'torch._dynamo.device_interface.CudaInterface'
    answers = {
        'torch.cuda.get_device_properties': H100,
        'torch.cuda.get_device_capability': (9, 0),
        'torch.cuda.current_device': 0,
        'torch.cuda.device_count': 1,
        f'{interface}.get_device_properties': H100,
        f'{interface}.Worker.get_device_properties': H100,
        f'{interface}.Worker.current_device': 0,
        f'{interface}.get_compute_capability': 90,
        'torch._inductor.compile_fx._check_triton_bf16_support': None,
        'torch._inductor.utils.is_big_gpu': True,
        'torch.utils._triton.has_triton': True,
        'torch._inductor.scheduler.has_triton': True,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, mock.Mock(return_value=answer)))
        stack.enter_context(
            inductor.patch(shape_padding=False, layout_optimization=False, joint_graph_constant_folding=False)
        )
        yield


if __name__ == '__main__':
    main()
