"""The backbones with the classifiers of the official ImageNet networks, as timm models.

``import mmvit`` registers ``mmvit_mpvit_{arch}``, ``mmvit_pyramid_tnt_{arch}`` and ``mmvit_regionvit_{arch}`` for
``timm.create_model``. Train them where official weights are not available. A detector takes the backbone from the file
with ``init_cfg=dict(type='mmvit.OfficialWeights', checkpoint=...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmvit.models.base import Backbone
from mmvit.models.families import FAMILIES


class Classifier(nn.Module):
    """A backbone, the mean of its last map (RegionViT: of its regional tokens) and a linear layer.

    It also loads state dicts in the official layout.

    Args:
        family: Class of the backbone.
        arch: Name of an arch, or a mapping; see the backbone.
        num_classes: Number of classes, 0 for no linear layer.
        in_chans: Channels of the input.
        global_pool: 'avg', another of timm's, or '' for a map instead of logits (with ``num_classes=0``).
        drop_rate: Dropout before the linear layer.
        drop_path_rate: Stochastic depth of the last block.
        device: Device of the parameters.
        dtype: Type of the parameters.
        options: Further arguments of the backbone, such as ``img_size`` of PyramidTNT.
    """

    def __init__(
        self,
        family: type[Backbone],
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
        build: Any = family
        with torch.device(device) if device else nullcontext():
            self.backbone: Backbone = build(
                arch,
                out_indices=range(family.num_stages),
                drop_path_rate=drop_path_rate,
                in_channels=in_chans,
                **{**family.classifier_options, **options},
            )
            self.num_features = self.head_hidden_size = self.backbone.stage_channels[-1]
            norm_eps = family.classifier_norm_eps
            self.norm = LayerNorm2d(self.num_features, eps=norm_eps) if norm_eps else nn.Identity()
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
        """Images (B, C, H, W) -> the map that is pooled (B, num_features, h, w)."""
        return self.norm(self.backbone.forward_for_classifier(x)[1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map of ``forward_features`` -> logits, or with ``pre_logits`` the input of the linear layer."""
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
        """The map of ``forward_features``, and the maps of the stages.

        Args:
            x: Images (B, C, H, W).
            indices: Indices of the stages, negative ones from the end; an integer n for the last n; None for all.
            norm: Has no effect: the norm before the classifier is not for these maps.
            stop_early: Has no effect: use ``prune_intermediate_layers`` to leave stages out.
            output_fmt: 'NCHW'.
            intermediates_only: Return only the maps of the stages.
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
        """Remove the modules that the maps of these stages do not need, and return the indices of the stages."""
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
        """Replace the linear layer by one for ``num_classes`` (0: none), and the pooling unless it is None."""
        self.num_classes = num_classes
        weight = next(self.backbone.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(weight.device, weight.dtype)
        self._init_classifier()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.backbone.position_tables)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str] | Callable[[str], int]:
        """The layers of the parameters: the stages if ``coarse``, else those of the backbone's ``get_layer_depth``."""
        if coarse:
            return dict(stem=r'^backbone\.stem', blocks=r'^backbone\.stages\.(\d+)')

        def layer(name: str) -> int:
            depth, count = self.backbone.get_layer_depth(name, 'backbone.')
            return depth if name.startswith('backbone.') else count - 1

        return layer

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks are recomputed in the backward pass."""
        for module in self.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = enable

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict; it may be an official one. ``timm.create_model(..., checkpoint_path=...)`` calls this."""
        return super().load_state_dict(checkpoint_filter_fn(state_dict, self), strict, assign)

    def _init_classifier(self) -> None:
        """Initialise the linear layer as the authors do."""
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: Classifier) -> Mapping[str, Any]:
    """Convert the weights of an official file to the names of a classifier. Other weights are returned unchanged.

    Raises:
        ValueError: The file is of the model's family, but not complete or of no known arch.
    """
    layout = model.backbone.official_layout
    if not layout.is_official(state_dict):
        return state_dict
    backbone = model.backbone.convert_official(state_dict).weights
    return {f'backbone.{name}': value for name, value in backbone.items()} | layout.classifier_weights(state_dict)


# timm's pretrained_cfg, unless a family says otherwise. The crop is DeiT's, on which the authors' programs build.
DEFAULT_CFG: dict[str, Any] = dict(
    url='',
    num_classes=1000,
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=0.875,
    interpolation='bicubic',
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    classifier='head.fc',
)


def _entrypoint(family: type[Backbone], arch: str) -> Callable[..., nn.Module]:
    """The function that timm calls to make a model."""

    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            partial(Classifier, family, arch),
            make.__name__,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
            **kwargs,
        )

    make.__name__ = make.__qualname__ = f'mmvit_{family.family_name}_{arch}'
    return make


default_cfgs = generate_default_cfgs(
    {
        f'mmvit_{family.family_name}_{arch}': DEFAULT_CFG | family.timm_cfg(arch)
        for family in FAMILIES
        for arch in family.arch_zoo
    }
)
for _family in FAMILIES:
    for _arch in _family.arch_zoo:
        register_model(_entrypoint(_family, _arch))
