"""The backbones."""

from mmvit.models.mpvit import MPViT

__all__ = ['MPViT']
