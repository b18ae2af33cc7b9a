"""What the tests know of each family of backbones. A new family needs an entry in EXPECTED, and its data files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reference_inputs
import torch

from mmvit.models import families
from mmvit.models.base import Backbone

DATA = Path(__file__).parent / 'data'


@dataclass(frozen=True)
class Family:
    cls: type[Backbone]
    small: dict[str, Any]  # a quick arch
    parameters: dict[str, int]  # of each arch, with the 1000-class head
    prefixes: tuple[str, ...]  # of the keys in official files of detectors and segmenters
    has_batch_norm: bool = True

    @property
    def key(self) -> str:
        """Name in the data files and layouts."""
        return self.cls.__name__.lower()

    @property
    def name(self) -> str:
        """Name in the configs and timm models."""
        return self.cls.family_name

    @property
    def head_norm(self) -> bool:
        """Whether there is a layer norm before the classifier."""
        return self.cls.classifier_norm_eps is not None

    @property
    def classification(self) -> dict[str, Any]:
        """Options of the classification network."""
        return self.cls.classifier_options

    @property
    def digits_config(self) -> str:
        return f'configs/maskrcnn_{self.name}_t_digits.py'

    @property
    def smallest(self) -> str:
        return next(iter(self.parameters))

    @property
    def shallow(self) -> dict[str, Any]:
        """The quick arch with one block a stage (and path)."""
        depths = 'num_layers' if 'num_layers' in self.small else 'depths'
        return {**self.small, depths: (1, 1, 1, 1)}

    def build(self, **kwargs: Any) -> Backbone:
        """The quick arch with fixed random weights, and batch statistics that are not trivial."""
        torch.manual_seed(0)
        model = self.cls(**{'arch': self.small, **kwargs})
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(0, 0.1)
        return model

    def layouts(self) -> dict[str, dict[str, list[int]]]:
        """{arch, or arch+option: {key: shape}} of the official files."""
        layouts = json.loads((DATA / f'layouts_{self.key}.json').read_text())
        return {name.removeprefix(f'{self.key}_'): layout for name, layout in layouts.items()}

    def goldens(self) -> list[dict[str, Any]]:
        return json.loads((DATA / f'goldens_{self.key}.json').read_text())

    def official(self, layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
        """An official checkpoint of this layout, with formula-made weights."""
        arrays = reference_inputs.official_state_dict(self.layouts()[layout], seed)
        return {k: torch.from_numpy(v) for k, v in arrays.items()}


EXPECTED: dict[str, dict[str, Any]] = {
    'mpvit': dict(
        small=dict(embed_dims=(16, 24, 32, 40), num_layers=(1, 2, 1, 1), num_paths=(2, 3, 1, 2), mlp_ratio=2),
        parameters=dict(tiny=5_843_736, xsmall=10_573_448, small=22_892_400, base=74_845_976),
        prefixes=('backbone.', 'backbone.bottom_up.backbone.'),
    ),
    'pyramid_tnt': dict(
        small=dict(
            inner_dims=(4, 8, 8, 8),
            outer_dims=(32, 48, 64, 64),
            inner_heads=(1, 2, 2, 2),
            outer_heads=(2, 2, 4, 4),
            depths=(2, 7, 1, 1),
            img_size=64,
        ),
        parameters=dict(tiny=10_578_529, small=31_953_200, medium=84_943_572, base=156_990_072),
        prefixes=('backbone.',),
    ),
    'regionvit': dict(
        small=dict(
            embed_dims=(16, 32, 64, 128),
            num_heads=(2, 2, 4, 4),
            depths=(1, 2, 2, 1),
            window=4,
            three_convs=True,
            peg=True,
        ),
        parameters=dict(
            tiny=13_842_676,
            small=30_586_618,
            medium=41_215_906,
            base=72_747_232,
            tiny_w14=14_354_740,
            small_w14=31_354_714,
            small_w14_peg=31_367_674,
            base_w14=73_825_120,
            base_w14_peg=73_842_400,
        ),
        prefixes=('backbone.', 'backbone.bottom_up.model.'),
        has_batch_norm=False,
    ),
}
FAMILIES = [Family(cls, **EXPECTED[cls.family_name]) for cls in families.FAMILIES]


def with_quick_arch(backbone: Any, shallow: bool = False) -> list[int]:
    """Give a backbone's config its family's quick arch, shallow or not; the channels of its maps."""
    family = next(family for family in FAMILIES if backbone.type == f'mmvit.{family.cls.__name__}')
    backbone.arch = family.shallow if shallow else family.small
    return list(family.cls(family.small, out_indices=backbone.get('out_indices', (0, 1, 2, 3))).out_channels)
