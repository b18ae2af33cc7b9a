"""The families of backbones. A new family is one file in this folder, and one line here that imports it."""
# ruff: noqa: F401

from mmvit.models.base import Backbone
from mmvit.models.mpvit import MPViT
from mmvit.models.pyramid_tnt import PyramidTNT
from mmvit.models.regionvit import RegionViT
from mmvit.registry import MODELS

FAMILIES: tuple[type[Backbone], ...] = tuple(MODELS.module_dict.values())  # the classes that these files register
