"""The networks compute what the independent ones of ``tests/plain`` do, as they are written and on CPUs."""

import copy
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from plain import Plain

from mmvit import cpu
from mmvit.cpu import chunks

SIZES = [(64, 64), (65, 131)]


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_maps_close(outs, expected):
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=0, atol=2e-5 * reference.std().item())


@pytest.mark.parametrize('chunk', [2000, chunks.CHUNK])
@pytest.mark.parametrize('size', SIZES)
def test_inference_equals_the_plain_network(family, size, chunk, computed, monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK', chunk)
    monkeypatch.setattr(cpu.regionvit, 'CHUNK', chunk)
    model = family.build().eval()
    x = images(2, 3, *size)
    with torch.no_grad():
        assert_maps_close(model(x), Plain(model)(x))


@pytest.mark.parametrize('size', SIZES)
def test_gradients_equal_the_plain_network(family, size, computed):
    model = family.build().eval()  # batch statistics of so few pixels would magnify every rounding
    x = images(2, 3, *size)
    plain = Plain(copy.deepcopy(model))
    results = []
    for network, owner in ((model, model), (plain, plain.model)):
        outs = network(x)
        sum(out.sin().sum() for out in outs).backward()
        results.append((outs, dict(owner.named_parameters())))
    assert_maps_close(results[0][0], results[1][0])
    for name, parameter in results[0][1].items():
        expected = results[1][1][name].grad
        tolerance = 1e-4 * expected.abs().max().item() + 1e-4
        torch.testing.assert_close(
            parameter.grad, expected, rtol=0, atol=tolerance, msg=lambda m, name=name: f'{name}: {m}'
        )


def test_images_are_not_written_to(family):
    x = images(1, 3, 64, 64).to(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        family.build().eval()(x)
    assert torch.equal(x, before)


@torch.no_grad()
def test_forwards_leave_no_trace(family):
    model = family.build().eval()
    state = copy.deepcopy(model.state_dict())
    first, other = images(1, 3, 65, 97), images(1, 3, 64, 100)
    outs = model(first)
    model(other)
    for a, b in zip(model(first), outs, strict=True):
        assert torch.equal(a, b)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def changed(model):
    """Other weights for a model, in every tensor."""
    return {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def load(model):
    model.load_state_dict(changed(model))


def assign(model):
    model.load_state_dict(changed(model), assign=True)


def step(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)


def swap_data(model):
    """As mmengine's averaging of weights does: unseen by the parameter, but followed by eval()."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data + 0.1)
    model.eval()


@pytest.mark.parametrize('change', [load, assign, step, swap_data])
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_changed_weights_are_seen(family, change, mode):
    model = family.build().eval()
    x = images(1, 3, 65, 97)
    with mode():
        model(x)
    change(model)
    fresh = family.cls(family.small).eval()
    fresh.load_state_dict(model.state_dict())
    with mode():
        for a, b in zip(model(x), fresh(x), strict=True):
            assert torch.equal(a, b)


def test_changed_dtype_is_seen(family):
    model = family.build().eval()
    x = images(1, 3, 65, 97)
    with torch.inference_mode():
        model(x)
    model.double()
    with torch.inference_mode():
        double = model(x.double())
    assert all(out.dtype == torch.float64 for out in double)
    sum(out.sum() for out in model(x.double())).backward()  # what inference kept is not what training uses
    assert all(p.grad is not None for p in model.parameters())


CALLS = int(os.environ.get('MMVIT_THREADED_CALLS', '200'))  # of each family; 5000 take minutes


def test_one_model_called_by_four_threads(family):
    model = family.build().eval()
    choose = random.Random(0)
    sizes = [(choose.randint(32, 100), choose.randint(32, 100)) for _ in range(8)]
    inputs = {size: images(1, 3, *size) for size in sizes}
    with torch.no_grad():
        expected = {size: model(x) for size, x in inputs.items()}

    def differs(size):
        with torch.no_grad():
            return not all(torch.equal(a, b) for a, b in zip(model(inputs[size]), expected[size], strict=True))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places within a few lines
    try:
        with ThreadPoolExecutor(4) as pool:
            wrong = sum(pool.map(differs, choose.choices(sizes, k=CALLS)))
    finally:
        sys.setswitchinterval(interval)
    assert wrong == 0, f'{wrong} of {CALLS} calls'


@torch.no_grad()
def test_hooks_see_what_the_network_computes(family, monkeypatch):
    """What enters or leaves a stem, a stage, a path or a block is not changed afterwards, and is the network's."""
    model = family.build().eval()
    x = images(2, 3, 65, 131)
    seen = capture(model, x)
    assert all(torch.equal(held, copied) for _, held, copied in seen)
    with torch.enable_grad():
        assert all(torch.equal(held, copied) for _, held, copied in capture(model, x))
    monkeypatch.setattr(cpu, 'takes', lambda module, x: False)
    expected = capture(model, x)
    assert [name for name, *_ in seen] == [name for name, *_ in expected]
    for (name, held, _), (_, reference, _) in zip(seen, expected, strict=True):
        tolerance = 1e-4 * reference.float().std().item()
        torch.testing.assert_close(held, reference, rtol=0, atol=tolerance, msg=lambda m, name=name: f'{name}: {m}')


def capture(model, x):
    """Name, tensor and copy of what enters and leaves each stem, stage, path and block of a forward pass."""
    seen = []

    def hook(name, module, args, out):
        outs = out if isinstance(out, tuple) else (out,)
        seen.extend((name, value, value.clone()) for value in (*args, *outs) if isinstance(value, torch.Tensor))

    names = ('stem', 'local', 'paths', 'stages', 'blocks')
    parts = [
        (name, module)
        for name, module in model.named_modules()
        if name.split('.')[-1] in ('stem', 'local') or name.rpartition('.')[0].split('.')[-1] in names
    ]
    handles = [module.register_forward_hook(partial(hook, name)) for name, module in parts]
    model(x)
    for handle in handles:
        handle.remove()
    assert len(seen) > 20
    return seen
