"""The backbones."""

from mmvit.models.mpvit import MPViT
from mmvit.models.pyramid_tnt import PyramidTNT
from mmvit.models.regionvit import RegionViT

__all__ = ['MPViT', 'PyramidTNT', 'RegionViT']
