"""Properties that every network has with every image. Hypothesis makes up both: see ``fuzz_cases``."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil

import pytest
import torch
from computed import as_written
from fuzz_cases import DTYPES, Case, cases
from hypothesis import given
from hypothesis import strategies as st
from plain import Plain
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvit import cpu
from mmvit.cpu import chunks
from mmvit.models.base import Backbone

# By how much two ways of computing one map may differ, in terms of its largest value.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
WHOLE = [torch.float32, torch.float64]
ROUNDED = [dtype for dtype in DTYPES if dtype != torch.float64]
SOME = st.integers(1, 3)
TRAINED = dict(batches=st.integers(2, 3), sides=st.integers(32, 96))  # a batch norm needs two values of each channel


UNRECORDED = ('no_grad', 'inference_mode', 'autocast, no_grad')  # these come to the code for CPUs
PLAIN_MODES = ('gradients', 'no_grad', 'inference_mode')
STEPS = ('gradients', 'autocast')


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Compare maps, up to the rounding of a type of number."""
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=ROUNDING[dtype] * scale)


def assert_equal(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def step(case: Case, model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The maps of a batch, after the gradients of a number to which all of them contribute unevenly."""
    with case.entered():
        maps = model(x)
    total = sum((out * torch.arange(out.numel()).view_as(out).sin()).sum() for out in maps)
    total.backward()
    return maps


# What a network promises.


@given(case=cases())
def test_maps_have_the_promised_shapes(case: Case):
    model = case.model()
    with case.entered():
        maps = model(case.images())
    assert [(len(out), out.shape[1]) for out in maps] == [(case.batch, width) for width in model.out_channels]
    assert [tuple(out.shape[2:]) for out in maps] == [promised_size(case, stride) for stride in model.out_strides]
    assert all(out.is_contiguous() for out in maps)
    if 'autocast' not in case.mode:
        assert {out.dtype for out in maps} == {case.dtype}


def promised_size(case: Case, stride: int) -> tuple[int, ...]:
    """Height and width of the map of a stride."""
    if case.family == 'regionvit' and not case.options['arch']['three_convs']:
        return tuple(ceil(((side - 2) // 4 + 1) / (stride // 4)) for side in case.size)
    return tuple(ceil(side / stride) for side in case.size)


@given(case=cases(sides=st.integers(1, 64)), small=st.integers(1, 31), axis=st.integers(0, 1))
def test_small_images_are_refused(case: Case, small: int, axis: int):
    size = (small, case.size[1]) if axis == 0 else (case.size[0], small)
    with pytest.raises(ValueError, match=rf'takes images of 32 pixels or more a side, not \({size[0]}, {size[1]}\)'):
        case.model()(case.images(size))


@given(case=cases())
def test_every_value_is_finite(case: Case):
    with case.entered():
        assert all(out.isfinite().all() for out in case.model()(case.images()))


@given(case=cases(STEPS, **TRAINED))
def test_every_value_is_finite_in_training(case: Case):
    assert all(out.isfinite().all() for out in step(case, case.model().train(), case.images().requires_grad_()))


@given(case=cases())
def test_images_are_not_changed(case: Case):
    model, x = case.model(), case.images()
    before, memory = x.clone(), whole_memory(x).clone()
    with case.entered():
        model(x)
    assert torch.equal(x, before)
    assert torch.equal(whole_memory(x), memory)  # nor what lies between them


def whole_memory(x: Tensor) -> Tensor:
    """The bytes of the memory that a tensor is in."""
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


@given(case=cases(STEPS, **TRAINED))
def test_images_are_not_changed_in_training(case: Case):
    x = case.images()
    before = x.clone()
    step(case, case.model().train(), x.requires_grad_())
    assert torch.equal(x, before)


# What must not matter.


def copied(model: Backbone, case: Case) -> Backbone:
    return copy.deepcopy(model)


def pickled(model: Backbone, case: Case) -> Backbone:
    return pickle.loads(pickle.dumps(model))


def saved_and_loaded(model: Backbone, case: Case) -> Backbone:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = type(model)(**case.options).to(case.dtype).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@given(case=cases(), duplicate=st.sampled_from([copied, pickled, saved_and_loaded]), is_used=st.booleans())
def test_copies_compute_the_same(case: Case, duplicate: Callable, is_used: bool):
    model, x = case.model(), case.images()
    with case.entered():
        if is_used:
            model(x)
        assert_equal(duplicate(model, case)(x), model(x))


@given(case=cases())
def test_memory_format_does_not_matter(case: Case):
    model, x = case.model(), case.images()
    with case.entered():  # the memory of a single channel is of two formats, with two programs in PyTorch
        assert_close(model(x), model(x.clone(memory_format=torch.contiguous_format)), case.precision)


@given(case=cases(batches=st.integers(2, 3)))
def test_images_of_a_batch_do_not_mix(case: Case):
    model, x = case.model(), case.images()
    with case.entered():
        together, alone = model(x), [model(image) for image in x.split(1)]
    assert_close(together, [torch.cat(maps) for maps in zip(*alone, strict=True)], case.precision)


@given(case=cases(UNRECORDED))
def test_gradients_do_not_change_maps(case: Case):
    model, x = case.model(), case.images()
    with case.entered():
        maps = model(x)
    with replace(case, mode='autocast' if 'autocast' in case.mode else 'gradients').entered():
        assert_close(maps, model(x), case.precision)


@given(case=cases(), sizes=st.lists(st.tuples(st.integers(32, 200), st.integers(32, 200)), min_size=1, max_size=3))
def test_sizes_before_do_not_matter(case: Case, sizes: list[tuple[int, int]]):
    model = case.model()
    with case.entered():
        for size in [case.size, *sizes]:
            model(case.images(size))
        assert_equal(model(case.images()), case.model()(case.images()))


@given(case=cases(sides=st.integers(32, 128)), widths=st.lists(st.integers(32, 128), min_size=3, max_size=3))
def test_other_threads_do_not_matter(case: Case, widths: list[int]):
    model = case.model()
    inputs = [case.images((case.size[0], width)) for width in [case.size[1], *widths]]

    def maps(x: Tensor) -> tuple[Tensor, ...]:
        with case.entered():
            return model(x)

    expected = [maps(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, reference in zip(pool.map(maps, inputs * 3), expected * 3, strict=True):
            assert_equal(found, reference)


@given(case=cases())
def test_unused_stages_do_not_matter(case: Case):
    model, full = case.model(), case.model(out_indices=(0, 1, 2, 3))
    full.load_state_dict(full.state_dict() | model.state_dict())
    x = case.images()
    with case.entered():
        everything = full(x)
        assert_equal(model(x), [everything[i] for i in model.out_indices])


@given(case=cases(('gradients',), dtypes=WHOLE, **TRAINED))
def test_recomputing_does_not_matter(case: Case):
    results = []
    for with_cp in (False, True):
        model, x = case.model(with_cp=with_cp).train(), case.images().requires_grad_()
        torch.manual_seed(0)
        maps = step(case, model, x)
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([*maps, x.grad, *trained, *model.buffers()])
    assert_close(results[1], results[0], case.dtype)


@given(case=cases())
def test_merged_norms_do_not_matter(case: Case):
    model, x = case.model(), case.images()
    with case.entered():
        assert_close(model.fuse()(x), model(x), case.precision)


# What is right.


@given(case=cases(PLAIN_MODES, dtypes=WHOLE, batches=SOME), chunk=st.sampled_from([1000, chunks.CHUNK]))
def test_maps_equal_the_plain_networks(case: Case, chunk: int):
    model, x = case.model(), case.images()
    with pytest.MonkeyPatch.context() as patch, case.entered():
        patch.setattr(chunks, 'CHUNK', chunk)
        patch.setattr(cpu.regionvit, 'CHUNK', chunk)
        maps = model(x)
    with torch.no_grad():
        assert_close(maps, Plain(model)(x), case.dtype)


@given(case=cases(('gradients',), dtypes=[torch.float64], batches=SOME, sides=st.integers(32, 96), frozen_stages=-1))
def test_gradients_equal_the_plain_networks(case: Case):
    model = case.model()
    plain = Plain(copy.deepcopy(model))
    results = []
    for network in (model, plain):
        x = case.images().requires_grad_()
        step(case, network, x)
        results.append([x.grad, *(p.grad for p in network.parameters())])
    largest = max((grad.abs().max().item() for grad in results[1] if grad.numel()), default=0)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * largest)


@given(case=cases(UNRECORDED))
def test_maps_equal_the_networks_as_written(case: Case):
    model, x = case.model(), case.images()
    with case.entered():
        maps = model(x)
        with pytest.MonkeyPatch.context() as patch:
            as_written(patch)
            expected = model(x)
    assert_close(maps, expected, case.precision)


@given(case=cases(dtypes=ROUNDED))
def test_maps_are_near_those_of_float64(case: Case):
    model, x = case.model(), case.images()
    with case.entered():
        maps = model(x)
    with torch.no_grad():
        expected = model.double()(x.double())
    assert_close(maps, expected, case.precision)


# Training.


@given(case=cases(STEPS, **TRAINED))
def test_what_is_trained_gets_a_gradient(case: Case):
    model, x = case.model().train(), case.images().requires_grad_()
    step(case, model, x)
    frozen = frozen_names(model)
    for name, parameter in [('the images', x), *model.named_parameters()]:
        assert (parameter.grad is None) is name.startswith(frozen), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def frozen_names(model: Backbone) -> tuple[str, ...]:
    """Beginnings of the names of what is frozen."""
    return ('stem.', *(f'stages.{i}.' for i in range(4)))[: model.frozen_stages + 1]


@given(case=cases(STEPS, **TRAINED))
def test_what_is_frozen_stays(case: Case):
    model = case.model().train()
    before = copy.deepcopy(model.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    step(case, model, case.images().requires_grad_())
    if trained:
        torch.optim.SGD(trained, lr=0.1, weight_decay=0.1).step()
    for name, value in model.state_dict().items():
        if name.startswith(frozen_names(model)):
            assert torch.equal(value, before[name]), name


@given(case=cases(STEPS, norm_eval=True, **TRAINED))
def test_statistics_stay_with_norm_eval(case: Case):
    model = case.model().train()
    before = copy.deepcopy(model.state_dict())
    with case.entered():
        model(case.images())
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, value in model.state_dict().items():
        if name.rpartition('.')[0] in norms:
            assert torch.equal(value, before[name]), name
