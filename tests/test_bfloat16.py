"""Layers on CPUs are PyTorch's and timm's, and right where those are wrong in 16 bits."""

import copy

import pytest
import torch
from torch import nn

from mmvit.cpu.bfloat16 import RIGHT, CPUConv2d, CPULayerNorm, CPULayerNorm2d, use_in

# Channels in and out, kernel, stride, groups, bias.
DENSE = (3, 8, 3, 2, 1, False)
WIDEST = (5, 5, 7, 1, 5, True)


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


@pytest.mark.parametrize('mode', ['weights', 'autocast'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(4, 1), (8, 1), (9, 1), (4, 2)])
@pytest.mark.parametrize(
    'geometry',
    [(16, 32, 3, 2, 16, True), (16, 32, 3, 2, 1, False), (32, 64, 5, 2, 32, True), (8, 16, 8, 4, 1, True)],
)
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
    else:
        with torch.autocast('cpu', torch.bfloat16):
            found = step(own.float(), x.float())
        assert found[0].dtype == torch.bfloat16
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=0.02 * b.abs().max().item())


@pytest.mark.parametrize(
    ('dtype', 'mode'),
    [
        (torch.bfloat16, 'weights'),
        (torch.bfloat16, 'autocast'),
        (torch.bfloat16, 'float32 weights'),
        (torch.float16, 'weights'),
    ],
)
@pytest.mark.parametrize('cls', [CPULayerNorm, CPULayerNorm2d])
def test_gradients_of_layer_norms_are_summed_in_float32(cls, dtype, mode):
    torch.manual_seed(0)
    norm = cls(8)
    nn.init.normal_(norm.weight)
    shape = (2, 8, 70, 70) if cls is CPULayerNorm2d else (2, 4900, 8)
    x, gradient = torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)
    own = copy.deepcopy(norm).to(dtype) if mode == 'weights' else copy.deepcopy(norm)
    exact = copy.deepcopy(own).double()
    exact(x.double()).backward(gradient.double())
    with torch.autocast('cpu', torch.bfloat16, enabled=mode == 'autocast'):
        out = own(x)
    assert out.dtype == dtype
    out.backward(gradient)
    for found, expected in zip(own.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(
            found.grad.double(), expected.grad, rtol=0.01, atol=0.01 * expected.grad.std().item()
        )


def test_every_layer_is_replaced(family):
    kinds = [type(module) for module in family.build().modules()]
    assert CPUConv2d in kinds
    assert CPULayerNorm in kinds
    assert not set(kinds) & set(RIGHT)


def test_other_convolutions_stay():
    other = nn.Sequential(nn.Conv2d(2, 3, 3, padding='same', dilation=2), nn.ConvTranspose2d(3, 2, 2, 2))
    x = torch.randn(1, 2, 5, 7)
    expected = other(x)
    use_in(other)
    assert type(other[1]) is nn.ConvTranspose2d
    assert torch.equal(other(x), expected)
    assert other[0].bfloat16()(x.bfloat16()).shape == (1, 3, 5, 7)


def test_exported_program_has_pytorchs_convolution():
    own, _ = make(WIDEST, torch.float32)
    program = torch.export.export(own, (torch.randn(2, 5, 9, 14),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith('aten.conv') for target in targets)
    assert not any('mmvit' in target for target in targets)
