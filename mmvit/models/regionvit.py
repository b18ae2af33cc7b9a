"""RegionViT: Regional-to-Local Attention for Vision Transformers (ICLR 2022, https://arxiv.org/abs/2106.02689).

Images may have any size of 32 or more, as in the authors' program for detection. Deviations from the program:

- Stochastic depth draws once for all windows of an image, not for each window.
- ``window_mask='exact'`` corrects the mask of the corner window. The default is the authors' mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from mmengine.logging import print_log
from timm.layers import DropPath, LayerNorm2d, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from mmvit import cpu
from mmvit.checkpoints.layouts import OfficialLayout
from mmvit.models.base import Backbone, recomputed
from mmvit.registry import MODELS, register

# Official files. The address of 'medium' leads to 'small', and with windows of 14 only detectors were published.
CLASSIFIERS = {
    arch: f'https://github.com/IBM/RegionViT/releases/download/weights-v0.1/RegionViT-{name}.pth'
    for arch, name in dict(tiny='Ti', small='S', base='B').items()
}
PATCH = 4  # pixels of a local token's side
MLP_RATIO = 4
# What a pair of tokens that must not see one another gets for a logit: far below any, and finite in 16 bits, so that a
# token that may see none stays finite too.
MASKED = -1e4


class LocalEmbed3(nn.Sequential):
    """Local tokens by three convolutions: (B, C, H, W) -> (B, D, ceil(H/4), ceil(W/4))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 4, 3, 2, 1)
        self.norm1 = LayerNorm2d(channels // 4, eps=1e-5)
        self.act1 = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 4, channels // 2, 3, 2, 1)
        self.norm2 = LayerNorm2d(channels // 2, eps=1e-5)
        self.act2 = nn.GELU()
        self.conv3 = nn.Conv2d(channels // 2, channels, 3, 1, 1)


class LocalEmbed1(nn.Sequential):
    """Local tokens by one convolution: (B, C, H, W) -> (B, D, (H-2)//4 + 1, (W-2)//4 + 1)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 8, PATCH, 3)


class Stem(nn.Module):
    """Local tokens, and one regional token for each window of them."""

    def __init__(self, in_channels: int, channels: int, window: int, three_convs: bool) -> None:
        super().__init__()
        self.patch = PATCH * window
        self.local = (LocalEmbed3 if three_convs else LocalEmbed1)(in_channels, channels)
        self.regional = nn.Conv2d(in_channels, channels, self.patch, self.patch)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) -> regional map (B, D, ., .), local map (B, D, ., .)."""
        return self.regional(self.pad(x)), self.local(x)

    def pad(self, x: Tensor) -> Tensor:
        """The image in whole patches, as the official networks pad it.

        They pad no axis if both fit, and else both: one that fits gets a whole patch.
        """
        patch, sizes = self.patch, x.shape[2:]
        fits_y, fits_x = (size // patch - (size - 1) // patch for size in sizes)  # 1 if it does, else 0
        is_short = 1 - fits_y * fits_x  # a number, so that all sizes make one program
        height, width = ((size // patch + is_short) * patch - size for size in sizes)
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class Projection(nn.Sequential):
    """Halves a map and doubles its width; a stage's regional and local tokens share it."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels, eps=1e-5)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(in_channels, channels, 3, 2, 1, groups=in_channels)


def to_windows(regional: Tensor, local: Tensor, window: int) -> Tensor:
    """Maps (B, C, h, w) and (B, C, H, W) -> windows (h, w, B, 1 + window^2, C), each with its region first.

    The local map is padded with zeros at right and bottom to whole windows.
    """
    padding = (0, regional.shape[3] * window - local.shape[3], 0, regional.shape[2] * window - local.shape[2])
    windows = rearrange(F.pad(local, padding), 'b c (h y) (w x) -> h w b (y x) c', y=window, x=window)
    return torch.cat([rearrange(regional, 'b c h w -> h w b 1 c'), windows], dim=3)


def to_maps(windows: Tensor, size: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """Windows back to the regional map and the local map of this size."""
    local = rearrange(windows[:, :, :, 1:], 'h w b (y x) c -> b (h y) (w x) c', y=window)
    # A padding below zero cuts off. With a slice, a program of torch.export would not take all image sizes.
    local = F.pad(local, (0, 0, 0, size[1] - local.shape[2], 0, size[0] - local.shape[1]))
    return rearrange(windows[:, :, :, 0], 'h w b c -> b c h w'), rearrange(local, 'b h w c -> b c h w')


def window_masks(grid: tuple[int, int], size: tuple[int, int], window: int, exact: bool, device: Any) -> Tensor:
    """Which tokens of each window may see one another: (h, w, 1 + window^2, 1 + window^2), true if they may.

    In the last column of windows both must lie in valid columns of the map, in the last row both in valid rows. In the
    corner the official networks ask for one of the two only.

    Args:
        grid: Rows and columns of windows.
        size: Rows and columns of local tokens, without padding.
        window: Side of a window.
        exact: Ask for both in the corner too.
        device: Where the masks are made.
    """
    steps = torch.arange(window, device=device)
    rows, columns = (torch.arange(n, device=device) for n in grid)
    valid_rows = (rows[:, None] * window + steps < size[0])[:, :, None].expand(-1, -1, window)
    valid_columns = (columns[:, None] * window + steps < size[1])[:, None, :].expand(-1, window, -1)
    by_row, by_column = both_valid(valid_rows)[:, None], both_valid(valid_columns)[None, :]
    if exact:
        return by_row & by_column
    is_corner = ((rows == grid[0] - 1)[:, None] & (columns == grid[1] - 1))[:, :, None, None]
    return (by_row & by_column) | (is_corner & (by_row | by_column))


def both_valid(valid: Tensor) -> Tensor:
    """Tokens (n, window, window) -> pairs (n, 1 + window^2, 1 + window^2), both valid; a region always is."""
    tokens = F.pad(valid.flatten(1), (1, 0), value=True)
    return tokens[:, :, None] & tokens[:, None, :]


class Attention(nn.Module):
    """Self-attention, among the regions of an image and within windows."""

    rel_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.rel_pos_table = nn.Parameter(torch.zeros(num_heads, (2 * window - 1) ** 2))
        self.register_buffer('rel_index', relative_index(window), persistent=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens (N, n, C) that see their n, with what is added to the logits (N or 1, heads, n, n) -> the same."""
        q, k, v = rearrange(self.qkv(x), 'b n (three heads c) -> three b heads n c', three=3, heads=self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(rearrange(out, 'b heads n c -> b n (heads c)'))

    def masked_bias(self, masks: Tensor) -> Tensor:
        """The relative positions in windows with these masks (..., n, n): (..., heads, n, n); a region has none."""
        bias = F.pad(self.rel_pos_table[:, self.rel_index], (1, 0, 1, 0))
        return torch.where(masks[..., None, :, :], bias, MASKED)


class Block(nn.Module):
    """Regional-to-local block: regions see one another, then each window with its region."""

    def __init__(self, channels: int, num_heads: int, window: int, drop_path: float, with_cp: bool) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm0 = nn.LayerNorm(channels, eps=1e-6)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, num_heads, window)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, MLP_RATIO * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        """Windows (h, w, B, 1 + window^2, C), their regions first, and their masks -> the windows."""
        if cpu.takes(self, x):
            return cpu.regionvit.block(self, x, masks)
        attention, mlp = (recomputed(part, self.with_cp) for part in (self.attention, self.feed_forward))
        x = torch.cat([self.regions(x), x[:, :, :, 1:]], dim=3)
        x = x + self.drop_image(attention(x, masks))
        return x + self.drop_image(mlp(x))

    def regions(self, x: Tensor) -> Tensor:
        """The regions of windows (h, w, B, 1, C) after they saw one another."""
        regions = rearrange(x[:, :, :, 0], 'h w b c -> b (h w) c')
        regions = regions + self.drop_path(self.attn(self.norm0(regions)))
        return rearrange(regions, 'b (h w) c -> h w b 1 c', h=x.shape[0])

    def attention(self, x: Tensor, masks: Tensor) -> Tensor:
        bias = self.attn.masked_bias(masks[:, :, None])  # (h, w, 1, heads, n, n)
        bias = bias.expand(-1, -1, x.shape[2], -1, -1, -1).flatten(0, 2)
        return self.attn(self.norm1(x).flatten(0, 2), bias).view(x.shape)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def drop_image(self, x: Tensor) -> Tensor:
        """Stochastic depth, one draw for all windows of an image."""
        return self.drop_path(x.transpose(0, 2)).transpose(0, 2)


class Stage(nn.Module):
    """Projection; blocks, after the first of them the optional position encoding generator (PEG); optional norm."""

    def __init__(
        self,
        in_channels: int | None,
        channels: int,
        num_heads: int,
        window: int,
        peg: bool,
        det_norm: bool,
        drop_path_rates: Sequence[float],
        exact_mask: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.exact_mask = exact_mask
        self.projection = Projection(in_channels, channels) if in_channels else nn.Identity()
        self.blocks = nn.ModuleList(Block(channels, num_heads, window, rate, with_cp) for rate in drop_path_rates)
        self.peg = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False) if peg else None
        self.det_norm = LayerNorm2d(channels, eps=1e-5) if det_norm else nn.Identity()

    def forward(self, regional: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        """Regional and local maps (B, C, ., .) of the stage before -> those of this one."""
        regional, local = self.projection(regional), self.projection(local)
        grid, size = (regional.shape[2], regional.shape[3]), (local.shape[2], local.shape[3])
        masks = window_masks(grid, size, self.window, self.exact_mask, local.device)
        windows = to_windows(regional, local, self.window)
        for i, block in enumerate(self.blocks):
            windows = block(windows, masks)
            if i == 0 and self.peg is not None:
                regional, local = to_maps(windows, size, self.window)
                windows = to_windows(regional + self.peg(regional), local + self.peg(local), self.window)
        regional, local = to_maps(windows, size, self.window)
        return regional, self.det_norm(local)


@register(MODELS)
class RegionViT(Backbone):
    """RegionViT backbone; local-token maps at strides 4, 8, 16, 32.

    Sizes are ceil(n / 4) and halves of it rounded up; an arch with the one-convolution stem starts from
    (n - 2) // 4 + 1.

    Args:
        arch: 'tiny', 'small', 'medium', 'base', 'tiny_w14', 'small_w14', 'small_w14_peg', 'base_w14', 'base_w14_peg',
            or a dict with ``embed_dims``, ``num_heads`` and ``depths`` of each stage, ``window`` (side in local
            tokens), ``three_convs`` (the stem) and ``peg``.
        out_indices: Ascending indices of the stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        det_norm: Normalise each stage's local map: what is returned, and what the next stage receives.
        window_mask: 'official' as in the official networks; 'exact' also hides all padding in the corner window.
        with_cp: Recompute blocks in the backward pass to save memory.
        in_channels: Channels of the input.
        init_cfg: mmengine's, or ``dict(type='mmvit.OfficialWeights', checkpoint=...)`` for an official file.
    """

    family_name = 'regionvit'
    _tiny: ClassVar = dict(embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), window=7)
    _small: ClassVar = dict(embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), window=7)
    _base: ClassVar = dict(embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), window=7)
    arch_zoo: ClassVar[dict[str, dict[str, Any]]] = {
        'tiny': dict(_tiny, depths=(2, 2, 8, 2), three_convs=True, peg=False),
        'small': dict(_small, depths=(2, 2, 8, 2), three_convs=True, peg=False),
        'medium': dict(_small, depths=(2, 2, 14, 2), three_convs=False, peg=False),
        'base': dict(_base, depths=(2, 2, 14, 2), three_convs=False, peg=False),
        'tiny_w14': dict(_tiny, depths=(2, 2, 8, 2), three_convs=True, peg=False, window=14),
        'small_w14': dict(_small, depths=(2, 2, 8, 2), three_convs=True, peg=False, window=14),
        'small_w14_peg': dict(_small, depths=(2, 2, 8, 2), three_convs=True, peg=True, window=14),
        'base_w14': dict(_base, depths=(2, 2, 14, 2), three_convs=False, peg=False, window=14),
        'base_w14_peg': dict(_base, depths=(2, 2, 14, 2), three_convs=False, peg=True, window=14),
    }
    official_layout = OfficialLayout(
        renames=[
            ('patch_embed.proj.0.', 'stem.local.conv1.'),
            ('patch_embed.proj.1.', 'stem.local.norm1.'),
            ('patch_embed.proj.3.', 'stem.local.conv2.'),
            ('patch_embed.proj.4.', 'stem.local.norm2.'),
            ('patch_embed.proj.6.', 'stem.local.conv3.'),
            ('patch_embed.proj.', 'stem.local.conv.'),
            ('cls_token.proj.', 'stem.regional.'),
            # The projection that regional and local tokens share stands twice.
            ('layers.#.block.0.proj.0.', 'stages.#.projection.norm.'),
            ('layers.#.block.0.proj.2.', 'stages.#.projection.conv.'),
            ('layers.#.block.0.proj_cls.0.', 'stages.#.projection.norm.'),
            ('layers.#.block.0.proj_cls.2.', 'stages.#.projection.conv.'),
            ('layers.#.block.#.attn.rel_pos', 'stages.#.blocks.#-1.attn.rel_pos_table'),
            ('layers.#.block.#.', 'stages.#.blocks.#-1.'),
            ('layers.#.peg.', 'stages.#.peg.'),
            ('norm#.', 'stages.#.det_norm.'),
        ],
        prefixes=('backbone.', 'backbone.bottom_up.model.'),
        landmark='cls_token.proj.weight',
        classifier=[('norm.', 'norm.'), ('head.', 'head.fc.')],
        optional='det_norm',
        map_norms=('stem.local.norm', 'projection.norm', 'det_norm'),
    )
    block_class = Block
    after_blocks = ('det_norm',)
    position_tables = ('rel_pos_table',)
    classifier_norm_eps = 1e-6
    classifier_options: ClassVar[dict[str, Any]] = dict(det_norm=False)
    stage_strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        det_norm: bool = True,
        window_mask: Literal['official', 'exact'] = 'official',
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, drop_path_rate, False, in_channels, init_cfg)
        if window_mask not in ('official', 'exact'):
            raise ValueError(f"window_mask must be 'official' or 'exact', not {window_mask!r}")
        dims = self.arch['embed_dims']
        self.depths = self.arch['depths']
        self.stage_channels = tuple(dims)
        self.stem = Stem(in_channels, dims[0], self.arch['window'], self.arch['three_convs'])
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(self.depths), stagewise=True)
        self.stages = nn.ModuleList(
            Stage(
                in_channels=dims[i - 1] if i else None,
                channels=dims[i],
                num_heads=self.arch['num_heads'][i],
                window=self.arch['window'],
                peg=self.arch['peg'],
                det_norm=det_norm,
                drop_path_rates=rates[i],
                exact_mask=window_mask == 'exact',
                with_cp=with_cp,
            )
            for i in range(self.out_indices[-1] + 1)
        )
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C_i, H_i, W_i) of an image batch (B, C, H, W), one per entry of ``out_indices``."""
        return self.forward_for_classifier(x)[0]

    def forward_for_classifier(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps of ``forward``, and the regional map (B, C, h, w) of the last stage."""
        self.check_input(x)
        regional, local = self.stem(x.contiguous(memory_format=torch.channels_last))
        outs = []
        for i, stage in enumerate(self.stages):
            regional, local = stage(regional, local)
            if i in self.out_indices:
                outs.append(local.contiguous())  # mmcv's RoIAlign takes channels-last memory for channels-first
        return tuple(outs), regional

    @classmethod
    def timm_cfg(cls, arch: str) -> dict[str, Any]:
        """Entries of timm's ``pretrained_cfg``."""
        local = 'conv1' if cls.arch_zoo[arch]['three_convs'] else 'conv'
        return dict(
            url=CLASSIFIERS.get(arch, ''),
            pool_size=(1, 1),
            first_conv=(f'backbone.stem.local.{local}', 'backbone.stem.regional'),
            paper_ids='arXiv:2106.02689',
        )

    @classmethod
    def check_arch(cls, arch: Mapping[str, Any]) -> None:
        """Raise ValueError if the values of an arch mapping contradict one another."""
        cls.check_stagewise(arch, 'embed_dims', 'num_heads', 'depths')
        for dim, heads in zip(arch['embed_dims'], arch['num_heads'], strict=True):
            if dim % heads:
                raise ValueError(f'embed_dims must be multiples of num_heads; {dim} is not one of {heads}')
        if any(b != 2 * a for a, b in zip(arch['embed_dims'], arch['embed_dims'][1:], strict=False)):
            raise ValueError(f'embed_dims must double from stage to stage, not {arch["embed_dims"]!r}')
        if not isinstance(arch['window'], int) or arch['window'] < 2:
            raise ValueError(f'window must be an integer of 2 or more, not {arch["window"]!r}')

    def resize_tables(self, weights: dict[str, Tensor], prefix: str = '') -> None:
        """Resize relative position tables and the regional kernel of another window to this one's, in place."""
        window = self.arch['window']
        kernel = weights.get(f'{prefix}stem.regional.weight')
        if kernel is None or kernel.ndim != 4 or kernel.shape[-1] == PATCH * window:
            return
        # A larger kernel gets smaller weights, so that a patch of one colour gives the same token.
        area = (kernel.shape[-1] / (PATCH * window)) ** 2
        new = F.interpolate(kernel.float(), size=2 * (PATCH * window,), mode='bicubic') * area
        weights[f'{prefix}stem.regional.weight'] = new.to(kernel.dtype)
        for name, table in weights.items():
            if name.startswith(prefix) and name.endswith('rel_pos_table') and table.ndim == 2:
                weights[name] = resize_table(table, window)
        trained = kernel.shape[-1] // PATCH
        print_log(f'RegionViT resized the tables of window {trained} to window {window}', logger='current')

    def reset_parameters(self) -> None:
        """Initialise as the authors; convolutions keep PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Attention):
                nn.init.trunc_normal_(module.rel_pos_table, std=0.02)


def relative_index(window: int) -> Tensor:
    """Column of the relative position table for each (query, key) of a window: (window^2, window^2).

    The official tables are in a wrapped order: a step d along an axis stands at (d + window // 2) mod (2 window - 1).
    """
    steps = torch.arange(window)
    wrapped = (steps[None, :] - steps[:, None] + window // 2) % (2 * window - 1)
    rows = wrapped[:, None, :, None] * (2 * window - 1)
    return (rows + wrapped[None, :, None, :]).reshape(window**2, window**2)


def resize_table(table: Tensor, window: int) -> Tensor:
    """A relative position table (heads, (2 w - 1)^2) of another window, bicubic in float32; the extremes stay so."""
    steps = isqrt(table.shape[1])
    if steps**2 != table.shape[1] or steps == 0:
        raise ValueError(f'a table of {table.shape[1]} relative positions is of no window and cannot be resized')
    old = (steps + 1) // 2
    # Wrapped order to natural order and back: see relative_index.
    natural = table.float().view(1, -1, steps, steps).roll(2 * (old - 1 - old // 2,), (2, 3))
    size = 2 * (2 * window - 1,)
    resized = F.interpolate(natural, size=size, mode='bicubic', align_corners=True)
    return resized.roll(2 * (window // 2 - window + 1,), (2, 3)).view(len(table), -1).to(table.dtype)
