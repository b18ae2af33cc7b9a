"""MPViT: Multi-Path Vision Transformer for Dense Prediction (CVPR 2022, https://arxiv.org/abs/2112.11010).

Written from the paper, without a deviation from the official networks. Maps are (B, C, H, W), tokens (B, H*W, C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from mmcv.cnn import build_norm_layer
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from mmvit import cpu
from mmvit.checkpoints.layouts import OfficialLayout
from mmvit.models.base import Backbone, no_autocast, recomputed
from mmvit.registry import MODELS, register

NUM_HEADS = 8
# (heads, kernel size) of the convolutions that encode relative positions, in head order.
CRPE_WINDOWS = ((2, 3), (3, 5), (3, 7))


class ConvNorm(nn.Sequential):
    """Convolution without bias -> norm -> optional Hardswish; kernel 1 or "same" padding, (B, C, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_cfg: dict,
        kernel_size: int = 1,
        stride: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        if act:
            self.act = nn.Hardswish()


class Stem(nn.Sequential):
    """Two convolutions of stride 2: image (B, C, H, W) -> (B, D, ceil(H/4), ceil(W/4))."""

    def __init__(self, in_channels: int, channels: int, norm_cfg: dict) -> None:
        super().__init__(
            ConvNorm(in_channels, channels // 2, norm_cfg, kernel_size=3, stride=2),
            ConvNorm(channels // 2, channels, norm_cfg, kernel_size=3, stride=2),
        )


class PatchEmbed(nn.Sequential):
    """One step of the multi-scale patch embedding: depthwise 3x3 -> pointwise -> norm -> Hardswish."""

    def __init__(self, channels: int, stride: int, norm_cfg: dict) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pwconv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = nn.Hardswish()


class LocalPath(nn.Module):
    """The convolutional path of a stage: an inverted-residual block that keeps the width."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, norm_cfg)
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = nn.Hardswish()
        self.conv2 = ConvNorm(channels, channels, norm_cfg, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.norm(self.dwconv(self.conv1(x)))))


class ConvPosEnc(nn.Module):
    """Convolutional position encoding: adds a depthwise 3x3 convolution of the tokens' map to tokens (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return tokens + to_tokens(self.conv(to_map(tokens, size)))


class ConvRelPosEnc(nn.Module):
    """Convolutional relative position encoding: depthwise convolutions of the values, wider for later heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        head_channels = channels // NUM_HEADS
        self.splits = [heads * head_channels for heads, _ in CRPE_WINDOWS]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
            for width, (_, kernel) in zip(self.splits, CRPE_WINDOWS, strict=True)
        )

    def forward(self, v: Tensor, size: tuple[int, int]) -> Tensor:
        """Values (B, N, C) -> their encodings, the same shape."""
        maps = to_map(v, size).split(self.splits, dim=1)
        return torch.cat([to_tokens(conv(x)) for conv, x in zip(self.convs, maps, strict=True)], dim=-1)


class FactorizedAttention(nn.Module):
    """Factorised attention, q (softmax(k)^T v) plus q times the relative position encoding.

    The softmax runs over the tokens. Its product with the values comes first, so the cost is linear in the tokens.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = (channels // NUM_HEADS) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int], crpe: ConvRelPosEnc) -> Tensor:
        """Tokens (B, N, C) -> the same."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        context = softmax_product(self.per_head(k), self.per_head(v))
        attended = self.per_head(q) @ (self.scale * context).to(q.dtype)
        return self.proj(rearrange(attended, 'b heads n c -> b n (heads c)') + q * crpe(v, size))

    @staticmethod
    def per_head(tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C/heads)."""
        return rearrange(tokens, 'b n (heads c) -> b heads n c', heads=NUM_HEADS)


def softmax_product(k: Tensor, v: Tensor) -> Tensor:
    """softmax(k)^T v with the softmax over tokens: (B, heads, N, c) each -> (B, heads, c, c).

    In float32 or better: among the 67 000 tokens of an 800x1333 image a weight is too small for 16 bits.
    """
    dtype = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(k):
        return k.to(dtype).softmax(dim=-2).transpose(-2, -1) @ v.to(dtype)


class Block(nn.Module):
    """Transformer block; the blocks of a path share its position encodings."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path: float, with_cp: bool) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = FactorizedAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int], cpe: ConvPosEnc, crpe: ConvRelPosEnc) -> Tensor:
        """Tokens (B, N, C) of a map of this size -> the same."""
        if cpu.takes(self, x):
            return cpu.mpvit.block(self, x, size, cpe, crpe)
        attention, mlp = (recomputed(part, self.with_cp) for part in (self.attention, self.feed_forward))
        x = cpe(x, size)
        x = x + self.drop_path(attention(x, size, crpe))
        return x + self.drop_path(mlp(x))

    def attention(self, x: Tensor, size: tuple[int, int], crpe: ConvRelPosEnc) -> Tensor:
        return self.attn(self.norm1(x), size, crpe)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))


class TransformerPath(nn.Module):
    """A transformer path of a stage: blocks over the map (B, C, H, W) of one patch embedding."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path_rates: Sequence[float], with_cp: bool) -> None:
        super().__init__()
        self.cpe = ConvPosEnc(channels)
        self.crpe = ConvRelPosEnc(channels)
        self.blocks = nn.ModuleList(Block(channels, mlp_ratio, rate, with_cp) for rate in drop_path_rates)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = to_tokens(x)
        for block in self.blocks:
            tokens = block(tokens, size, self.cpe, self.crpe)
        return to_map(tokens, size)


class Stage(nn.Module):
    """Multi-scale patch embedding, parallel local and transformer paths, and their aggregation."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_paths: int,
        stride: int,
        mlp_ratio: float,
        drop_path_rates: Sequence[float],
        norm_cfg: dict,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(channels, stride if step == 0 else 1, norm_cfg) for step in range(num_paths)
        )
        self.local = LocalPath(channels, norm_cfg)
        self.paths = nn.ModuleList(
            TransformerPath(channels, mlp_ratio, drop_path_rates, with_cp) for _ in range(num_paths)
        )
        self.aggregate = ConvNorm(channels * (1 + num_paths), out_channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""
        if cpu.takes(self, x):
            return cpu.mpvit.stage(self, x)
        patches = []
        for embed in self.patch_embeds:
            x = embed(x)
            patches.append(x)
        maps = [self.local(patches[0]), *(path(patch) for path, patch in zip(self.paths, patches, strict=True))]
        return self.aggregate(torch.cat(maps, dim=1))


@register(MODELS)
class MPViT(Backbone):
    """MPViT backbone; maps at strides 4, 8, 16, 32, each ceil(half) of the one before.

    Args:
        arch: 'tiny', 'xsmall', 'small', 'base', or a dict with ``embed_dims`` (width of each stage), ``num_layers``
            (blocks in each of a stage's transformer paths), ``num_paths`` and ``mlp_ratio``. Stage i returns the
            width of stage i + 1, the last stage its own.
        out_indices: Ascending indices of the stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0, alike in a stage's paths.
        norm_cfg: The batch norms' config, ``dict(type='SyncBN')`` for one.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute transformer blocks in the backward pass to save memory.
        in_channels: Channels of the input.
        init_cfg: mmengine's, or ``dict(type='mmvit.OfficialWeights', checkpoint=...)`` for an official file.
    """

    family_name = 'mpvit'
    arch_zoo: ClassVar[dict[str, dict[str, Any]]] = {
        'tiny': dict(embed_dims=(64, 96, 176, 216), num_layers=(1, 2, 4, 1), num_paths=(2, 3, 3, 3), mlp_ratio=2),
        'xsmall': dict(embed_dims=(64, 128, 192, 256), num_layers=(1, 2, 4, 1), num_paths=(2, 3, 3, 3), mlp_ratio=4),
        'small': dict(embed_dims=(64, 128, 216, 288), num_layers=(1, 3, 6, 3), num_paths=(2, 3, 3, 3), mlp_ratio=4),
        'base': dict(embed_dims=(128, 224, 368, 480), num_layers=(1, 3, 8, 3), num_paths=(2, 3, 3, 3), mlp_ratio=4),
    }
    official_layout = OfficialLayout(
        renames=[
            ('stem.#.conv.', 'stem.#.conv.'),
            ('stem.#.bn.', 'stem.#.norm.'),
            ('patch_embed_stages.#.patch_embeds.#.patch_conv.bn.', 'stages.#.patch_embeds.#.norm.'),
            ('patch_embed_stages.#.patch_embeds.#.patch_conv.', 'stages.#.patch_embeds.#.'),
            ('mhca_stages.#.mhca_blks.#.cpe.proj.', 'stages.#.paths.#.cpe.conv.'),
            ('mhca_stages.#.mhca_blks.#.crpe.conv_list.', 'stages.#.paths.#.crpe.convs.'),
            # The encodings that a path's blocks share stand once more in every block, and again in its attention.
            ('mhca_stages.#.mhca_blks.#.MHCA_layers.#.cpe.proj.', 'stages.#.paths.#.cpe.conv.'),
            ('mhca_stages.#.mhca_blks.#.MHCA_layers.#.crpe.conv_list.', 'stages.#.paths.#.crpe.convs.'),
            ('mhca_stages.#.mhca_blks.#.MHCA_layers.#.factoratt_crpe.crpe.conv_list.', 'stages.#.paths.#.crpe.convs.'),
            ('mhca_stages.#.mhca_blks.#.MHCA_layers.#.factoratt_crpe.', 'stages.#.paths.#.blocks.#.attn.'),
            ('mhca_stages.#.mhca_blks.#.MHCA_layers.#.', 'stages.#.paths.#.blocks.#.'),
            ('mhca_stages.#.InvRes.conv#.bn.', 'stages.#.local.conv#.norm.'),
            ('mhca_stages.#.InvRes.', 'stages.#.local.'),
            ('mhca_stages.#.aggregate.bn.', 'stages.#.aggregate.norm.'),
            ('mhca_stages.#.aggregate.conv.', 'stages.#.aggregate.conv.'),
        ],
        prefixes=('backbone.', 'backbone.bottom_up.backbone.'),
        landmark='stem.0.bn.weight',
        classifier=[('cls_head.cls.', 'head.fc.')],
    )
    block_class = Block
    after_blocks = ('aggregate',)
    stage_strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, drop_path_rate, norm_eval, in_channels, init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')
        dims = self.arch['embed_dims']
        self.depths = self.arch['num_layers']
        self.stage_channels = (*dims[1:], dims[-1])
        self.stem = Stem(in_channels, dims[0], norm_cfg)
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(self.depths), stagewise=True)
        self.stages = nn.ModuleList(
            Stage(
                channels=dims[i],
                out_channels=self.stage_channels[i],
                num_paths=self.arch['num_paths'][i],
                stride=1 if i == 0 else 2,
                mlp_ratio=self.arch['mlp_ratio'],
                drop_path_rates=rates[i],
                norm_cfg=norm_cfg,
                with_cp=with_cp,
            )
            for i in range(self.out_indices[-1] + 1)
        )
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""
        self.check_input(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x.contiguous())  # mmcv's RoIAlign takes channels-last memory for channels-first
        return tuple(outs)

    @classmethod
    def timm_cfg(cls, arch: str) -> dict[str, Any]:
        """Entries of timm's ``pretrained_cfg``; the addresses of the official files are dead."""
        return dict(first_conv='backbone.stem.0.conv', paper_ids='arXiv:2112.11010')

    @classmethod
    def check_arch(cls, arch: Mapping[str, Any]) -> None:
        """Raise ValueError if the values of an arch mapping contradict one another."""
        cls.check_stagewise(arch, 'embed_dims', 'num_layers', 'num_paths')
        if odd := [dim for dim in arch['embed_dims'] if dim % NUM_HEADS]:
            raise ValueError(f'embed_dims must be multiples of the {NUM_HEADS} heads; {odd} are not')
        if not isinstance(arch['mlp_ratio'], int | float) or arch['mlp_ratio'] <= 0:
            raise ValueError(f'mlp_ratio must be a positive number, not {arch["mlp_ratio"]!r}')

    def reset_parameters(self) -> None:
        """Initialise as the authors: position-encoding convolutions (the only ones with a bias) keep PyTorch's."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d) and module.bias is None:
                groups = module.groups if '.local.' in name else 1
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)


def to_tokens(x: Tensor) -> Tensor:
    """Map (B, C, H, W) -> tokens (B, H*W, C)."""
    return rearrange(x, 'b c h w -> b (h w) c')


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (B, H*W, C) -> map (B, C, H, W)."""
    return rearrange(tokens, 'b (h w) c -> b c h w', h=size[0], w=size[1])
