"""Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159) by PyTorch's grid_sample.

Shapes: value (n, keys, heads, channels), sampling locations (n, queries, heads, levels, points, 2) as (x, y) from 0 to
1, attention weights (n, queries, heads, levels, points). The keys are the pixels of all levels' maps, row by row;
value_spatial_shapes (levels, 2) are the maps' heights and widths.
mmcv calls these functions for tensors on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widened


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """What the queries attend to: (n, queries, heads * channels)."""
    inputs = (widened(value), widened(sampling_locations), widened(attention_weights))
    return _attended(value_spatial_shapes.tolist(), *inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Adds the gradients to the three ``grad_`` tensors."""
    inputs = [widened(tensor).detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attended(value_spatial_shapes.tolist(), *inputs)
    grads = torch.autograd.grad(output, inputs, widened(grad_output))
    for filled, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        filled += grad


def _attended(shapes: list[list[int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (n * heads, queries, levels, points, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (n * heads, 1, queries, levels, points)
    output = value.new_zeros(batch * heads, channels, queries)
    levels = value.split([height * width for height, width in shapes], dim=1)
    for number, (level, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        samples = F.grid_sample(maps, grids[:, :, number], mode='bilinear', padding_mode='zeros', align_corners=False)
        output = output + (samples * weights[:, :, :, number]).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
