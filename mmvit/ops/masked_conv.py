"""The two halves of a convolution that is computed at some places of one image only (mmcv's MaskedConv2d).

The places are given as two vectors (count,), their rows and columns. Guided anchoring uses it in inference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills the columns (channels * kernel_h * kernel_w, count) with the windows of the image (1, channels, h, w)."""
    after_h, after_w = max(kernel_h - 1 - pad_h, 0), max(kernel_w - 1 - pad_w, 0)  # a place may be the image's last
    padded = F.pad(im[0], (pad_w, after_w, pad_h, after_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Writes the values (channels, count) to their places in the image (1, channels, height, width)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
