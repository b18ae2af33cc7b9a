"""PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture (2022, arXiv 2201.00978).

Two streams: every sentence token (outer, one per 8x8 pixels at first) owns a 4x4 grid of word tokens (inner).

Deviations from the authors' program:

- Images may have any size of 32 or more. The authors' program takes its training size only. Here the input is padded to
  a multiple of 8, and the position tables are resized.
- Stochastic depth draws once for all words of an image, not for each sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isqrt, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, to_2tuple
from torch import Tensor, nn

from mmvit import cpu
from mmvit.checkpoints.layouts import OfficialLayout
from mmvit.models.base import Backbone, recomputed
from mmvit.registry import MODELS, register

SENTENCE = 8  # pixels of a sentence's side
WORDS = 16  # of a sentence, 4x4
MLP_RATIO = 4
# Side of the average pooling that makes the keys and values of each stage.
REDUCTIONS = (4, 2, 1, 1)

Grid = tuple[int, int]


class ConvNormReLU(nn.Sequential):
    """3x3 convolution -> norm -> ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = nn.ReLU()


class Stem(nn.Module):
    """Word and sentence tokens of an image, with their positions added."""

    def __init__(self, in_channels: int, inner: int, outer: int, grid: Grid, norm_cfg: dict) -> None:
        super().__init__()
        self.grid = grid
        self.common = ConvNormReLU(in_channels, 2 * inner, 2, norm_cfg)
        self.inner = ConvNormReLU(2 * inner, inner, 1, norm_cfg)
        self.outer = nn.Sequential(
            ConvNormReLU(2 * inner, 4 * inner, 2, norm_cfg),
            ConvNormReLU(4 * inner, 8 * inner, 2, norm_cfg),
            ConvNormReLU(8 * inner, outer, 1, norm_cfg),
        )
        self.inner_pos = nn.Parameter(torch.zeros(1, WORDS, inner))
        self.outer_pos = nn.Parameter(torch.zeros(1, grid[0] * grid[1], outer))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, 8h, 8w) -> words (B, h, w, 16, c), sentences (B, h, w, C)."""
        x = self.common(x)
        words = rearrange(self.inner(x), 'b c (h y) (w x) -> b h w (y x) c', y=4, x=4) + self.inner_pos
        sentences = rearrange(self.outer(x), 'b c h w -> b h w c').contiguous()
        return words.contiguous(), sentences + self.outer_position((sentences.shape[1], sentences.shape[2]))

    def outer_position(self, size: Grid) -> Tensor:
        """The sentences' position (1, h, w, C) for a grid of them."""
        return resize(self.outer_pos, self.grid, size).unflatten(1, size)


class Attention(nn.Module):
    """Attention among the tokens of a map, with keys and values from the map pooled by ``reduction``."""

    def __init__(self, channels: int, num_heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.linear = nn.Linear(channels, channels)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, rel_pos: RelativePosition | None = None) -> Tensor:
        """Maps (B, h, w, C) -> the same."""
        q = rearrange(self.q(x), 'b h w (heads c) -> b heads (h w) c', heads=self.num_heads)
        kv = self.kv(self.pool(x))
        k, v = rearrange(kv, 'b h w (two heads c) -> two b heads (h w) c', two=2, heads=self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v) if rel_pos is None else rel_pos.attend(q, k, v)
        return self.proj(rearrange(out, 'b heads (h w) c -> b h w (heads c)', h=x.shape[1], w=x.shape[2]))

    def pool(self, x: Tensor) -> Tensor:
        if self.reduction == 1:
            return x
        pooled = F.avg_pool2d(rearrange(x, 'b h w c -> b c h w'), self.reduction)
        return self.norm(self.linear(rearrange(pooled, 'b c h w -> b h w c')))


class RelativePosition:
    """A stage's relative position for one grid of sentences, and attention with it.

    The table (heads, queries, keys) belongs to the training grid. Its query grid and its key grid are resized, both
    bicubic. That is linear, so the resized table is ``queries @ keys^T``, and the logits ``scale * q @ k^T`` plus the
    table are one product of (q, queries) with (k, keys). The table itself, 274 MB at 800x1333 in PyramidTNT-S's first
    stage, is never made.

    Args:
        table: The parameter (1, heads, N, M).
        trained: The sentence grid it was trained on.
        size: The sentence grid at hand.
        reduction: Pooling from the sentence grid to the key grid.

    Attributes:
        queries: (1, heads, N', M), the table with its queries resized.
        keys: (1, 1, M', M), the weights that resize its keys.
    """

    def __init__(self, table: Tensor, trained: Grid, size: Grid, reduction: int) -> None:
        units = torch.eye(table.shape[-1], dtype=torch.promote_types(table.dtype, torch.float32), device=table.device)
        by_query = rearrange(table.to(units.dtype), '1 heads queries keys -> heads queries keys')
        queries = self.resized(by_query, trained, size)[None]
        keys = self.resized(units[None], key_grid(trained, reduction), key_grid(size, reduction))[None]
        # Copies, not views: a compiled block would be another program for a view of other strides.
        self.queries, self.keys = (x.clone(memory_format=torch.contiguous_format) for x in (queries, keys))

    def resized(self, table: Tensor, trained: Grid, size: Grid) -> Tensor:
        """As :func:`resize`."""
        return resize(table, trained, size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(scale * q @ k^T + table) @ v: q (B, heads, N', C), k and v (B, heads, M', C)."""
        width = v.shape[-1]
        q = torch.cat([q * width**-0.5, self.queries.to(q.dtype).expand(q.shape[0], -1, -1, -1)], dim=-1)
        k = torch.cat([k, self.keys.to(k.dtype).expand(*k.shape[:2], -1, -1)], dim=-1)
        v = F.pad(v, (0, self.keys.shape[-1]))  # the kernels that store no logits want one width
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]


class WordPart(nn.Module):
    """Words of a sentence see one another, then each sentence reads its own. Its norms run over whole sentences."""

    def __init__(self, inner: int, outer: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WORDS * inner)
        self.attn = Attention(inner, num_heads)
        self.norm2 = nn.LayerNorm(WORDS * inner)
        self.mlp = Mlp(inner, MLP_RATIO * inner)
        self.drop_path = DropPath(drop_path)
        self.proj_norm1 = nn.LayerNorm(WORDS * inner)
        self.proj = nn.Linear(WORDS * inner, outer, bias=False)
        self.proj_norm2 = nn.LayerNorm(outer)

    def forward(self, words: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, h, w, 16, c) and sentences (B, h, w, C) -> the same."""
        words = words + self.drop_path(self.attention(words))
        words = words + self.drop_path(self.feed_forward(words))
        return words, sentences + self.summary(words)

    def attention(self, words: Tensor) -> Tensor:
        grids = normed(self.norm1, words).reshape(-1, 4, 4, words.shape[-1])
        return self.attn(grids).view(words.shape)

    def feed_forward(self, words: Tensor) -> Tensor:
        return self.mlp(normed(self.norm2, words))

    def summary(self, words: Tensor) -> Tensor:
        """Words (..., 16, c) -> what their sentences (..., C) read."""
        return self.proj_norm2(self.proj(self.proj_norm1(words.flatten(-2))))


def normed(norm: nn.LayerNorm, words: Tensor) -> Tensor:
    """Words (..., 16, c), normalised sentence by sentence."""
    return norm(words.flatten(-2)).view(words.shape)


class Block(nn.Module):
    """Transformer-in-transformer block; only the first of a stage have a word part."""

    def __init__(
        self, inner: int, outer: int, heads: tuple[int, int], reduction: int, drop_path: float, has_words: bool
    ) -> None:
        super().__init__()
        self.words = WordPart(inner, outer, heads[0], drop_path) if has_words else None
        self.norm1 = nn.LayerNorm(outer)
        self.attn = Attention(outer, heads[1], reduction)
        self.norm2 = nn.LayerNorm(outer)
        self.mlp = Mlp(outer, MLP_RATIO * outer)
        self.drop_path = DropPath(drop_path)

    def forward(self, words: Tensor, sentences: Tensor, rel_pos: RelativePosition) -> tuple[Tensor, Tensor]:
        """Words (B, h, w, 16, c) and sentences (B, h, w, C) -> the same."""
        if cpu.takes(self, sentences):
            return cpu.pyramid_tnt.block(self, words, sentences, rel_pos)
        if self.words is not None:
            words, sentences = self.words(words, sentences)
        sentences = sentences + self.drop_path(self.attn(self.norm1(sentences), rel_pos))
        return words, sentences + self.drop_path(self.feed_forward(sentences))

    def feed_forward(self, sentences: Tensor) -> Tensor:
        return self.mlp(self.norm2(sentences))


class SentenceMerge(nn.Module):
    """Norm, then a convolution of stride 2: sentences (B, h, w, C) -> (B, ceil(h/2), ceil(w/2), C')."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, out_channels, 3, 2, 1)

    def forward(self, sentences: Tensor) -> Tensor:
        merged = self.conv(rearrange(self.norm(sentences), 'b h w c -> b c h w'))
        return rearrange(merged, 'b c h w -> b h w c').contiguous()


class WordMerge(nn.Module):
    """The 4x4 words of 2x2 sentences, side by side, to 4x4 words of one: (B, h, w, 16, c) -> (B, h/2, w/2, 16, c')."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, out_channels, 3, 2, 1)

    def forward(self, words: Tensor) -> Tensor:
        height, width = words.shape[1:3]
        size = ((height - 1) // 2 + 1, (width - 1) // 2 + 1)  # written as a convolution's, so exporters see them equal
        words = F.pad(self.norm(words), (0, 0, 0, 0, 0, 2 * size[1] - width, 0, 2 * size[0] - height))
        grids = rearrange(words, 'b (h i) (w j) (y x) c -> (b h w) c (i y) (j x)', i=2, j=2, y=4)
        return rearrange(self.conv(grids), '(b h w) c y x -> b h w (y x) c', h=size[0], w=size[1]).contiguous()


class Stage(nn.Module):
    """Merge of the stage before, blocks, and the relative position that they share."""

    def __init__(
        self,
        before: tuple[int, int] | None,
        inner: int,
        outer: int,
        heads: tuple[int, int],
        reduction: int,
        grid: Grid,
        drop_path_rates: Sequence[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.reduction = reduction
        self.with_cp = with_cp
        self.word_merge = WordMerge(before[0], inner) if before else nn.Identity()
        self.sentence_merge = SentenceMerge(before[1], outer) if before else nn.Identity()
        keys = key_grid(grid, reduction)
        self.relative_pos = nn.Parameter(torch.zeros(1, heads[1], grid[0] * grid[1], keys[0] * keys[1]))
        depth = len(drop_path_rates)
        self.blocks = nn.ModuleList(
            Block(inner, outer, heads, reduction, rate, has_words=i == 0 or (i == 1 and depth > 6))
            for i, rate in enumerate(drop_path_rates)
        )

    def forward(self, words: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, h, w, 16, c) and sentences (B, h, w, C) of the stage before -> those of this one."""
        words, sentences = self.word_merge(words), self.sentence_merge(sentences)
        size = (sentences.shape[1], sentences.shape[2])
        on_cpu = cpu.takes(self, sentences)
        rel_pos: Any = cpu.pyramid_tnt.relative_position(self, size) if on_cpu else self.relative_position(size)
        for block in self.blocks:
            # Recomputing the parts of a block, as the other backbones do, took as long and more memory here.
            words, sentences = recomputed(block, self.with_cp, preserve_rng_state=True)(words, sentences, rel_pos)
        return words, sentences

    def relative_position(self, size: Grid) -> RelativePosition:
        """The relative position for a grid of sentences."""
        return RelativePosition(self.relative_pos, self.grid, size, self.reduction)


@register(MODELS)
class PyramidTNT(Backbone):
    """PyramidTNT backbone; sentence maps at strides 8, 16, 32, 64 (sizes rounded up), or 4, 8, 16, 32.

    Its images are normalised with mean 127.5 and std 127.5.

    Args:
        arch: 'tiny', 'small', 'medium', 'base', or a dict with ``inner_dims``, ``outer_dims``, ``inner_heads``,
            ``outer_heads`` and ``depths`` of each stage and ``img_size``.
        img_size: Side, or height and width, in pixels of the images that the position tables are for; the arch's
            training size by default. Any other size works too, with the tables resized on the way.
        out_indices: Ascending indices of the stages whose maps are returned.
        upsample: Return maps of twice the size, bilinear: strides 4, 8, 16, 32, as detectors want them.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        norm_cfg: The stem's batch norms' config, ``dict(type='SyncBN')`` for one.
        norm_eval: Keep batch norms in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        in_channels: Channels of the input.
        init_cfg: mmengine's, or ``dict(type='mmvit.OfficialWeights', checkpoint=...)`` for an official file.
    """

    family_name = 'pyramid_tnt'
    arch_zoo: ClassVar[dict[str, dict[str, Any]]] = {
        name: dict(
            inner_dims=tuple(width * n for n in (1, 2, 4, 4)),
            outer_dims=tuple(16 * width * n for n in (1, 2, 4, 4)),
            inner_heads=tuple(heads * n for n in (1, 2, 4, 4)),
            outer_heads=tuple(2 * heads * n for n in (1, 2, 4, 4)),
            depths=depths,
            img_size=img_size,
        )
        for name, width, heads, depths, img_size in (
            ('tiny', 5, 1, (2, 6, 3, 2), 192),
            ('small', 8, 2, (2, 8, 4, 2), 256),
            ('medium', 12, 2, (2, 8, 6, 2), 256),
            ('base', 16, 2, (2, 10, 6, 2), 256),
        )
    }
    official_layout = OfficialLayout(
        renames=[
            ('inner_pos', 'stem.inner_pos'),
            ('outer_pos', 'stem.outer_pos'),
            ('patch_embed.common_conv.0.', 'stem.common.conv.'),
            ('patch_embed.common_conv.1.', 'stem.common.norm.'),
            ('patch_embed.inner_convs.0.', 'stem.inner.conv.'),
            ('patch_embed.inner_convs.1.', 'stem.inner.norm.'),
            ('patch_embed.outer_convs.0.', 'stem.outer.0.conv.'),
            ('patch_embed.outer_convs.1.', 'stem.outer.0.norm.'),
            ('patch_embed.outer_convs.3.', 'stem.outer.1.conv.'),
            ('patch_embed.outer_convs.4.', 'stem.outer.1.norm.'),
            ('patch_embed.outer_convs.6.', 'stem.outer.2.conv.'),
            ('patch_embed.outer_convs.7.', 'stem.outer.2.norm.'),
            ('word_merges.#.norm.', 'stages.#+1.word_merge.norm.'),
            ('word_merges.#.conv.0.', 'stages.#+1.word_merge.conv.'),
            ('sentence_merges.#.norm.', 'stages.#+1.sentence_merge.norm.'),
            ('sentence_merges.#.conv.0.', 'stages.#+1.sentence_merge.conv.'),
            ('stages.#.relative_pos', 'stages.#.relative_pos'),
            ('stages.#.blocks.#.inner_', 'stages.#.blocks.#.words.'),
            ('stages.#.blocks.#.proj', 'stages.#.blocks.#.words.proj'),
            ('stages.#.blocks.#.outer_', 'stages.#.blocks.#.'),
        ],
        prefixes=('backbone.',),
        landmark='patch_embed.common_conv.0.weight',
        classifier=[('norm.', 'norm.'), ('head.', 'head.fc.')],
    )
    block_class = Block
    position_tables = ('inner_pos', 'outer_pos', 'relative_pos')
    classifier_norm_eps = 1e-5

    stem: Stem

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        upsample: bool = False,
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, drop_path_rate, norm_eval, in_channels, init_cfg)
        height, width = to_2tuple(img_size or self.arch['img_size'])
        if min(height, width) < self.min_size:
            raise ValueError(f'img_size must be {self.min_size} or more a side, not {img_size!r}')
        self.upsample = upsample
        self.depths = self.arch['depths']
        self.stage_strides = (4, 8, 16, 32) if upsample else (8, 16, 32, 64)
        inner, outer = self.arch['inner_dims'], self.arch['outer_dims']
        self.stage_channels = tuple(outer)
        grids = [(ceil(height / stride), ceil(width / stride)) for stride in (8, 16, 32, 64)]
        self.stem = Stem(in_channels, inner[0], outer[0], grids[0], norm_cfg or dict(type='BN'))
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(self.depths), stagewise=True)
        self.stages = nn.ModuleList(
            Stage(
                before=(inner[i - 1], outer[i - 1]) if i else None,
                inner=inner[i],
                outer=outer[i],
                heads=(self.arch['inner_heads'][i], self.arch['outer_heads'][i]),
                reduction=REDUCTIONS[i],
                grid=grids[i],
                drop_path_rates=rates[i],
                with_cp=with_cp,
            )
            for i in range(self.out_indices[-1] + 1)
        )
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""
        self.check_input(x)
        height, width = x.shape[2:]
        # Not -size % 8, of which exporters do not see that it makes multiples of 8.
        right, bottom = ((size + SENTENCE - 1) // SENTENCE * SENTENCE - size for size in (width, height))
        words, sentences = self.stem(F.pad(x, (0, right, 0, bottom)).contiguous(memory_format=torch.channels_last))
        outs = []
        for i, stage in enumerate(self.stages):
            words, sentences = stage(words, sentences)
            if i in self.out_indices:
                outs.append(self.make_map(sentences, self.stage_strides[i], height, width))
        return tuple(outs)

    def make_map(self, sentences: Tensor, stride: int, height: int, width: int) -> Tensor:
        """A stage's sentences (B, h, w, C) as the map that an image of this size gets at this stride."""
        # mmcv's RoIAlign takes channels-last memory for channels-first.
        out = rearrange(sentences, 'b h w c -> b c h w').contiguous()
        if not self.upsample:
            return out
        out = F.interpolate(out, scale_factor=2, mode='bilinear')
        return out[:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride].contiguous()

    @classmethod
    def timm_cfg(cls, arch: str) -> dict[str, Any]:
        """Entries of timm's ``pretrained_cfg``; the official files are behind a password."""
        size = cls.arch_zoo[arch]['img_size']
        return dict(
            input_size=(3, size, size),
            pool_size=(size // 64, size // 64),
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
            crop_pct=0.9,
            first_conv='backbone.stem.common.conv',
            paper_ids='arXiv:2201.00978',
        )

    @classmethod
    def check_arch(cls, arch: Mapping[str, Any]) -> None:
        """Raise ValueError if the values of an arch mapping contradict one another."""
        cls.check_stagewise(arch, 'inner_dims', 'outer_dims', 'inner_heads', 'outer_heads', 'depths')
        for stream in ('inner', 'outer'):
            for dim, heads in zip(arch[f'{stream}_dims'], arch[f'{stream}_heads'], strict=True):
                if dim % heads:
                    raise ValueError(f'{stream}_dims must be multiples of {stream}_heads; {dim} is not one of {heads}')

    def resize_tables(self, weights: dict[str, Tensor], prefix: str = '') -> None:
        """Resize position tables of another training size to this one's, in place. Both sizes must be square."""
        resized = []
        pos = weights.get(f'{prefix}stem.outer_pos')
        if pos is not None and pos.ndim == 3 and pos.shape != self.stem.outer_pos.shape:
            trained = _square(pos.shape[1])
            resized_pos = resize(pos.float(), trained, self.stem.grid)
            weights[f'{prefix}stem.outer_pos'] = resized_pos.to(pos.dtype)
            resized.append('outer_pos')
        stages: Any = self.stages
        for i, stage in enumerate(stages):
            table = weights.get(f'{prefix}stages.{i}.relative_pos')
            if table is not None and table.ndim == 4 and table.shape != stage.relative_pos.shape:
                trained = _square(table.shape[2])
                if table.shape[3] != prod(key_grid(trained, stage.reduction)):
                    raise ValueError(f'stages.{i}.relative_pos of shape {tuple(table.shape)} fits no image size')
                new = RelativePosition(table, trained, stage.grid, stage.reduction)
                weights[f'{prefix}stages.{i}.relative_pos'] = (new.queries @ new.keys.mT).to(table.dtype)
                resized.append(f'stages.{i}.relative_pos')
        if resized:
            print_log(f'PyramidTNT resized tables of another training size: {", ".join(resized)}', logger='current')

    def reset_parameters(self) -> None:
        """Initialise as the authors."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = 9 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, Stage):
                nn.init.normal_(module.relative_pos)
        nn.init.trunc_normal_(self.stem.inner_pos, std=0.02)
        nn.init.trunc_normal_(self.stem.outer_pos, std=0.02)


def key_grid(size: Grid, reduction: int) -> Grid:
    """Grid of the keys of a sentence grid."""
    return size[0] // reduction, size[1] // reduction


def resize(table: Tensor, trained: Grid, size: Grid) -> Tensor:
    """Table (B, h*w, C) of the places of one grid -> (B, h'*w', C) for another, bicubic."""
    by_place = rearrange(table, 'b (h w) c -> b c h w', h=trained[0], w=trained[1])
    return rearrange(F.interpolate(by_place, size, mode='bicubic'), 'b c h w -> b (h w) c')


def _square(count: int) -> Grid:
    if count == 0 or isqrt(count) ** 2 != count:
        raise ValueError(f'a position table of {count} places is not of a square image and cannot be resized')
    return isqrt(count), isqrt(count)
