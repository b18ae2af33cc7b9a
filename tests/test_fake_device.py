"""What a GPU does with the networks, found out without one.

A fake tensor has a shape, a type and a device, but no values and no memory: a forward pass on fake CUDA tensors needs
no GPU. PyTorch refuses operators between devices and reads of a value there. A backward pass asks the driver, so it
runs on the device ``meta``.
"""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from versions import needs_torch

pytestmark = pytest.mark.slow
aten = torch.ops.aten
ODD, EVEN = (65, 97), (64, 128)  # the second needs no padding
CASES = [(torch.float32, ODD), (torch.float32, EVEN), (torch.float16, ODD), (torch.bfloat16, EVEN)]
OPTIONS = dict(pyramid_tnt=dict(upsample=True), regionvit=dict(window_mask='exact'))
SUMS = ('softmax', 'layer_norm', 'group_norm', 'sum.', 'mean', 'var', 'norm.', 'cumsum', 'logsumexp', 'avg_pool')
EXACT = {torch.float32, torch.float64, torch.int64, torch.bool}
needs_autocast = needs_torch('2.4', 'mixed precision of a device that is not there')


class OnOneDevice(TorchDispatchMode):
    """Refuses operators with a tensor of another device, and those that wait for values of the device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs, out))[0] if isinstance(value, torch.Tensor)]
        strangers = {str(tensor.device) for tensor in tensors if tensor.device.type != self.device}
        assert not strangers, f'{func} has a tensor on {strangers}'
        assert not waits(func, args), f'{func} waits for the device'
        return out


def waits(func, args):
    """Whether an operator returns a value to Python, or has a shape that depends on values."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class Record(TorchDispatchMode):
    """Lists the operators with the types of their tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        self.calls.append((func.__name__, {tensor.dtype for tensor in inputs}))
        return func(*args, **kwargs or {})


@contextmanager
def autocast(dtype):
    """Mixed precision on CUDA; ``torch.autocast`` turns itself off where there is no GPU."""
    before = torch.get_autocast_dtype('cuda')
    torch.set_autocast_dtype('cuda', dtype)
    torch.set_autocast_enabled('cuda', True)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.set_autocast_dtype('cuda', before)
        torch.clear_autocast_cache()


def without_gpu():
    """A context in which tensors on CUDA are made without a GPU. Models are built outside it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def on_cuda(model, dtype=torch.float32):
    """The model, which was built on ``meta``, with tensors on a fake GPU. ``model.to`` would ask the driver."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(moved(value, dtype)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, moved(value, dtype))
    return model


def moved(value, dtype):
    return torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device='cuda')


def build(family, **options):
    with torch.device('meta'):
        return family.build(**OPTIONS.get(family.name, {}), **options)


@pytest.mark.parametrize('mode', ['train', 'eval', 'no_grad'])
@pytest.mark.parametrize(('dtype', 'size'), CASES, ids=str)
def test_backbone_stays_on_its_gpu(family, dtype, size, mode):
    model = build(family, drop_path_rate=0.5, with_cp=True).train(mode == 'train')
    with without_gpu():
        model = on_cuda(model, dtype)
        x = torch.empty(2, 3, *size, dtype=dtype, device='cuda')
        with torch.set_grad_enabled(mode != 'no_grad'), OnOneDevice('cuda'):
            maps = model(x)
    assert {(out.device.type, out.dtype) for out in maps} == {('cuda', dtype)}


@needs_autocast
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_on_a_gpu(family, dtype, mode):
    """Products are in 16 bits, and what could overflow or lose many small terms there is not."""
    model = build(family, drop_path_rate=0.5).train(mode == 'train')
    with without_gpu():
        model = on_cuda(model)
        x = torch.empty(2, 3, *ODD, device='cuda')
        with autocast(dtype), Record() as record, OnOneDevice('cuda'):
            model(x)
        with Record() as without_autocast:
            model(x)
    products = [types for name, types in record.calls if name.startswith(('addmm', 'convolution'))]
    assert products
    assert all(types == {dtype} for types in products)
    sums = [
        (name, types) for name, types in record.calls if any(word in name for word in SUMS) and 'batch_norm' not in name
    ]
    assert sums
    assert [call for call in sums if not call[1] <= EXACT] == []
    batch_norms = [types for name, types in record.calls if 'batch_norm' in name]
    assert bool(batch_norms) is family.has_batch_norm
    assert all(torch.float32 in types for types in batch_norms)  # weights and statistics
    assert all(dtype not in types for _, types in without_autocast.calls)  # what autocast made is not kept


@pytest.mark.parametrize(
    'wrong',
    [
        lambda x: x + torch.ones(()),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.zeros(3),
        lambda x: torch.ones(3).to('cuda'),
        lambda x: x.cpu(),
        lambda x: x[0, 0].item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(x.sum() > 0),
        lambda x: torch.equal(x, x),
    ],
)
def test_one_device_is_enforced(wrong):
    with without_gpu():
        x = torch.empty(4, 4, device='cuda')
        with pytest.raises(Exception, match=r'has a tensor on|waits for the device|^aten\.'), OnOneDevice('cuda'):
            wrong(x)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize(('dtype', 'size'), CASES, ids=str)
def test_step_stays_on_its_device(family, dtype, size, with_cp):
    model = build(family, drop_path_rate=0.5, with_cp=with_cp).to(dtype).train()
    x = torch.empty(2, 3, *size, dtype=dtype, device='meta', requires_grad=True)
    with OnOneDevice('meta'):
        sum(out.sum() for out in model(x)).backward()
    assert all(value.grad.dtype == dtype for value in (x, *model.parameters()))
