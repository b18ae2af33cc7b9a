"""Our convolution is PyTorch's in everything but the way of its weight gradient."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from versions import needs_torch

from mmvit.cpu.convolution import CPUConv2d, opaque, opaque_backward

needs_opaque = needs_torch('2.7', 'the convolution that compilers do not look into')

# Channels in and out, kernel, stride, groups, bias.
DENSE = (3, 8, 3, 2, 1, False)
WITH_BIAS = (4, 6, 3, 1, 1, True)
NARROW = (6, 6, 3, 1, 6, True)
WIDE = (6, 6, 5, 1, 6, False)
WIDEST = (5, 5, 7, 1, 5, True)
STRIDED = (4, 8, 5, 2, 4, True)
POINTWISE = (4, 6, 1, 1, 1, True)
GEOMETRIES = [DENSE, WITH_BIAS, NARROW, WIDE, WIDEST, STRIDED, POINTWISE]


def make(geometry, dtype=torch.float64):
    channels, out_channels, kernel, stride, groups, bias = geometry
    torch.manual_seed(0)
    own = CPUConv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias).to(dtype)
    plain = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias).to(dtype)
    plain.load_state_dict(own.state_dict())
    return own, plain


def step(convolution, x):
    x = x.clone().requires_grad_()
    out = convolution(x)
    out.sin().sum().backward()
    return [out, x.grad, *(p.grad for p in convolution.parameters())]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (9, 14)])
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_gradients_are_pytorchs(geometry, size, memory_format):
    own, plain = make(geometry)
    x = torch.randn(2, geometry[0], *size, dtype=torch.float64).to(memory_format=memory_format)
    for a, b in zip(step(own, x), step(plain, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('geometry', [DENSE, WIDEST], ids=str)
def test_gradients_have_gradients(geometry):
    own, _ = make(geometry)
    x = torch.randn(1, geometry[0], 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(own, x)


@pytest.mark.parametrize('geometry', [DENSE, WIDEST], ids=str)
def test_frozen_weights_and_images_without_gradient(geometry):
    own, _ = make(geometry)
    x = torch.randn(1, geometry[0], 4, 5, dtype=torch.float64)
    own(x).sum().backward()
    assert own.weight.grad is not None
    own.requires_grad_(False)
    x.requires_grad_()
    own(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize('geometry', [DENSE, WIDEST], ids=str)
def test_mixed_precision(geometry):
    own, plain = make(geometry, torch.float32)
    x = torch.randn(2, geometry[0], 9, 14)
    with torch.autocast('cpu', torch.bfloat16):
        results = [step(convolution, x) for convolution in (own, plain)]
    assert results[0][0].dtype == torch.bfloat16
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def _dirty_memory():
    """What is freed here is what a program reads that reads too far."""
    for size in (64, 256, 1024, 4096, 16384):
        torch.full((size,), float('nan'))


@pytest.mark.parametrize('mode', ['weights', 'autocast', pytest.param('operation', marks=needs_opaque)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(4, 1), (8, 1), (9, 1), (4, 2)])
@pytest.mark.parametrize('geometry', [(16, 32, 3, 2, 16, True), (16, 32, 3, 2, 1, False), (32, 64, 5, 2, 32, True)])
@pytest.mark.usefixtures('_dirty_memory')
def test_bfloat16_with_one_column_left(geometry, size, memory_format, mode):
    own, exact = make(geometry)
    own.bfloat16()
    exact.load_state_dict(own.state_dict())  # the rounded weights
    x = torch.randn(2, geometry[0], *size).bfloat16().to(memory_format=memory_format)
    expected = step(exact, x.double())
    if mode == 'weights':
        found = step(own, x)
        with torch.no_grad():
            torch.testing.assert_close(own(x), found[0], rtol=0, atol=0)
    elif mode == 'autocast':
        with torch.autocast('cpu', torch.bfloat16):
            found = step(own.float(), x.float())
        assert found[0].dtype == torch.bfloat16
    else:
        own.forward = lambda x: opaque(x, own.weight, own.bias, own.stride, own.padding, own.groups)
        found = step(own, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=0.02 * b.abs().max().item())


@needs_opaque
@pytest.mark.parametrize('geometry', [DENSE, WIDEST], ids=str)
@pytest.mark.parametrize('amp', [False, True], ids=['float64', 'autocast'])
def test_compiled(geometry, amp):
    torch._dynamo.reset()
    dtype = torch.float32 if amp else torch.float64
    own, plain = make(geometry, dtype)
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return lookup_backend('aot_eager')(graph, inputs)

    compiled = torch.compile(copy.deepcopy(own), fullgraph=True, dynamic=True, backend=backend)
    for size in ((9, 14), (11, 8)):
        x = torch.randn(2, geometry[0], *size, dtype=dtype)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            outputs = [step(convolution, x) for convolution in (compiled, plain)]
        for a, b in zip(*outputs, strict=True):
            torch.testing.assert_close(a, b, **(dict(rtol=0.02, atol=0.02) if amp else {}))
    assert all('mmvit.convolution' in graph.code for graph in programs)
    assert len(programs) == 1


@pytest.mark.parametrize('trained', ['x', 'weight', 'bias'])
@pytest.mark.parametrize('geometry', [WITH_BIAS, WIDEST], ids=str)
def test_compiled_with_frozen_parts(geometry, trained):
    torch._dynamo.reset()
    models = make(geometry)
    x = torch.randn(2, geometry[0], 9, 14, dtype=torch.float64)
    gradients = []
    for model in (torch.compile(models[0], fullgraph=True, backend='aot_eager'), models[1]):
        model.requires_grad_(False)
        leaves = dict(x=x.clone(), weight=model.weight, bias=model.bias)
        leaf = leaves[trained].requires_grad_()
        model(leaves['x']).sin().sum().backward()
        gradients.append(leaf.grad)
        assert sum(leaf.grad is not None for leaf in leaves.values()) == 1
    torch.testing.assert_close(*gradients)


@needs_opaque
@pytest.mark.parametrize('wanted', [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_operation_is_what_it_tells_compilers(geometry, wanted):
    own, _ = make(geometry)
    x = torch.randn(2, geometry[0], 9, 14, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    arguments = (
        x.requires_grad_(wanted[0]),
        own.weight.requires_grad_(wanted[1]),
        own.bias,
        own.stride,
        own.padding,
        own.groups,
    )
    torch.library.opcheck(opaque, arguments)
    grad = torch.randn_like(own(x))
    torch.library.opcheck(opaque_backward, (wanted, grad, x.detach(), own.weight.detach(), *arguments[3:]))


def test_exported_program_has_pytorchs_convolution():
    own, _ = make(WIDEST, torch.float32)
    program = torch.export.export(own, (torch.randn(2, 5, 9, 14),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith('aten.conv') for target in targets)
    assert not any('mmvit' in target for target in targets)
