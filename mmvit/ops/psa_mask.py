"""PSANet's attention maps from the masks that a convolution makes (Zhao et al., ECCV 2018).

A mask (n, h_mask * w_mask, h_feature, w_feature) holds for each pixel a window of values around it. The operator moves
them to (n, h_feature * w_feature, h_feature, w_feature), where each pair of pixels has a value: zero where one lies
outside the other's window. In collect mode the window is that of the pair's last pixel, in distribute
mode that of its first.
"""

import torch
from torch import Tensor

COLLECT = 0  # mmcv's number for it; 1 is distribute


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fills the output from the mask, which is the input."""
    masks = input.unflatten(1, (h_mask, w_mask))
    h, w = _range(h_feature, input), _range(w_feature, input)
    rows, columns = h[:, None] - h + half_h_mask, w[:, None] - w + half_w_mask
    _move(masks, rows, columns, to=_pairs(output, psa_type, h_feature, w_feature))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fills the mask's gradient from the output's: each value of a mask has one place in the output, or none."""
    rows = _range(h_mask, grad_input)[:, None] + _range(h_feature, grad_input) - half_h_mask
    columns = _range(w_mask, grad_input)[:, None] + _range(w_feature, grad_input) - half_w_mask
    pairs = _pairs(grad_output, psa_type, h_feature, w_feature)
    _move(pairs, rows, columns, to=grad_input.unflatten(1, (h_mask, w_mask)))


def _range(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def _pairs(output: Tensor, psa_type: int, h_feature: int, w_feature: int) -> Tensor:
    """A view of the output: (n, h_feature, w_feature, h_feature, w_feature), the window's owner last."""
    pairs = output.unflatten(1, (h_feature, w_feature))
    return pairs if psa_type == COLLECT else pairs.permute(0, 3, 4, 1, 2)


def _move(source: Tensor, rows: Tensor, columns: Tensor, to: Tensor) -> None:
    """Fills ``to[n, i, j, h, w]`` with ``source[n, rows[i, h], columns[j, w], h, w]``, or 0 where there is none.

    A row at a time, for the places of all rows would take more memory than the values.
    """
    h, w = _range(source.shape[3], source)[:, None], _range(source.shape[4], source)
    row_inside = (rows >= 0) & (rows < source.shape[1])
    column_inside = (columns >= 0) & (columns < source.shape[2])
    rows, columns = rows.clamp(0, source.shape[1] - 1), columns.clamp(0, source.shape[2] - 1)
    for i in range(to.shape[1]):
        values = source[:, rows[i][:, None], columns[:, None], h, w]
        inside = row_inside[i][:, None] & column_inside[:, None]
        to[:, i] = values.masked_fill_(~inside, 0)
