"""In float16 every value is finite where it fits, and near what float64 gives. Hypothesis makes up the networks.

``MMVIT_FUZZ_CASES=1000`` takes 1000 cases of each family. A CPU stands for a GPU here: the kernels of both add up in
float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from computed import as_written
from families import FAMILIES, Family
from fuzz_cases import DTYPES, Case, cases
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmvit.models.base import Backbone

pytestmark = pytest.mark.skipif(torch.float16 not in DTYPES, reason='this PyTorch has no float16 convolutions on CPUs')

# Of the images and of all weights but those of norms. Of 16, many networks have values that do not fit float16.
GAINS = (1, 4, 16)
# A map's error, in terms of its norm and of the gain. One position may be far off: a norm over few channels divides by
# what is nearly 0. At the largest gain, rounding is magnified without end.
NEAR = 0.02
FITS = torch.finfo(torch.float16).max / 2
MODES: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager]]] = {
    'weights': (torch.float16, nullcontext),
    'autocast': (torch.float32, partial(torch.autocast, 'cpu', torch.float16)),
}


class Largest(TorchDispatchMode):
    """The largest value that any operator returns; those inside of attention are no operators of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        values = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
        if 'empty' not in func.__name__:
            self.value = max(self.value, *(x.abs().max().item() for x in values), 0.0)
        return out


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.key)
@given(data=st.data(), gain=st.sampled_from(GAINS), mode=st.sampled_from(sorted(MODES)), plain=st.booleans())
@torch.no_grad()
def test_float16_is_finite_and_near(family: Family, data: st.DataObject, gain: int, mode: str, plain: bool):
    case = data.draw(cases(('no_grad',), [torch.float16], batches=st.integers(1, 2), families=[family]))
    model, x = amplified(case, gain), gain * case.images()
    expected = fitting_maps(copy.deepcopy(model).double(), x.double())
    dtype, entered = MODES[mode]
    with pytest.MonkeyPatch.context() as patch, entered():
        if plain:
            as_written(patch)
        maps = model.to(dtype)(x.to(dtype))
    for found, right in zip(maps, expected, strict=True):
        assert found.isfinite().all()
        if gain < max(GAINS):
            assert (found.double() - right).norm() < NEAR * gain * right.norm()


def amplified(case: Case, gain: int) -> Backbone:
    """The network of a case with larger weights."""
    model = case.model()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(gain)
    return model


def fitting_maps(exact: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The maps of the network as it is written; the case is dropped if a value in it does not fit float16."""
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        as_written(patch)
        maps = exact(x)
    assume(largest.value < FITS)
    return maps
