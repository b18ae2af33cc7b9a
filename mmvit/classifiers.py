"""The backbones with the classifiers of the released ImageNet networks, as timm models.

``import mmvit`` registers ``mmvit_mpvit_{arch}``, ``mmvit_pyramid_tnt_{arch}`` and ``mmvit_regionvit_{arch}`` for
``timm.create_model``. Whoever cannot get released weights trains these; ``init_cfg=dict(type='mmvit.OfficialWeights',
checkpoint=...)`` takes the backbone out of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.layers import ClassifierHead, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmvit.models import MPViT, PyramidTNT, RegionViT
from mmvit.models.base import Backbone


@dataclass(frozen=True)
class Family:
    """What is a backbone family's own in its classification networks.

    Args:
        backbone: Its class.
        norm_eps: Of the layer norm over what is pooled; None if there is none.
        cfg: Of timm's pretrained_cfg, for all archs.
        options: Of the backbone's.
    """

    backbone: type[Backbone]
    norm_eps: float | None
    cfg: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


class Classifier(nn.Module):
    """A backbone, the mean of its last map (RegionViT: of its regional tokens) and a linear layer.

    It loads state dicts in the released layout too.

    Args:
        family: Of the backbone.
        arch: Name of an arch, or a mapping: see the backbone.
        num_classes: 0 for no linear layer.
        in_chans: Channels of the input.
        global_pool: 'avg', another of timm's, or '' for a map instead of logits (with ``num_classes=0``).
        drop_rate: Dropout before the linear layer.
        drop_path_rate: Stochastic depth of the last block.
        device: Where the parameters are made.
        dtype: Of the parameters.
        options: Further ones of the backbone, ``img_size`` of PyramidTNT for one.
    """

    def __init__(
        self,
        family: Family,
        arch: str | Mapping[str, Any],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        build: Any = family.backbone
        with torch.device(device) if device else nullcontext():
            self.backbone: Backbone = build(
                arch,
                out_indices=range(family.backbone.num_stages),
                drop_path_rate=drop_path_rate,
                in_channels=in_chans,
                **{**family.options, **options},
            )
            self.num_features = self.head_hidden_size = self.backbone.stage_channels[-1]
            self.norm = LayerNorm2d(self.num_features, eps=family.norm_eps) if family.norm_eps else nn.Identity()
            self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self._init_classifier()
        self.to(dtype=dtype)
        self.feature_info = [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.{i}')
            for i, (channels, stride) in enumerate(
                zip(self.backbone.stage_channels, self.backbone.stage_strides, strict=True)
            )
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> what is pooled (B, num_features, h, w)."""
        return self.norm(self.backbone.forward_for_classifier(x)[1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` returns -> logits, or with ``pre_logits`` what the linear layer reads."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages, and unless ``intermediates_only`` before them what ``forward_features`` returns.

        Args:
            x: Images (B, C, H, W).
            indices: Of the stages, negative ones from the end; an integer for the last n; None for all.
            norm: Of no effect: the norm before the classifier is not for maps.
            stop_early: Of no effect: ``prune_intermediate_layers`` is what leaves stages out.
            output_fmt: 'NCHW'.
            intermediates_only: Return the maps alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        maps, features = self.backbone.forward_for_classifier(x)
        taken, _ = feature_take_indices(len(maps), indices)
        intermediates = [maps[i] for i in taken]
        return intermediates if intermediates_only else (self.norm(features), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what these stages' maps do not need, the classifier's norm and linear layer too; their indices."""
        taken, last = feature_take_indices(len(self.backbone.stages), indices)
        is_shorter = last + 1 < len(self.backbone.stages)
        self.backbone.stages = self.backbone.stages[: last + 1]
        self.backbone.out_indices = tuple(range(last + 1))
        self.num_features = self.head_hidden_size = self.backbone.stage_channels[last]
        if prune_norm or prune_head or is_shorter:
            self.norm = nn.Identity()
        if prune_head or is_shorter:
            self.reset_classifier(0, '')
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer, for another number of classes (0: none), and another pooling unless that is None."""
        self.num_classes = num_classes
        weight = next(self.backbone.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(weight.device, weight.dtype)
        self._init_classifier()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith(('_pos', 'rel_pos_table'))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str] | Callable[[str], int]:
        """How parameters are in layers: by stage if ``coarse``, else as in the backbone's ``get_layer_depth``."""
        if coarse:
            return dict(stem=r'^backbone\.stem', blocks=r'^backbone\.stages\.(\d+)')

        def layer(name: str) -> int:
            depth, count = self.backbone.get_layer_depth(name, 'backbone.')
            return depth if name.startswith('backbone.') else count - 1

        return layer

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, or no longer."""
        for module in self.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = enable

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's, for a released file's weights too: timm's ``create_model(..., checkpoint_path=...)`` ends here."""
        return super().load_state_dict(checkpoint_filter_fn(state_dict, self), strict, assign)

    def _init_classifier(self) -> None:
        """Initialise the linear layer as the authors."""
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: Classifier) -> Mapping[str, Any]:
    """The weights of a released file with a classifier's names; anything else as it is.

    Raises:
        ValueError: The file is of the model's family, but not whole or of no known arch.
    """
    layout = model.backbone.official_layout
    if not layout.is_official(state_dict):
        return state_dict
    backbone = model.backbone.convert_official(state_dict)
    return {f'backbone.{name}': value for name, value in backbone.items()} | layout.classifier_weights(state_dict)


# Addresses stand where a file can be had: MPViT's are dead, PyramidTNT's behind a password, RegionViT-M's leads to S,
# and of the archs with window 14 only detectors were released. Test crops are those of DeiT's and TNT's programs, which
# the authors' build on.
_IMAGENET = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, crop_pct=0.875)
_RELEASE = 'https://github.com/IBM/RegionViT/releases/download/weights-v0.1/RegionViT-{}.pth'
_RELEASED = dict(tiny='Ti', small='S', base='B')
FAMILIES = {
    'mpvit': Family(
        MPViT,
        norm_eps=None,
        cfg=dict(_IMAGENET, pool_size=(7, 7), first_conv='backbone.stem.0.conv', paper_ids='arXiv:2112.11010'),
    ),
    'pyramid_tnt': Family(
        PyramidTNT,
        norm_eps=1e-5,
        cfg=dict(
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
            crop_pct=0.9,
            first_conv='backbone.stem.common.conv',
            paper_ids='arXiv:2201.00978',
        ),
    ),
    'regionvit': Family(
        RegionViT,
        norm_eps=1e-6,
        cfg=dict(_IMAGENET, pool_size=(1, 1), paper_ids='arXiv:2106.02689'),
        options=dict(det_norm=False),
    ),
}


def _cfg(name: str, arch: str) -> dict[str, Any]:
    """timm's pretrained_cfg of an arch."""
    family = FAMILIES[name]
    settings = family.backbone.arch_zoo[arch]
    size = settings.get('img_size', 224)
    cfg = dict(url='', input_size=(3, size, size), interpolation='bicubic', classifier='head.fc', num_classes=1000)
    cfg |= family.cfg
    if name == 'pyramid_tnt':
        cfg['pool_size'] = (size // 64, size // 64)
    if name == 'regionvit':
        local = 'conv1' if settings['three_convs'] else 'conv'
        cfg['first_conv'] = (f'backbone.stem.local.{local}', 'backbone.stem.regional')
        if arch in _RELEASED:
            cfg['url'] = _RELEASE.format(_RELEASED[arch])
    return cfg


def _entrypoint(name: str, arch: str) -> Callable[..., nn.Module]:
    """The function that timm calls to make a model."""

    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            partial(Classifier, FAMILIES[name], arch),
            make.__name__,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
            **kwargs,
        )

    make.__name__ = make.__qualname__ = f'mmvit_{name}_{arch}'
    return make


_ARCHS = [(name, arch) for name, family in FAMILIES.items() for arch in family.backbone.arch_zoo]
default_cfgs = generate_default_cfgs({f'mmvit_{name}_{arch}': _cfg(name, arch) for name, arch in _ARCHS})
for _name, _arch in _ARCHS:
    register_model(_entrypoint(_name, _arch))
