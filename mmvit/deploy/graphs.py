"""Detectors and segmenters as graphs: modules of tensors only, right at every image size when they are recorded.

The backbones, necks and heads are used as they are. What comes before and after them is written anew, because mmdet's
and mmseg's own code branches on sizes. Detectors are in a module of their own, so that a segmenter needs no mmdet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from timm.layers import to_2tuple
from torch import Tensor, nn

from mmvit.deploy import backbones
from mmvit.models.base import Backbone


class Preprocessing(nn.Module):
    """What a toolbox's data preprocessor does: channel order, normalisation, padding at right and bottom.

    Args:
        preprocessor: mmdet's or mmseg's, of a model whose pipeline loads BGR images, as they do by default.
        divisor: Sizes are padded to multiples of it.
        min_size: Smaller sizes are padded to this one first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any, divisor: int, min_size: int) -> None:
        super().__init__()
        converts = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False))
        self.is_bgr = not converts
        self.divisor = divisor
        self.min_size = min_size
        self.pad_value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
        zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        self.register_buffer('mean', getattr(preprocessor, 'mean', zero).clone())
        self.register_buffer('std', getattr(preprocessor, 'std', one).clone())

    def forward(self, image: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) from 0 to 255 -> what the backbone takes."""
        x = image.flip(1) if self.is_bgr else image
        bottom, right = self.padding(image.shape[2], image.shape[3])
        return F.pad((x - self.mean) / self.std, (0, right, 0, bottom), value=self.pad_value)

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Pixels to add at the bottom and at the right of an image."""
        return self.missing(height), self.missing(width)

    def missing(self, size: int) -> int:
        """Pixels to add to a side of this many."""
        up_to_min = (self.min_size - size) * (size < self.min_size)
        return up_to_min + -(size + up_to_min) % self.divisor


class Features(nn.Module):
    """A bare backbone: images (B, C, H, W) that are normalised already -> its maps."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.backbone = model
        self.outputs = tuple(f'stage{i}' for i in model.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(image)


class Segmenter(nn.Module):
    """mmseg's EncoderDecoder: images (B, 3, H, W) -> classes (B, H, W), on request logits (B, C, H, W) too.

    Args:
        model: The segmenter, in eval mode, for whole images.
        with_logits: Return the logits too.
    """

    def __init__(self, model: Any, with_logits: bool = False) -> None:
        super().__init__()
        self.outputs = ('classes', 'logits') if with_logits else ('classes',)
        padding = model.data_preprocessor.test_cfg or {}
        self.preprocessing = Preprocessing(model.data_preprocessor, padding.get('size_divisor') or 1, min_size(model))
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.head = with_open_sizes(model.decode_head)
        self.align_corners = model.align_corners

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.preprocessing(image)
        logits = self.logits(self.neck(self.backbone(x)), (x.shape[2], x.shape[3]))
        logits = logits[:, :, : image.shape[2], : image.shape[3]]
        classes = logits.argmax(1)
        return (classes, logits) if len(self.outputs) == 2 else (classes,)

    def logits(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, C, H, W) of an image of this size."""
        return F.interpolate(self.head(maps), size=size, mode='bilinear', align_corners=self.align_corners)


class OpenPooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products with matrices of averages, for maps of any size.

    Args:
        size: Rows and columns of what it returns.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, C, *size)."""
        rows, columns = (self.averages(n, pooled, x) for n, pooled in zip(x.shape[2:], self.size, strict=True))
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def averages(n: int, pooled: int, like: Tensor) -> Tensor:
        """The matrix (pooled, n) that averages n values to as many as wanted, as PyTorch's adaptive pooling does."""
        bins = torch.arange(pooled, device=like.device)[:, None]
        starts = torch.div(bins * n, pooled, rounding_mode='floor')
        ends = torch.div((bins + 1) * n + pooled - 1, pooled, rounding_mode='floor')
        positions = torch.arange(n, device=like.device)
        inside = ((positions >= starts) & (positions < ends)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def with_open_sizes(module: nn.Module) -> nn.Module:
    """The module without the layers that a recording fixes at one size.

    ``nn.AdaptiveAvgPool2d`` becomes :class:`OpenPooling`. mmseg's ``Upsample``, which makes sizes integers, becomes
    PyTorch's.
    """
    from mmseg.models.utils import Upsample  # noqa: PLC0415  a detector needs no mmseg

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(parent, name, OpenPooling(to_2tuple(child.output_size)))
            elif isinstance(child, Upsample) and child.scale_factor:
                setattr(parent, name, nn.Upsample(None, child.scale_factor, child.mode, child.align_corners))
    return module


def min_size(model: Any) -> int:
    """Smallest side of an image for the backbone, in pixels."""
    return getattr(model.backbone, 'min_size', 1)


def graph_of(model: Any, with_logits: bool = False) -> nn.Module:
    """A copy of a model as a graph, in eval mode. Its ``outputs`` are the names of what it returns.

    Args:
        model: One of mmvit's backbones, or a detector or segmenter of mmdet or mmseg.
        with_logits: A segmenter returns its logits too.

    Raises:
        ValueError: It is of a kind that has no graph. The message lists those that do.
    """
    model = backbones.made_fast(revert_sync_batchnorm(copy.deepcopy(model)))
    return new_graph(model, with_logits).eval().requires_grad_(False)


def new_graph(model: Any, with_logits: bool) -> nn.Module:
    """The graph of a model, which becomes a part of it."""
    if isinstance(model, Backbone):
        return Features(model)
    kind = type(model).__name__
    if kind == 'EncoderDecoder':
        if model.test_cfg.get('mode') != 'whole':
            raise ValueError(f"a segmenter with test_cfg.mode={model.test_cfg.get('mode')!r} has no graph; use 'whole'")
        return kind_of_segmenter(model.decode_head)(model, with_logits)
    if with_logits:
        raise ValueError(f'with_logits is for segmenters, not for {kind}')
    from mmvit.deploy import detectors, queries  # noqa: PLC0415  a segmenter needs no mmdet

    kinds: dict[str, Any] = {**detectors.GRAPHS, **queries.GRAPHS}
    if kind not in kinds:
        known = ', '.join([*kinds, 'EncoderDecoder', "mmvit's backbones"])
        raise ValueError(f'{kind} has no graph; these have one: {known}')
    return kinds[kind](model)


def kind_of_segmenter(head: nn.Module) -> type[Segmenter]:
    """The graph for a segmenter's head. Raises ValueError if it has none."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: PLC0415  a detector needs no mmseg

    if isinstance(head, BaseDecodeHead):
        return Segmenter
    if type(head).__name__ == 'Mask2FormerHead':
        from mmvit.deploy.queries import MaskSegmenter  # noqa: PLC0415  it needs mmdet, as its head does

        return MaskSegmenter
    raise ValueError(
        f"a segmenter with {type(head).__name__} has no graph; it takes heads of logits of pixels, and Mask2Former's"
    )
