"""RegionViT, plainly. Maps are (B, C, H, W); windows (B, h, w, 1 + window^2, C), region first."""

import torch
import torch.nn.functional as F
from torch.nn.functional import gelu

NOT_SEEN = -1e4


def forward(model, x):
    """The local-token maps of all built stages that ``out_indices`` asks for."""
    regional, local = stem(model.stem, x)
    for i, stage in enumerate(model.stages):
        regional, local = forward_stage(stage, regional, local)
        if i in model.out_indices:
            yield local


def stem(stem, x):
    height, width = x.shape[2:]
    patch = stem.patch
    padded = x
    if height % patch or width % patch:
        down, right = patch - height % patch, patch - width % patch
        padded = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    local = stem.local
    if not hasattr(local, 'conv1'):
        return stem.regional(padded), local.conv(x)
    x = gelu(layer_norm_2d(local.norm1, local.conv1(x)))
    x = gelu(layer_norm_2d(local.norm2, local.conv2(x)))
    return stem.regional(padded), local.conv3(x)


def forward_stage(stage, regional, local):
    projection = stage.projection
    if hasattr(projection, 'conv'):
        regional, local = (projection.conv(gelu(layer_norm_2d(projection.norm, x))) for x in (regional, local))
    window = stage.window
    size = local.shape[2:]
    windows = cut(regional, local, window)
    masks = window_masks(windows.shape[1:3], size, window, stage.exact_mask).to(local.device)
    for i, block in enumerate(stage.blocks):
        windows = forward_block(block, windows, masks, window)
        if i == 0 and stage.peg is not None:
            regional, local = join(windows, size, window)
            windows = cut(regional + stage.peg(regional), local + stage.peg(local), window)
    regional, local = join(windows, size, window)
    if hasattr(stage.det_norm, 'weight'):
        local = layer_norm_2d(stage.det_norm, local)
    return regional, local


def forward_block(block, windows, masks, window):
    batch, rows, columns, _, channels = windows.shape
    regions = windows[:, :, :, 0].reshape(batch, rows * columns, channels)
    regions = regions + attention(block.attn, block.norm0(regions), 0)
    windows = torch.cat([regions.view(batch, rows, columns, 1, channels), windows[:, :, :, 1:]], dim=3)
    added = relative_bias(block.attn.rel_pos_table, window)  # (heads, n, n)
    added = added + NOT_SEEN * (~masks)[:, :, None]  # (rows, columns, heads, n, n)
    windows = windows + attention(block.attn, block.norm1(windows), added)
    return windows + block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(windows))))


def attention(attn, x, added):
    """Among the tokens of the second last axis: (..., n, C) -> the same."""
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)  # (..., heads, n, C / heads) each
    weights = (q.shape[-1] ** -0.5 * q @ k.transpose(-2, -1) + added).softmax(-1)
    return attn.proj((weights @ v).transpose(-3, -2).flatten(-2))


def relative_bias(table, window):
    """(heads, 1 + window^2, 1 + window^2) of a table in the released, wrapped order; none for the region."""
    places = torch.arange(window**2, device=table.device)
    rows, columns = places // window, places % window
    dy = (rows[None] - rows[:, None] + window // 2) % (2 * window - 1)
    dx = (columns[None] - columns[:, None] + window // 2) % (2 * window - 1)
    return F.pad(table[:, dy * (2 * window - 1) + dx], (1, 0, 1, 0))


def window_masks(grid, size, window, exact):
    """Which tokens of each window may see one another: (rows, columns, 1 + window^2, 1 + window^2)."""
    masks = torch.ones(*grid, 1 + window**2, 1 + window**2, dtype=torch.bool)
    padded = [grid[i] * window - size[i] for i in (0, 1)]
    if not any(padded):
        return masks
    steps = torch.arange(window)
    valid_rows = (steps < window - padded[0])[:, None].expand(window, window).flatten()
    valid_columns = (steps < window - padded[1])[None, :].expand(window, window).flatten()
    pairs = [F.pad(valid, (1, 0), value=True) for valid in (valid_rows, valid_columns)]
    rows, columns = (valid[:, None] & valid[None, :] for valid in pairs)
    masks[-1, :] = rows
    masks[:, -1] = columns
    masks[-1, -1] = rows & columns if exact else rows | columns
    return masks


def cut(regional, local, window):
    """Maps to windows; the local map is filled up with zeros at right and bottom."""
    batch, channels, rows, columns = regional.shape
    local = F.pad(local, (0, columns * window - local.shape[3], 0, rows * window - local.shape[2]))
    local = local.view(batch, channels, rows, window, columns, window).permute(0, 2, 4, 3, 5, 1)
    local = local.reshape(batch, rows, columns, window**2, channels)
    return torch.cat([regional.permute(0, 2, 3, 1).unsqueeze(3), local], dim=3)


def join(windows, size, window):
    """Windows to the regional map and the local map, cropped."""
    batch, rows, columns, _, channels = windows.shape
    local = windows[:, :, :, 1:].reshape(batch, rows, columns, window, window, channels)
    local = local.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * window, columns * window)
    return windows[:, :, :, 0].permute(0, 3, 1, 2), local[:, :, : size[0], : size[1]]


def layer_norm_2d(norm, x):
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    scaled = (x - mean) / (variance + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
