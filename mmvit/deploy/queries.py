"""mmdet's Deformable DETR and mmseg's Mask2Former as graphs. Shapes and sizes are those of ``detectors.py``."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

from mmvit.deploy.detectors import Detector, Size, checked, clipped, corners, top, with_sigmoid
from mmvit.deploy.graphs import Segmenter


class DeformableDETR(Detector):
    """Detector whose queries look at a few places of the maps. It returns ``max_per_img`` boxes for every image."""

    def __init__(self, model: Any) -> None:
        if model.data_preprocessor.pad_size_divisor > 1:
            raise ValueError('a Deformable DETR that pads has no graph: set model.data_preprocessor.pad_size_divisor=1')
        if model.as_two_stage:
            raise ValueError('a Deformable DETR with two stages has no graph: train it with model.as_two_stage=False')
        super().__init__(model)
        del model.backbone, model.neck  # they are the graph's own
        self.head = with_sigmoid(checked(model.bbox_head, 'DeformableDETRHead'))
        self.model = model
        self.model.encoder.get_encoder_reference_points = reference_points
        self.max_per_img = model.test_cfg.get('max_per_img', model.num_queries)

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        sample = SimpleNamespace(batch_input_shape=size, img_shape=size)  # alike: nothing in the image is padding
        states = self.model.forward_transformer(maps, [sample])
        last = len(states['hidden_states']) - 1
        state, reference = states['hidden_states'][last][0], inverse_sigmoid(states['references'][last][0])
        deltas = self.head.reg_branches[last](state)
        boxes = (deltas + F.pad(reference, (0, 4 - reference.shape[-1]))).sigmoid()
        probabilities = self.head.cls_branches[last](state).sigmoid()
        scores, order = top(probabilities.flatten(), self.max_per_img)
        classes = probabilities.shape[1]
        queries = torch.div(order, classes, rounding_mode='floor')
        seen = (size[0] + self.preprocessing.missing(size[0]), size[1] + self.preprocessing.missing(size[1]))
        return clipped(unnormalised(boxes, seen)[queries], size), scores, order % classes


class MaskSegmenter(Segmenter):
    """mmseg's EncoderDecoder with Mask2Former's head.

    A pixel's logits are the sum over the queries of class probability times mask probability.
    """

    def logits(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        classes, masks = (outputs[-1] for outputs in self.head(maps, None))
        masks = F.interpolate(masks, size=size, mode='bilinear', align_corners=False).sigmoid()
        return torch.einsum('bqc,bqhw->bchw', classes.softmax(-1)[..., :-1], masks)


GRAPHS = dict(DeformableDETR=DeformableDETR)


def unnormalised(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (N, 4) as centre, width and height in shares of an image -> corners in its pixels."""
    centre, extent = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - 0.5 * extent, centre + 0.5 * extent], -1) * corners(size, boxes)


def reference_points(shapes: Tensor, valid_ratios: Tensor, device: torch.device) -> Tensor:
    """Where the maps' pixels look first, (1, pixels, levels, 2): at their own place, in all maps.

    As mmdet's, which takes ``linspace``. That fails in ONNX for a map of one pixel.
    """
    own = torch.cat([centres(height, width, device) for height, width in shapes])
    return own[None, :, None] * valid_ratios[:, None]


def centres(height: Any, width: Any, device: torch.device) -> Tensor:
    """(x, y) of the pixels of a map, row by row, in shares of the map: (height * width, 2). Sizes may be tensors."""
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    return torch.stack([x, y], -1).reshape(-1, 2)
