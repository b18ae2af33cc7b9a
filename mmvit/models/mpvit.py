"""MPViT: Multi-Path Vision Transformer for Dense Prediction (CVPR 2022, https://arxiv.org/abs/2112.11010).

Written from the paper. Tokens (B, N, C) and channels-last maps (B, C, H, W) are the same memory here, so that moving
between them copies nothing. Deviation from the released networks: none; their weights load exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from mmcv.cnn import build_norm_layer
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from mmvit.checkpoints.layouts import OfficialLayout
from mmvit.models.base import Backbone
from mmvit.models.convolution import Conv2d
from mmvit.models.pieces import GELU, add, in_place, in_step, is_recorded, recomputed, tokens_at_once, tokenwise
from mmvit.registry import MODELS, register

NUM_HEADS = 8
# (heads, kernel size) of the convolutions that encode relative positions, in head order.
CRPE_WINDOWS = ((2, 3), (3, 5), (3, 7))


class Hardswish(nn.Module):
    """In place where no gradient needs what comes in, which is always a fresh tensor here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x, inplace=not torch.is_grad_enabled())


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
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        if act:
            self.act = Hardswish()


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
        self.dwconv = Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pwconv = Conv2d(channels, channels, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = Hardswish()


class LocalPath(nn.Module):
    """The convolutional path of a stage: an inverted-residual block, width kept."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, norm_cfg)
        self.dwconv = Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = Hardswish()
        self.conv2 = ConvNorm(channels, channels, norm_cfg, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return add(self.conv2(self.act(self.norm(self.dwconv(self.conv1(x))))), x)


class ConvPosEnc(nn.Module):
    """Convolutional position encoding: adds a depthwise 3x3 convolution of the tokens' map to tokens (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return add(to_tokens(self.conv(to_map(tokens, size))), tokens)


class ConvRelPosEnc(nn.Module):
    """Convolutional relative position encoding: depthwise convolutions of the values, wider for later heads.

    The values, and what comes out, are one tensor (B, N, width) for each kernel size; ``splits`` are the widths. The
    list of values is emptied, so that each can be forgotten once used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        head_channels = channels // NUM_HEADS
        self.splits = [heads * head_channels for heads, _ in CRPE_WINDOWS]
        self.convs = nn.ModuleList(
            Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
            for width, (_, kernel) in zip(self.splits, CRPE_WINDOWS, strict=True)
        )

    def forward(self, values: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        return [to_tokens(conv(to_map(values.pop(0), size))) for conv in self.convs]


class FactorizedAttention(nn.Module):
    """Factorised attention: its cost is linear in the number of tokens, which softmax(k)^T v sums up first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = (channels // NUM_HEADS) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int], crpe: ConvRelPosEnc) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.attend(q, Context(k, v).mean(), crpe(list(v.split(crpe.splits, dim=-1)), size))

    def attend(self, q: Tensor, context: Tensor, positions: list[Tensor]) -> Tensor:
        """Queries (B, N, C), their images' contexts, and the relative positions of the same tokens."""
        position = torch.cat(positions, dim=-1)
        attended = per_head(q) @ (self.scale * context).to(q.dtype)
        return self.proj(torch.addcmul(rearrange(attended, 'b heads n c -> b n (heads c)'), q, position))

    def queries(self, x: Tensor) -> Tensor:
        channels = self.proj.in_features
        return F.linear(x, self.qkv.weight[:channels], self.qkv.bias[:channels])

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.proj.in_features
        k, v = F.linear(x, self.qkv.weight[channels:], self.qkv.bias[channels:]).chunk(2, dim=-1)
        return k, v


class Context:
    """softmax(k)^T v per head, the softmax over tokens, from keys and values (B, N, C); more tokens may be added.

    The sum is divided by the softmax's denominator in the end: no pass over the tokens normalises them. Never below
    float32: among the 67 000 tokens of an 800x1333 image a weight is too small for 16 bits.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.peak = k.detach().amax(dim=1, keepdim=True)
        self.weight, self.sum = self._sums(k, v, self.peak)

    def add(self, k: Tensor, v: Tensor) -> None:
        peak = torch.maximum(self.peak, k.amax(dim=1, keepdim=True))
        shrink = (self.peak - peak).float().exp()
        weight, total = self._sums(k, v, peak)
        self.weight = self.weight * shrink + weight
        self.sum = self.sum * per_head(shrink).mT + total
        self.peak = peak

    def mean(self) -> Tensor:
        """(B, heads, C/heads, C/heads)."""
        return self.sum / per_head(self.weight).mT

    @staticmethod
    def _sums(k: Tensor, v: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(k.dtype, torch.float32)
        with torch.autocast('cpu' if k.is_meta else k.device.type, enabled=False):  # it refuses the device 'meta'
            weights = (k.to(dtype) - peak.to(dtype)).exp()
            return weights.sum(dim=1, keepdim=True), per_head(weights).mT @ per_head(v.to(dtype))


class Block(nn.Module):
    """Transformer block; the position encodings are its path's, shared with the other blocks there."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path: float, with_cp: bool) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = FactorizedAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), act_layer=GELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int], cpe: ConvPosEnc, crpe: ConvRelPosEnc) -> Tensor:
        x = cpe(x, size)
        if in_place(self, x):
            return self.forward_in_place(x, size, crpe)
        attended, mlp = (recomputed(part, self.with_cp) for part in (self.attended, self.mlp_of_norm))
        x = x + self.drop_path(attended(x, size, crpe))
        return x + self.drop_path(tokenwise(mlp, x))

    def attended(self, x: Tensor, size: tuple[int, int], crpe: ConvRelPosEnc) -> Tensor:
        return self.attn(self.norm1(x), size, crpe)

    def mlp_of_norm(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def forward_in_place(self, x: Tensor, size: tuple[int, int], crpe: ConvRelPosEnc) -> Tensor:
        """The rest of the block in two passes over the tokens; keys and queries are never stored."""
        attn = self.attn
        values = [x.new_empty(*x.shape[:2], width) for width in crpe.splits]
        contexts = [self.context_in_pieces(*image) for image in in_step(1, 0, x, *values)]
        positions = crpe(values, size)
        for context, image in zip(contexts, in_step(1, 0, x, *positions), strict=True):
            for piece, *here in in_step(tokens_at_once(x), 1, *image):
                piece += attn.attend(attn.queries(self.norm1(piece)), context, here)
                piece += self.mlp_of_norm(piece)
        return x

    def context_in_pieces(self, image: Tensor, *values: Tensor) -> Tensor:
        """The context of one image's tokens (1, N, C), whose values are stored on the way."""

        def keys_and_values():
            for piece, *out in in_step(tokens_at_once(image), 1, image, *values):
                k, v = self.attn.keys_and_values(self.norm1(piece))
                torch.split_with_sizes_copy(v, [o.shape[-1] for o in out], dim=-1, out=out)
                yield k, v

        pieces = keys_and_values()
        context = Context(*next(pieces))
        for k, v in pieces:
            context.add(k, v)
        return context.mean()


class TransformerPath(nn.Module):
    """A transformer path of a stage: blocks at one width over the map (B, C, H, W) of one patch embedding."""

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


class Aggregate(ConvNorm):
    """Pointwise convolution over the channels of several maps, taken one by one and never laid side by side."""

    def forward(self, maps: Iterator[Tensor]) -> Tensor:
        """Each map is forgotten before the next is made."""
        first = next(maps)
        size = (first.shape[2], first.shape[3])
        weights = self.conv.weight.flatten(1).split(first.shape[1], dim=1)
        total = F.linear(to_tokens(first), weights[0], self.conv.bias)
        del first
        rows = total.view(-1, total.shape[-1])
        for weight in weights[1:]:
            rows = self.add_product(rows, next(maps), weight)
        return self.act(self.norm(to_map(rows.view(total.shape), size)))

    @staticmethod
    def add_product(rows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        # Mixed precision does not reach products that add in place.
        product = to_tokens(x).flatten(0, 1).to(rows.dtype), weight.mT.to(rows.dtype)
        # Nor do counters of a trace's operations see them.
        return torch.addmm(rows, *product) if is_recorded() else rows.addmm_(*product)


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
        self.aggregate = Aggregate(channels * (1 + num_paths), out_channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate(self.features(x))

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """What the local and the transformer paths make of ever larger patches."""
        for i, (embed, path) in enumerate(zip(self.patch_embeds, self.paths, strict=True)):
            x = embed(x)
            if i == 0:
                yield self.local(x)
            yield path(x)


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
        self._reset_parameters()
        self.train()  # freezes what is to be frozen

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""
        self.check_input(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        # mmcv's RoIAlign takes channels-last memory for channels-first. Each map goes as its copy comes.
        return tuple(outs.pop(0).contiguous() for _ in self.out_indices)

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

    def _reset_parameters(self) -> None:
        """Initialise as the authors: position-encoding convolutions (the only ones with a bias) keep PyTorch's."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d) and module.bias is None:
                groups = module.groups if '.local.' in name else 1
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)


def per_head(tokens: Tensor) -> Tensor:
    """(B, N, C) -> (B, heads, N, C/heads), a view."""
    return rearrange(tokens, 'b n (heads c) -> b heads n c', heads=NUM_HEADS)


def to_tokens(x: Tensor) -> Tensor:
    """Map (B, C, H, W) to tokens (B, H*W, C): a view if the map is channels-last."""
    return rearrange(x, 'b c h w -> b (h w) c')


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (B, H*W, C) to a channels-last map (B, C, H, W): a view."""
    return rearrange(tokens, 'b (h w) c -> b c h w', h=size[0], w=size[1])
