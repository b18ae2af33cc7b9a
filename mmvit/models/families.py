"""The families of backbones. A new family is one file in this folder, and one line here that imports it."""
# ruff: noqa: F401

from collections.abc import Mapping

from torch import Tensor

from mmvit.checkpoints.layouts import new_names
from mmvit.checkpoints.loading import nearest_arch
from mmvit.models.base import Backbone, zoo_weights
from mmvit.models.mpvit import MPViT
from mmvit.models.pyramid_tnt import PyramidTNT
from mmvit.models.regionvit import RegionViT
from mmvit.registry import MODELS

FAMILIES: tuple[type[Backbone], ...] = tuple(MODELS.module_dict.values())  # the classes that these files register


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Family and nearest arch of a backbone with the names of mmvit or official ones, or None if there is none.

    Args:
        weights: A state dict of the backbone, or of a network with it.
    """
    for family in FAMILIES:
        layout = family.official_layout
        prefix = layout.find_prefix(weights, layout.landmark, layout.mmvit_landmark)
        if prefix is None:
            continue
        own = layout.backbone_weights(weights)
        names = ''
        if layout.mmvit_landmark not in own:
            own = {name: value for key, value in own.items() for name in new_names(key, layout.renames)[:1]}
            names = ' with its official names, which mmvit.OfficialWeights takes'
        place = f" under '{prefix}'" if prefix else ''
        return f'{family.__name__} {nearest_arch(own, zoo_weights(family))!r}{place}{names}'
    return None
