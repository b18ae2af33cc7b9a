"""PyramidTNT, plainly. Words are (B*N, 16, c), sentences (B, N, C) on a grid of height x width."""

from math import ceil

import torch.nn.functional as F
from torch.nn.functional import gelu


def forward(model, x):
    """The sentence maps of all built stages that ``out_indices`` asks for."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 8, 0, -height % 8))
    words, sentences, grid = stem(model.stem, x)
    for i, stage in enumerate(model.stages):
        if i:
            words = merge_words(stage.word_merge, words, len(x), grid)
            sentences, grid = merge_sentences(stage.sentence_merge, sentences, grid)
        keys = (grid[0] // stage.reduction, grid[1] // stage.reduction)
        bias = resize_relative(stage.relative_pos, stage.grid, grid, stage.reduction, keys)
        for block in stage.blocks:
            words, sentences = forward_block(block, words, sentences, grid, bias)
        if i in model.out_indices:
            out = sentences.transpose(1, 2).reshape(len(x), -1, *grid)
            if model.upsample:
                stride = model.stage_strides[i]
                out = F.interpolate(out, scale_factor=2, mode='bilinear')
                out = out[:, :, : ceil(height / stride), : ceil(width / stride)]
            yield out


def stem(stem, x):
    x = conv_norm_relu(stem.common, x)
    words = conv_norm_relu(stem.inner, x)
    for layer in stem.outer:
        x = conv_norm_relu(layer, x)
    batch, height, width = len(x), *x.shape[2:]
    words = words.view(batch, -1, height, 4, width, 4).permute(0, 2, 4, 3, 5, 1)
    words = words.reshape(batch * height * width, 16, -1) + stem.inner_pos
    pos = resize_map(stem.outer_pos, stem.grid, (height, width))
    return words, x.flatten(2).transpose(1, 2) + pos, (height, width)


def conv_norm_relu(layer, x):
    return layer.norm(layer.conv(x)).relu()


def forward_block(block, words, sentences, grid, bias):
    part = block.words
    if part is not None:
        per_sentence = (*sentences.shape[:2], -1)

        def normed(norm):
            return norm(words.reshape(per_sentence)).view(words.shape)

        words = words + attention(part.attn, normed(part.norm1))
        words = words + part.mlp.fc2(gelu(part.mlp.fc1(normed(part.norm2))))
        sentences = sentences + part.proj_norm2(part.proj(part.proj_norm1(words.reshape(per_sentence))))
    sentences = sentences + attention(block.attn, block.norm1(sentences), grid, bias)
    return words, sentences + block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(sentences))))


def attention(attn, x, grid=None, bias=0):
    batch, count, channels = x.shape
    source = x
    if attn.reduction > 1:
        pooled = F.avg_pool2d(x.transpose(1, 2).reshape(batch, channels, *grid), attn.reduction)
        source = attn.norm(attn.linear(pooled.flatten(2).transpose(1, 2)))
    q = attn.q(x).view(batch, count, attn.num_heads, -1).transpose(1, 2)
    k, v = attn.kv(source).view(batch, source.shape[1], 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q.shape[-1] ** -0.5 * (q @ k.transpose(2, 3)) + bias).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(batch, count, channels))


def merge_sentences(merge, sentences, grid):
    x = merge.norm(sentences).transpose(1, 2).reshape(len(sentences), -1, *grid)
    x = merge.conv(x)
    return x.flatten(2).transpose(1, 2), x.shape[2:]


def merge_words(merge, words, batch, grid):
    """The 4x4 words of 2x2 sentences side by side, convolved to the 4x4 words of one."""
    words = merge.norm(words)
    words = words.view(batch, *grid, 4, 4, -1)
    words = F.pad(words, (0, 0, 0, 0, 0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    height, width = words.shape[1] // 2, words.shape[2] // 2
    words = words.view(batch, height, 2, width, 2, 4, 4, -1).permute(0, 1, 3, 7, 2, 5, 4, 6)
    x = merge.conv(words.reshape(batch * height * width, -1, 8, 8))
    return x.flatten(2).transpose(1, 2)


def resize_map(pos, trained, grid):
    if trained == tuple(grid):
        return pos
    table = pos.transpose(1, 2).view(1, -1, *trained)
    return F.interpolate(table, grid, mode='bicubic').flatten(2).transpose(1, 2)


def resize_relative(table, trained, grid, reduction, keys):
    """A table (1, heads, N, M): first the keys of every query, then the queries of every key."""
    if trained == tuple(grid):
        return table
    heads, queries = table.shape[1:3]
    old_keys = (trained[0] // reduction, trained[1] // reduction)
    out = F.interpolate(table.view(heads, queries, *old_keys), keys, mode='bicubic').flatten(2)
    out = F.interpolate(out.mT.reshape(heads, -1, *trained), grid, mode='bicubic').flatten(2)
    return out.mT[None]
