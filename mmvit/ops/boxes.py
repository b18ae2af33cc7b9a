"""Non-maximum suppression and the overlaps of boxes. All boxes are (x1, y1, x2, y2) in pixels.

mmcv suppresses in float32, whatever the boxes' type is. So does this module, in mmcv's order of operations: boxes on
the CPU are kept and dropped as by mmcv even where an overlap lies at the threshold.
"""

from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import widened

NAIVE, LINEAR = 0, 1  # mmcv's numbers of soft-NMS methods; 2 is gaussian
IOU = 0  # mmcv's number of a mode of overlaps; 1 is iof, over the first box's area
SCORE = 4  # a row of the tables below


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (n, 4) that no better kept box overlaps by more than the threshold, best score first.

    A box is ``x2 - x1 + offset`` wide.
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    order = scores.sort(0, descending=True).indices  # as mmcv sorts them: torchvision orders equal scores another way
    boxes, scores = boxes[order], scores[order]
    threshold = np.float32(iou_threshold)
    if offset and boxes.device.type == 'cpu':
        groups = _groups(boxes.numpy(), threshold, np.greater, offset)
        kept = torch.tensor([first for first, _ in groups], dtype=torch.long)
    else:
        boxes[:, 2:] += offset  # torchvision knows none
        kept = torchvision.ops.nms(boxes, scores, float(threshold))
    return order[kept]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of the indices of ``dets`` (n, 5): a kept box, then those that it suppressed, best score first."""
    dets = dets.detach().cpu().float()
    order = dets[:, 4].contiguous().sort(0, descending=True).indices
    groups = _groups(dets[order, :4].numpy(), np.float32(iou_threshold), np.greater_equal, offset=0)
    return [order[[first, *others]].tolist() for first, others in groups]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes (n, 4) that keep a score of ``min_score``, in the order in which they were picked.

    The first rows of ``dets`` (n, 5) become these boxes with their lowered scores. The method is 0 for naive, 1 for
    linear and 2 for gaussian.
    """
    boxes, scores = boxes.detach().cpu().float(), scores.detach().cpu().float()
    thresholds = (np.float32(iou_threshold), np.float32(sigma), np.float32(min_score))
    with np.errstate(all='ignore'):  # numbers that are not finite
        picked, indices = _picked_softly(_table(boxes.numpy(), scores.numpy(), offset), *thresholds, method, offset)
    if indices:
        dets[: len(indices)] = torch.from_numpy(np.stack(picked))
    return torch.tensor(indices, dtype=torch.long)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Fills ``ious`` (m, n), or (m,) of aligned pairs, with intersection over union or over the first box's area.

    The mode is 0 for union and 1 for the first box's area. The overlap of two boxes without area is NaN, as mmcv's.
    """
    first, second = widened(bboxes1), widened(bboxes2)
    if not aligned:
        first = first[:, None]
    corner = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (corner - torch.maximum(first[..., :2], second[..., :2]) + offset).clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode == IOU:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(-1) - intersection
    ious.copy_(intersection / area.clamp(min=offset))


def _groups(
    boxes: np.ndarray, threshold: np.float32, exceeds: Callable[..., np.ndarray], offset: int
) -> list[tuple[int, np.ndarray]]:
    """Each kept box's position and those of the boxes that it suppresses; boxes (n, 4) come best score first."""
    groups = []
    left = np.arange(len(boxes))
    with np.errstate(all='ignore'):  # boxes that are not finite or have no area
        table = _table(boxes, np.zeros(len(boxes), np.float32), offset)
        while left.size:
            suppressed = exceeds(_overlaps(table[:, 0], table[:, 1:], offset), threshold)
            first, left, table = left[0], left[1:], table[:, 1:]
            groups.append((int(first), left[suppressed]))
            if suppressed.any():
                left, table = left[~suppressed], table[:, ~suppressed]
    return groups


def _picked_softly(
    table: np.ndarray, threshold: np.float32, sigma: np.float32, min_score: np.float32, method: int, offset: int
) -> tuple[list[np.ndarray], list[int]]:
    """The boxes that soft-NMS picks, each with its score then, and their indices."""
    picked, picked_indices = [], []
    indices = np.arange(table.shape[1])
    while indices.size:
        best = _position_of_best(table[SCORE])
        # mmcv swaps the best with the first; this decides which of two equal scores is picked next.
        table[:, [0, best]] = table[:, [best, 0]]
        indices[[0, best]] = indices[[best, 0]]
        picked.append(table[:5, 0].copy())
        picked_indices.append(int(indices[0]))
        first, table, indices = table[:, 0], table[:, 1:], indices[1:]
        table[SCORE] *= _decay(_overlaps(first, table, offset), threshold, sigma, method)
        dropped = table[SCORE] < min_score
        if dropped.any():
            order = _closed_up(dropped)
            table, indices = table[:, order], indices[order]
    return picked, picked_indices


def _table(boxes: np.ndarray, scores: np.ndarray, offset: int) -> np.ndarray:
    """Rows of x1, y1, x2, y2, score and area, one column for each box."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([x1, y1, x2, y2, scores, (x2 - x1 + offset) * (y2 - y1 + offset)])


def _overlaps(box: np.ndarray, table: np.ndarray, offset: int) -> np.ndarray:
    """Intersection over union of one column of a table with the columns of another; NaN for two boxes without area."""
    x1, y1, x2, y2, _, area = box
    width = np.minimum(x2, table[2]) - np.maximum(x1, table[0]) + offset
    height = np.minimum(y2, table[3]) - np.maximum(y1, table[1]) + offset
    intersection = np.fmax(width, 0) * np.fmax(height, 0)
    return intersection / (area + table[5] - intersection)


def _position_of_best(scores: np.ndarray) -> int:
    """Position of the first highest score. As in mmcv, NaN is picked only from the first position."""
    best = int(scores.argmax())
    if np.isnan(scores[best]) and best > 0:
        best = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
    return best


def _decay(overlaps: np.ndarray, threshold: np.float32, sigma: np.float32, method: int) -> np.ndarray:
    """Factors (n,) by which boxes that overlap a picked one lose score."""
    if method == NAIVE:
        return np.where(overlaps >= threshold, np.float32(0), np.float32(1))
    if method == LINEAR:
        return np.where(overlaps >= threshold, 1 - overlaps, np.float32(1))
    exponents = -(overlaps * overlaps) / sigma
    return np.exp(exponents, dtype=np.float64).astype(np.float32)  # NumPy's own exp in float32 rounds otherwise


def _closed_up(dropped: np.ndarray) -> np.ndarray:
    """Positions of the boxes that stay; as in mmcv, the last of them fill the places of those that were dropped."""
    stay = np.flatnonzero(~dropped)
    order = np.arange(stay.size)
    order[dropped[: stay.size]] = stay[stay >= stay.size][::-1]
    return order
