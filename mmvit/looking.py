"""What a backbone sees in an image: its feature maps, and the attention of single tokens, as tensors.

The numbers come from the running network: hooks take what its attention modules get and return, and the modules' own
projections give queries, keys and values. :meth:`Attention.rebuilt` computes from the weights and the values what the
module returned, so it can be checked that the weights are those of the network. Nothing is stored on modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.func import functional_call

from mmvit.models.base import Backbone
from mmvit.models.mpvit import MPViT
from mmvit.models.pyramid_tnt import SENTENCE, PyramidTNT
from mmvit.models.regionvit import RegionViT

WORDS_SIDE = 4  # of a sentence


@dataclass(frozen=True)
class Attention:
    """How the values of some tokens reach others, in one attention module.

    Attributes:
        weights: (N, heads, queries, keys).
        values: (N, heads, keys, c).
        added: (N, queries, heads * c) or 0, what the module adds before its projection.
        project: The module's projection.
        returned: (N, queries, C), what the module returned for these queries.
    """

    weights: Tensor
    values: Tensor
    added: Tensor | float
    project: Callable[[Tensor], Tensor]
    returned: Tensor

    @torch.no_grad()
    def rebuilt(self) -> Tensor:
        """``returned``, computed from the weights and the values."""
        merged = rearrange(self.weights @ self.values, 'n heads queries c -> n queries (heads c)')
        return self.project(merged + self.added)


@dataclass(frozen=True)
class View:
    """A map over the image.

    Attributes:
        name: What it shows, in words.
        map: (H, W), the weights of tokens, in the places of the tokens.
        pixels: Side in pixels of a token on the map. The first begins in the image's left upper corner.
        cell: Side in pixels of the windows or sentences to draw, 0 for none.
        attention: What the map is taken from.
        query: Left, top, right and bottom edge in pixels of the token that looks; None if one in each cell looks.
        is_signed: Whether weights may be negative.
    """

    name: str
    map: Tensor
    pixels: int
    cell: int
    attention: Attention
    query: tuple[int, int, int, int] | None = None
    is_signed: bool = False


def stage_maps(backbone: Backbone, image: Tensor) -> dict[int, Tensor]:
    """The root mean square over the channels (H_i, W_i) of each map that the backbone returns, by its stage.

    Args:
        backbone: In eval mode.
        image: (1, C, H, W), normalised as the backbone expects it.
    """
    maps, _ = run(backbone, image, [])
    return {i: x[0].square().mean(dim=0).sqrt() for i, x in zip(backbone.out_indices, maps, strict=True)}


def look(backbone: Backbone, image: Tensor, stage: int, at: tuple[int, int]) -> list[View]:
    """What the attention in the last block of a stage sees.

    Args:
        backbone: In eval mode.
        image: (1, C, H, W), normalised as the backbone expects it.
        stage: Index of the stage, from 0.
        at: Column and row of the pixel whose token looks.

    Raises:
        ValueError: The backbone is not one of the three, has no such stage, or the pixel is outside of the image.
    """
    check(backbone, image, stage, at)
    for family, views in ((MPViT, look_at_paths), (RegionViT, look_at_windows), (PyramidTNT, look_at_sentences)):
        if isinstance(backbone, family):
            return views(backbone, image, stage, at)
    raise ValueError(f'there is no picture for the attention of {type(backbone).__name__}')


def check(backbone: Backbone, image: Tensor, stage: int, at: tuple[int, int]) -> None:
    """Raise ValueError if there is no such stage or pixel."""
    if stage not in range(len(backbone.stages)):
        raise ValueError(f'this {type(backbone).__name__} has the stages 0 .. {len(backbone.stages) - 1}, not {stage}')
    height, width = image.shape[2:]
    if at[0] not in range(width) or at[1] not in range(height):
        raise ValueError(f'the position {at[0]},{at[1]} is outside of the image of {width}x{height} pixels')


def look_at_paths(backbone: Any, image: Tensor, stage: int, at: tuple[int, int]) -> list[View]:
    """MPViT: for each path, with which weights the values of all tokens reach the token at a pixel.

    A weight is ``scale * q @ softmax(k)^T``, added up over the heads. It may be negative. What the position encoding
    adds, a convolution of the values around the token, is in ``attention.added`` and not on the map.
    """
    paths = backbone.stages[stage].paths
    blocks = [path.blocks[-1].attn for path in paths]
    _, calls = run(backbone, image, blocks)
    pixels = backbone.stage_strides[stage]
    return [path_view(call, pixels, at, i) for i, call in enumerate(calls)]


@torch.no_grad()
def path_view(call: Call, pixels: int, at: tuple[int, int], path: int) -> View:
    """The view of one path."""
    module: Any = call.module
    x, size, crpe = call.inputs
    row, column = at[1] // pixels, at[0] // pixels
    index = [row * size[1] + column]
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    added = (q * crpe(v, size))[:, index]
    query, keys, values = (module.per_head(part) for part in (q[:, index], k, v))
    weights = module.scale * query @ keys.softmax(dim=-2).mT
    attention = Attention(weights, values, added, module.proj, call.output[:, index])
    by_place = rearrange(weights[0, :, 0].sum(dim=0), '(h w) -> h w', h=size[0])
    return View(f'path {path}', by_place, pixels, 0, attention, square(column, row, pixels), is_signed=True)


def look_at_windows(backbone: Any, image: Tensor, stage: int, at: tuple[int, int]) -> list[View]:
    """RegionViT: how much each window's region attends to each local token of the window, the mean over the heads.

    The weight that a region has for itself is not on the map, so a window adds up to less than 1.
    """
    part = backbone.stages[stage]
    _, (whole, block, call) = run(backbone, image, [part, part.blocks[-1], part.blocks[-1].attn])
    attention = window_attention(call)
    rows, columns = block.inputs[0].shape[:2]
    height, width = whole.output[1].shape[2:]
    regions = attention.weights[:, :, 0, 1:].mean(dim=1)
    by_place = rearrange(
        regions, '(rows columns) (y x) -> (rows y) (columns x)', rows=rows, columns=columns, y=part.window
    )
    pixels = backbone.stage_strides[stage]
    name = 'from each region to its window'
    return [View(name, by_place[:height, :width], pixels, pixels * part.window, attention)]


@torch.no_grad()
def window_attention(call: Call) -> Attention:
    """The attention within windows: N windows, in each the region and then its local tokens."""
    module: Any = call.module
    x, bias = call.inputs
    q, k, v = rearrange(
        module.qkv(x), 'n tokens (three heads c) -> three n heads tokens c', three=3, heads=module.num_heads
    )
    return Attention(softmax(q, k, bias), v, 0.0, module.proj, call.output)


def look_at_sentences(backbone: Any, image: Tensor, stage: int, at: tuple[int, int]) -> list[View]:
    """PyramidTNT: how much the words of each sentence are attended to, and to which sentences the one at a pixel does.

    All are means over the heads. The words' map is the mean over the words that look, from the last block with words.
    """
    blocks = backbone.stages[stage].blocks
    inner = [block.words.attn for block in blocks if block.words is not None][-1]
    _, (words, sentences) = run(backbone, image, [inner, blocks[-1].attn])
    pixels = SENTENCE * 2**stage
    grid = tuple(sentences.inputs[0].shape[1:3])
    row, column = at[1] // pixels, at[0] // pixels
    index = row * grid[1] + column
    outer = sentence_attention(sentences, index)
    of_words = word_attention(words)
    keys = (grid[0] // sentences.module.reduction, grid[1] // sentences.module.reduction)
    by_place = rearrange(outer.weights[0, :, 0].mean(dim=0), '(h w) -> h w', h=keys[0])
    name = 'from the sentence to all sentences'
    place = square(column, row, pixels)
    return [
        View('among the words of each sentence', word_map(of_words, grid), pixels // WORDS_SIDE, pixels, of_words),
        word_view(of_words, index, at, pixels, grid),
        View(name, by_place, pixels * sentences.module.reduction, 0, outer, place),
    ]


def word_map(attention: Attention, grid: Sequence[int]) -> Tensor:
    """How much each word is attended to in its sentence: (4 rows, 4 columns) of a grid of sentences."""
    received = attention.weights.mean(dim=(1, 2))
    return rearrange(received, '(h w) (y x) -> (h y) (w x)', h=grid[0], w=grid[1], y=WORDS_SIDE)


def word_view(attention: Attention, index: int, at: tuple[int, int], pixels: int, grid: Sequence[int]) -> View:
    """To which words of its sentence the word at a pixel attends; the other sentences have no weights."""
    side = pixels // WORDS_SIDE
    column, row = at[0] // side, at[1] // side
    word = row % WORDS_SIDE * WORDS_SIDE + column % WORDS_SIDE
    weights = attention.weights.new_zeros(len(attention.weights), attention.weights.shape[-1])
    weights[index] = attention.weights[index, :, word].mean(dim=0)
    by_place = rearrange(weights, '(h w) (y x) -> (h y) (w x)', h=grid[0], w=grid[1], y=WORDS_SIDE)
    return View('from the word within its sentence', by_place, side, pixels, attention, square(column, row, side))


@torch.no_grad()
def word_attention(call: Call) -> Attention:
    """The attention among words: N sentences."""
    module: Any = call.module
    q, k, v = sentence_tokens(module, call.inputs[0])
    return Attention(softmax(q, k), v, 0.0, module.proj, call.output.flatten(1, 2))


@torch.no_grad()
def sentence_attention(call: Call, index: int) -> Attention:
    """The attention of one sentence, with the relative positions in the logits."""
    module: Any = call.module
    x, rel_pos = call.inputs
    q, k, v = sentence_tokens(module, x)
    positions = rel_pos.queries[:, :, [index]] @ rel_pos.keys.mT
    weights = softmax(q[:, :, [index]], k, positions)
    return Attention(weights, v, 0.0, module.proj, call.output.flatten(1, 2)[:, [index]])


def sentence_tokens(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (N, h, w, C) -> queries (N, heads, h * w, c), keys and values (N, heads, keys, c)."""
    q = rearrange(module.q(x), 'n h w (heads c) -> n heads (h w) c', heads=module.num_heads)
    kv = module.kv(module.pool(x))
    k, v = rearrange(kv, 'n h w (two heads c) -> two n heads (h w) c', two=2, heads=module.num_heads)
    return q, k, v


def softmax(q: Tensor, k: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """The weights (N, heads, queries, keys) of scaled dot-product attention."""
    return (q.shape[-1] ** -0.5 * q @ k.mT + bias).softmax(dim=-1)


def square(column: int, row: int, pixels: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge in pixels of a token."""
    return column * pixels, row * pixels, (column + 1) * pixels, (row + 1) * pixels


def over_image(places: Tensor, pixels: int, size: tuple[int, int]) -> Tensor:
    """A map (h, w) of tokens of so many pixels a side, in the pixels (H, W) of an image; 0 where no token is."""
    filled = repeat(places, 'h w -> (h y) (w x)', y=pixels, x=pixels)
    padding = (0, max(0, size[1] - filled.shape[1]), 0, max(0, size[0] - filled.shape[0]))
    return nn.functional.pad(filled, padding)[: size[0], : size[1]]


@dataclass(frozen=True)
class Call:
    """The last call of a module."""

    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any


def run(backbone: Backbone, image: Tensor, modules: Sequence[nn.Module]) -> tuple[tuple[Tensor, ...], list[Call]]:
    """The maps of an image, and the last call of each module, as the network is written.

    The code for CPUs passes modules by, and their hooks with them. It leaves the network alone where gradients are
    enabled; with detached parameters these cost nothing.
    """
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = Call(module, inputs, output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        with torch.enable_grad():
            weights = {name: value.detach() for name, value in backbone.named_parameters()}
            maps = functional_call(backbone, weights, (image,))
    finally:
        for handle in handles:
            handle.remove()
    return maps, [calls[module] for module in modules]
