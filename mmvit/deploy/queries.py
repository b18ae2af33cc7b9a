"""mmdet's Deformable DETR, DINO and Mask2Former, and mmseg's Mask2Former, as graphs.

Shapes and sizes are those of ``detectors.py``. The heads, encoders and decoders are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

from mmvit.deploy.detectors import Detector, Size, checked, clipped, corners, top, with_sigmoid
from mmvit.deploy.graphs import Preprocessing, Segmenter, min_size


class DeformableDETR(Detector):
    """Detector whose queries look at a few places of the maps. It returns ``max_per_img`` boxes for every image."""

    def __init__(self, model: Any) -> None:
        kind = type(model).__name__
        if model.data_preprocessor.pad_size_divisor > 1:
            raise ValueError(f'a {kind} that pads has no graph: set model.data_preprocessor.pad_size_divisor=1')
        super().__init__(model)
        if model.as_two_stage:
            self.preprocessing = WithEnoughPixels(model)
        del model.backbone, model.neck  # they are the graph's own
        self.head = with_sigmoid(checked(model.bbox_head, 'DeformableDETRHead', 'DINOHead'))
        self.model = with_open_sizes(model)
        self.max_per_img = model.test_cfg.get('max_per_img', model.num_queries)

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        sample = SimpleNamespace(batch_input_shape=size, img_shape=size)  # alike: nothing in the image is padding
        states = self.model.forward_transformer(maps, [sample])
        last = len(states['hidden_states']) - 1
        state, reference = states['hidden_states'][last][0], inverse_sigmoid(states['references'][last][0])
        deltas = self.head.reg_branches[last](state)
        boxes = (deltas + F.pad(reference, (0, 4 - reference.shape[-1]))).sigmoid()
        scores, labels, queries = best(self.head.cls_branches[last](state).sigmoid(), self.max_per_img)
        bottom, right = self.preprocessing.padding(*size)
        seen = (size[0] + bottom, size[1] + right)
        return clipped(unnormalised(boxes, seen)[queries], size), scores, labels


class Levels:
    """The maps of a detector that selects its queries from their pixels.

    Attributes:
        strides: Of the maps.
        queries: How many are selected.
    """

    def __init__(self, model: Any) -> None:
        self.strides = strides_of(model)
        self.queries = model.num_queries

    def enlarged(self, height: Any, width: Any) -> tuple[Any, Any]:
        """The size itself if its maps have a pixel for each query, or else with its short sides enlarged.

        Sizes may be tensors.
        """
        pixels = [((height + stride - 1) // stride) * ((width + stride - 1) // stride) for stride in self.strides]
        few = 1 * (sum(pixels) < self.queries)  # a number, for a traced truth value cannot be multiplied
        least = ceil(self.queries**0.5) * min(self.strides)  # a square of this side has enough in its largest map
        return height + few * (least - height) * (height < least), width + few * (least - width) * (width < least)


class WithEnoughPixels(Preprocessing):
    """Preprocessing that enlarges an image that is too small to select the queries from: mmdet fails for it."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.data_preprocessor, 1, min_size(model))
        self.levels = Levels(model)

    def padding(self, height: int, width: int) -> tuple[int, int]:
        bottom, right = super().padding(height, width)
        large = self.levels.enlarged(height + bottom, width + right)
        return large[0] - height, large[1] - width


class Mask2Former(Detector):
    """Detector whose queries are masks, of which boxes are the bounds. Of a panoptic one, the things.

    ``masks`` (N, h, w) are logits of the whole padded image, a cell for ``mask_stride`` pixels.
    """

    outputs = ('boxes', 'scores', 'labels', 'masks')

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.mask_stride = strides_of(model)[0]
        if self.preprocessing.divisor % self.mask_stride:
            raise ValueError('a Mask2Former has no graph unless it pads: set data_preprocessor.pad_size_divisor=32')
        test_cfg = model.panoptic_fusion_head.test_cfg
        if not test_cfg.get('instance_on'):
            raise ValueError('a Mask2Former without instances has no graph: set model.test_cfg.instance_on=True')
        self.head = checked(model.panoptic_head, 'Mask2FormerHead')
        self.max_per_image = test_cfg.get('max_per_image', 100)

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        logits, masks = (outputs[-1][0] for outputs in self.head(maps, None))
        scores, labels, queries = best(logits.softmax(-1)[:, :-1], self.max_per_image)
        masks = masks[queries]
        if self.head.num_stuff_classes:
            things = labels < self.head.num_things_classes
            scores, labels, masks = scores[things], labels[things], masks[things]
        enlarged = F.interpolate(masks[:, None], scale_factor=self.mask_stride, mode='bilinear', align_corners=False)
        enlarged = enlarged[:, 0, : size[0], : size[1]]
        inside = enlarged > 0
        certainty = (enlarged.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        scores, order = top(scores * certainty, self.max_per_image)
        return bounds(inside[order]), scores, labels[order], masks[order]


class MaskSegmenter(Segmenter):
    """mmseg's EncoderDecoder with Mask2Former's head.

    A pixel's logits are the sum over the queries of class probability times mask probability.
    """

    def logits(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        classes, masks = (outputs[-1] for outputs in self.head(maps, None))
        masks = F.interpolate(masks, size=size, mode='bilinear', align_corners=False).sigmoid()
        return torch.einsum('bqc,bqhw->bchw', classes.softmax(-1)[..., :-1], masks)


GRAPHS = dict(DeformableDETR=DeformableDETR, DINO=DeformableDETR, Mask2Former=Mask2Former)


def best(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes and queries of the k highest probabilities (queries, classes), best first."""
    scores, order = top(probabilities.flatten(), k)
    classes = probabilities.shape[1]
    return scores, order % classes, torch.div(order, classes, rounding_mode='floor')


def strides_of(model: Any) -> list[int]:
    """Strides of the maps that a detector's head gets."""
    side = 256  # a multiple of all
    model.eval()  # or the image would change the statistics of batch norms
    with torch.no_grad():
        return [side // x.shape[-1] for x in model.extract_feat(torch.zeros(1, 3, side, side))]


def unnormalised(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (N, 4) as centre, width and height in shares of an image -> corners in its pixels."""
    centre, extent = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - 0.5 * extent, centre + 0.5 * extent], -1) * corners(size, boxes)


def bounds(inside: Tensor) -> Tensor:
    """The smallest boxes (N, 4) around masks (N, H, W), bool; zeros around an empty mask."""
    low, high = zip(*(ends(inside.any(axis)) for axis in (1, 2)), strict=True)
    return torch.stack([*low, *high], -1)


def ends(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first true value of each row (N, n) begins, and where the last one ends. 0 if all are false.

    By multiplication alone: NNCF would make 8-bit integers of what a minimum takes.
    """
    length = inside.shape[1]
    places = torch.arange(length, device=inside.device).to(torch.float32)
    last = ((places + 1) * inside).amax(1)
    return (length - ((length - places) * inside).amax(1)) * (last > 0), last


def with_open_sizes(model: Any) -> Any:
    """The model with the places of pixels by ``arange``: ONNX's ``linspace`` fails for a map of one pixel."""
    model.encoder.get_encoder_reference_points = reference_points
    model.gen_encoder_output_proposals = partial(proposals, model)
    return model


def reference_points(shapes: Tensor, valid_ratios: Tensor, device: torch.device) -> Tensor:
    """Where the maps' pixels look first, (1, pixels, levels, 2): at their own place, in all maps."""
    own = torch.cat([centres(height, width, device) for height, width in shapes])
    return own[None, :, None] * valid_ratios[:, None]


def proposals(model: Any, memory: Tensor, mask: None, shapes: Tensor) -> tuple[Tensor, Tensor]:
    """Features (1, pixels, C) and boxes (1, pixels, 4), as logits of shares of the image, to select queries from.

    Pixels within 1 % of the border have no features and infinite boxes.
    """
    levels = [centres(height, width, memory.device) for height, width in shapes]
    extents = [torch.full_like(level, 0.05 * 2**i) for i, level in enumerate(levels)]
    boxes = torch.cat([torch.cat(levels), torch.cat(extents)], -1)[None]
    # A map of 50 pixels has a centre at 0.01, which mmdet counts as outside. Engines round it up or down.
    outside = ~((boxes > 0.01 + 1e-6) & (boxes < 0.99 - 1e-6)).all(-1, keepdim=True)
    memory = model.memory_trans_norm(model.memory_trans_fc(memory.masked_fill(outside, 0.0)))
    return memory, torch.log(boxes / (1 - boxes)).masked_fill(outside, float('inf'))


def centres(height: Any, width: Any, device: torch.device) -> Tensor:
    """(x, y) of the pixels of a map, row by row, in shares of the map: (height * width, 2). Sizes may be tensors."""
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    return torch.stack([x, y], -1).reshape(-1, 2)
