"""What the parametrised tests know of each backbone family: a new one adds a line to FAMILIES and its data files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reference_inputs
import torch

from mmvit.models import MPViT
from mmvit.models.base import Backbone

DATA = Path(__file__).parent / 'data'


@dataclass(frozen=True)
class Family:
    cls: type[Backbone]
    key: str  # of the data files and of the layouts' names
    small: dict[str, Any]  # a quick arch
    parameters: dict[str, int]  # of each arch, with the 1000-class head

    def build(self, **kwargs: Any) -> Backbone:
        """The quick arch with fixed random weights and batch statistics that are not trivial."""
        torch.manual_seed(0)
        model = self.cls(**{'arch': self.small, **kwargs})
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(0, 0.1)
        return model

    def layouts(self) -> dict[str, dict[str, list[int]]]:
        return json.loads((DATA / f'layouts_{self.key}.json').read_text())

    def goldens(self) -> list[dict[str, Any]]:
        return json.loads((DATA / f'goldens_{self.key}.json').read_text())

    def official(self, arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
        """A released checkpoint of this arch, with formula-made weights."""
        arrays = reference_inputs.official_state_dict(self.layouts()[f'{self.key}_{arch}'], seed)
        return {k: torch.from_numpy(v) for k, v in arrays.items()}


FAMILIES = [
    Family(
        MPViT,
        'mpvit',
        small=dict(embed_dims=(16, 24, 32, 40), num_layers=(1, 2, 1, 1), num_paths=(2, 3, 1, 2), mlp_ratio=2),
        parameters=dict(tiny=5_843_736, xsmall=10_573_448, small=22_892_400, base=74_845_976),
    ),
]
