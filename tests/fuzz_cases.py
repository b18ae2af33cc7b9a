"""Random networks and images for the tests that Hypothesis feeds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from families import FAMILIES, Family
from hypothesis import strategies as st
from torch import Tensor

from mmvit.models.base import Backbone


@contextmanager
def autocast_without_gradients() -> Iterator[None]:
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        yield


@dataclass(frozen=True)
class Case:
    """A network, a batch of images, and how it is called.

    Args:
        family: Name of the family.
        options: Arguments of the network.
        batch: Number of images.
        size: Their height and width, in pixels.
        dtype: Of weights and images.
        layout: Key of ``LAYOUTS``: how the images lie in memory.
        mode: Key of ``MODES``: how the network is called.
    """

    family: str
    options: dict[str, Any]
    batch: int
    size: tuple[int, int]
    dtype: torch.dtype
    layout: str
    mode: str

    @property
    def precision(self) -> torch.dtype:
        """What is computed in."""
        return torch.bfloat16 if 'autocast' in self.mode else self.dtype

    def entered(self) -> AbstractContextManager:
        """The context of the call."""
        return MODES[self.mode]()

    def model(self, **options: Any) -> Backbone:
        """The network in eval mode, with these options in place of its own; no weight of it is 0 or 1 by design."""
        model = BY_NAME[self.family].build(**{**self.options, **options}).eval()
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    noise = torch.empty(value.shape).uniform_(0, 0.1, generator=draw)
                    value.add_(noise if name.endswith('running_var') else noise - 0.05)
        return model.to(self.dtype)

    def images(self, size: tuple[int, int] | None = None) -> Tensor:
        """The images, in this size if one is given: (B, C, H, W)."""
        shape = (self.batch, self.options['in_channels'], *(size or self.size))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(self.dtype)
        return LAYOUTS[self.layout](x)


BY_NAME = {family.name: family for family in FAMILIES}
MODES: dict[str, Callable[[], AbstractContextManager]] = {
    'gradients': nullcontext,
    'no_grad': torch.no_grad,
    'inference_mode': torch.inference_mode,
    'autocast': partial(torch.autocast, 'cpu', torch.bfloat16),
    'autocast, no_grad': autocast_without_gradients,
}
LAYOUTS = {
    'contiguous': lambda x: x,
    'channels last': lambda x: x.to(memory_format=torch.channels_last),
    'columns first': lambda x: x.mT.contiguous().mT,
    'every second column of a wider batch': lambda x: x.repeat_interleave(2, dim=3)[:, :, :, ::2],
    'a crop': lambda x: torch.nn.functional.pad(x, (3, 2, 1, 1))[:, :, 1:-1, 3:-2],
}


def half_precisions() -> list[torch.dtype]:
    """The 16-bit types that this PyTorch can compute networks in on a CPU."""
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 3, 3).half())
    except RuntimeError:
        return [torch.bfloat16]
    return [torch.bfloat16, torch.float16]


DTYPES = [torch.float32, torch.float64, *half_precisions()]


def quadruples(*values: int) -> st.SearchStrategy:
    """One of these values for each stage."""
    return st.tuples(*[st.sampled_from(values)] * 4)


ARCHS = {
    'mpvit': st.fixed_dictionaries(
        dict(
            embed_dims=quadruples(8, 16, 24),
            num_layers=quadruples(1, 1, 2),
            num_paths=quadruples(1, 2, 3),
            mlp_ratio=st.sampled_from((0.5, 1, 2.5)),
        )
    ),
    'pyramid_tnt': st.fixed_dictionaries(
        dict(
            inner_dims=quadruples(4, 8),
            outer_dims=quadruples(8, 16, 24),
            inner_heads=quadruples(1, 2, 4),
            outer_heads=quadruples(1, 2, 4),
            depths=quadruples(1, 1, 1, 1, 2, 7),  # from 7 on, two blocks have words
            img_size=st.integers(32, 96),
        )
    ),
    'regionvit': st.fixed_dictionaries(
        dict(
            embed_dims=st.sampled_from((8, 12, 16)).map(lambda width: tuple(width * n for n in (1, 2, 4, 8))),
            num_heads=quadruples(1, 2, 4),
            depths=quadruples(1, 1, 2),
            window=st.integers(2, 7),
            three_convs=st.booleans(),
            peg=st.booleans(),
        )
    ),
}
BATCHES = st.integers(0, 3)
SIDES = st.integers(32, 96) | st.integers(32, 160) | st.integers(32, 512)
OPTIONS = dict(
    out_indices=st.sets(st.integers(0, 3), min_size=1).map(lambda indices: tuple(sorted(indices))),
    frozen_stages=st.integers(-1, 4),
    drop_path_rate=st.sampled_from((0.0, 0.5)),
    norm_cfg=st.sampled_from((None, dict(type='BN', eps=1e-3), dict(type='SyncBN'), dict(type='GN', num_groups=1))),
    norm_eval=st.booleans(),
    with_cp=st.booleans(),
    in_channels=st.integers(1, 5),
    img_size=st.none() | st.integers(32, 96) | st.tuples(st.integers(32, 96), st.integers(32, 96)),
    upsample=st.booleans(),
    det_norm=st.booleans(),
    window_mask=st.sampled_from(('official', 'exact')),
)


@st.composite
def cases(
    draw: st.DrawFn,
    modes: Sequence[str] = tuple(MODES),
    dtypes: Sequence[torch.dtype] = DTYPES,
    batches: st.SearchStrategy[int] = BATCHES,
    sides: st.SearchStrategy[int] = SIDES,
    families: Sequence[Family] = tuple(FAMILIES),
    **fixed: Any,
) -> Case:
    """Any network of these families with any of its options, and any images for it.

    Args:
        draw: Of Hypothesis.
        modes: To choose from.
        dtypes: To choose from; under autocast it is float32.
        batches: Numbers of images.
        sides: Of the images, in pixels.
        families: To choose from.
        fixed: Options that all networks have which take them.
    """
    family = draw(st.sampled_from(families))
    names = [name for name in inspect.signature(family.cls).parameters if name not in ('arch', 'init_cfg')]
    options = {name: draw(OPTIONS[name]) for name in names}
    options |= {name: value for name, value in fixed.items() if name in options}
    mode = draw(st.sampled_from(modes))
    return Case(
        family=family.name,
        options=dict(arch=draw(ARCHS[family.name]), **options),
        batch=draw(batches),
        size=(draw(sides), draw(sides)),
        dtype=torch.float32 if 'autocast' in mode else draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        mode=mode,
    )
