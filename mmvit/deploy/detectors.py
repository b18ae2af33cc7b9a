"""mmdet's RetinaNet, ATSS, Mask R-CNN and Cascade Mask R-CNN, and detectron2's variants of them, as graphs.

One image at a time. Boxes are (x1, y1, x2, y2) in pixels of the input. ``size`` is (H, W), without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from mmvit import detectron2
from mmvit.deploy.graphs import Preprocessing, min_size

Size = tuple[int, int]
WH_RATIO_CLIP = 16 / 1000  # how far mmdet's coder lets a box shrink; the inverse for growth


class Detector(nn.Module):
    """Base class: image (1, 3, H, W) -> boxes (N, 4), scores (N,), labels (N,), best first."""

    outputs: tuple[str, ...] = ('boxes', 'scores', 'labels')
    test_cfg: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        divisor = model.data_preprocessor.pad_size_divisor
        self.preprocessing = Preprocessing(model.data_preprocessor, divisor, min_size(model))
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.neck(self.backbone(self.preprocessing(image)))
        return self.detect(maps, (image.shape[2], image.shape[3]))

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """What the maps of the neck show."""
        raise NotImplementedError


class RetinaNet(Detector):
    """One-stage detector with anchors and a score for each class, RetinaNet or ATSS."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = with_sigmoid(checked(model.bbox_head, 'RetinaHead', 'ATSSHead'))
        self.test_cfg = model.test_cfg
        check_nms(self.test_cfg.nms)

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        levels = zip(*self.head(maps), anchors(self.head.prior_generator, maps), strict=True)
        best = (self.best(*outputs, priors=priors, size=size) for *outputs, priors in levels)
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*best, strict=True))
        is_detectron2 = isinstance(self.head, detectron2.RetinaHead)
        if not is_detectron2 and self.test_cfg.get('min_bbox_size', -1) >= 0:
            large = has_area(boxes, self.test_cfg.min_bbox_size)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        kept = nms(boxes, scores, labels, self.test_cfg.nms.iou_threshold)[: self.test_cfg.max_per_img]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if is_detectron2:
            boxes = clipped(boxes, size)
            kept = has_area(boxes)
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return boxes, scores, labels

    def best(
        self, logits: Tensor, deltas: Tensor, *centerness: Tensor, priors: Tensor, size: Size
    ) -> tuple[Tensor, ...]:
        """Boxes, scores and labels of a level's best anchors. ATSS's scores are times the centerness."""
        scores = per_anchor(logits, self.head.cls_out_channels).sigmoid()
        rows, labels = (scores > self.test_cfg.score_thr).nonzero().unbind(1)
        scores, order = top(scores[rows, labels], self.test_cfg.nms_pre)
        rows = rows[order]
        for factor in centerness:
            scores = scores * per_anchor(factor, 1)[rows, 0].sigmoid()
        boxes = decoded(self.head.bbox_coder, priors[rows], per_anchor(deltas, 4)[rows], size)
        return boxes, scores, labels[order]


class FasterRCNN(Detector):
    """Two-stage detector."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.rpn_head = checked(model.rpn_head, 'RPNHead')
        self.rpn_cfg = model.test_cfg.rpn
        self.test_cfg = model.test_cfg.rcnn
        check_nms(self.rpn_cfg.nms)
        check_nms(self.test_cfg.nms)
        self.take_roi_head(checked(model.roi_head, 'StandardRoIHead', 'CascadeRoIHead'))
        for head in self.box_heads():
            checked(head, 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')

    def take_roi_head(self, roi_head: Any) -> None:
        """Keep the parts of mmdet's RoI head."""
        self.bbox_extractor, self.bbox_head = roi_head.bbox_roi_extractor, roi_head.bbox_head

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        boxes, probabilities = self.classified(maps, self.proposals(maps, size), size)
        return self.selected(boxes, probabilities)

    def proposals(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """Boxes (N, 4) of the RPN, best first."""
        levels = zip(*self.rpn_head(maps), anchors(self.rpn_head.prior_generator, maps), strict=True)
        boxes, scores, groups = [], [], []
        for i, (logits, deltas, priors) in enumerate(levels):
            level_scores, order = top(self.ranked(per_anchor(logits, 1)[:, 0]), self.rpn_cfg.nms_pre)
            boxes.append(decoded(self.rpn_head.bbox_coder, priors[order], per_anchor(deltas, 4)[order], size))
            scores.append(level_scores)
            groups.append(torch.full_like(order, i))
        all_boxes, all_scores, all_groups = torch.cat(boxes), torch.cat(scores), torch.cat(groups)
        if self.rpn_cfg.get('min_bbox_size', -1) >= 0:
            large = has_area(all_boxes, self.rpn_cfg.min_bbox_size)
            all_boxes, all_scores, all_groups = all_boxes[large], all_scores[large], all_groups[large]
        kept = nms(all_boxes, all_scores, all_groups, self.rpn_cfg.nms.iou_threshold)
        return all_boxes[kept[: self.rpn_cfg.max_per_img]]

    def ranked(self, logits: Tensor) -> Tensor:
        """What proposals are ranked by: their probabilities, or their logits as in detectron2."""
        return logits if isinstance(self.rpn_head, detectron2.RPNHead) else logits.sigmoid()

    def classified(self, maps: Sequence[Tensor], proposals: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Boxes (N, C or 1, 4) and class probabilities (N, C + 1), background last, of the proposals (N, 4)."""
        logits, deltas = self.bbox_head(pooled(self.bbox_extractor, maps, proposals))
        return refined(self.bbox_head, proposals, deltas, size), logits.softmax(-1)

    def selected(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of what is above the threshold and survives NMS."""
        probabilities = probabilities[:, :-1]
        rows, labels = (probabilities > self.test_cfg.score_thr).nonzero().unbind(1)
        boxes, scores = boxes.expand(-1, probabilities.shape[1], -1)[rows, labels], probabilities[rows, labels]
        kept = nms(boxes, scores, labels, self.test_cfg.nms.iou_threshold)[: self.test_cfg.max_per_img]
        if isinstance(self.box_heads()[-1], detectron2.Shared2FCBBoxHead):
            kept = kept[has_area(boxes[kept])]
        return boxes[kept], scores[kept], labels[kept]

    def box_heads(self) -> list[Any]:
        """The heads that classify and move boxes. The last one says which are returned."""
        return [self.bbox_head]


class CascadeRCNN(FasterRCNN):
    """Two-stage detector whose box heads refine one another's boxes."""

    def take_roi_head(self, roi_head: Any) -> None:
        self.bbox_extractors, self.bbox_heads = roi_head.bbox_roi_extractor, roi_head.bbox_head
        self.averages_probabilities = isinstance(roi_head, detectron2.CascadeRoIHead)

    def classified(self, maps: Sequence[Tensor], proposals: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Boxes of the last head; the mean of the heads' logits, or of their probabilities as in detectron2."""
        results = []
        for extractor, head in zip(self.bbox_extractors, self.bbox_heads, strict=True):
            logits, deltas = head(pooled(extractor, maps, proposals))
            boxes = refined(head, proposals, deltas, size)
            results.append(logits.softmax(-1) if self.averages_probabilities else logits)
            best = logits[:, :-1].argmax(1, keepdim=True)[..., None].expand(-1, -1, 4)
            proposals = (boxes if head.reg_class_agnostic else boxes.gather(1, best))[:, 0]
        mean = torch.stack(results).sum(0) / len(results)
        return boxes, mean if self.averages_probabilities else mean.softmax(-1)

    def box_heads(self) -> list[Any]:
        return list(self.bbox_heads)


class WithMasks(FasterRCNN):
    """Adds masks (N, 28, 28), probabilities within the boxes. With several mask heads it is their mean."""

    outputs = ('boxes', 'scores', 'labels', 'masks')

    def take_roi_head(self, roi_head: Any) -> None:
        super().take_roi_head(roi_head)
        extractors, heads = roi_head.mask_roi_extractor, roi_head.mask_head
        self.mask_extractors = extractors if isinstance(extractors, nn.ModuleList) else nn.ModuleList([extractors])
        self.mask_heads = heads if isinstance(heads, nn.ModuleList) else nn.ModuleList([heads])

    def detect(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        boxes, scores, labels = super().detect(maps, size)
        masks = [
            self.mask(extractor, head, maps, boxes, labels)
            for extractor, head in zip(self.mask_extractors, self.mask_heads, strict=True)
        ]
        return boxes, scores, labels, torch.stack(masks).mean(0)

    @staticmethod
    def mask(extractor: Any, head: Any, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of the boxes' own classes."""
        masks = checked(head, 'FCNMaskHead')(pooled(extractor, maps, boxes)).sigmoid()
        if head.class_agnostic:
            return masks[:, 0]
        return masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]


class MaskRCNN(WithMasks, FasterRCNN):
    """Mask R-CNN."""


class CascadeMaskRCNN(WithMasks, CascadeRCNN):
    """Cascade Mask R-CNN."""


def cascade(model: Any) -> Detector:
    """mmdet's CascadeRCNN, which has masks if its RoI head has."""
    return CascadeMaskRCNN(model) if model.roi_head.with_mask else CascadeRCNN(model)


GRAPHS = dict(RetinaNet=RetinaNet, ATSS=RetinaNet, FasterRCNN=FasterRCNN, MaskRCNN=MaskRCNN, CascadeRCNN=cascade)


def checked(part: Any, *kinds: str) -> Any:
    """The part of a detector if it is of one of these kinds (or of detectron2's of this name), else ValueError."""
    if type(part).__name__ not in kinds:
        raise ValueError(f'{type(part).__name__} has no graph; in its place {" or ".join(kinds)} has one')
    return part


def with_sigmoid(head: Any) -> Any:
    """The head if it scores each class by itself, else ValueError."""
    if not head.loss_cls.use_sigmoid:
        raise ValueError(f'{type(head).__name__} with softmax has no graph: set loss_cls.use_sigmoid=True')
    return head


def check_nms(cfg: dict) -> None:
    """Raise ValueError unless it is plain NMS."""
    if cfg.get('type') != 'nms' or cfg.get('class_agnostic'):
        raise ValueError(f"only nms=dict(type='nms', iou_threshold=...) has a graph, not {dict(cfg)}")


def anchors(generator: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    """The anchors (h * w * A, 4) of each map."""
    checked(generator, 'AnchorGenerator')
    grids = zip(maps, generator.base_anchors, generator.strides, strict=True)
    return [level_anchors(x, base.to(x), stride) for x, base, stride in grids]


def level_anchors(x: Tensor, base: Tensor, stride: tuple[int, int]) -> Tensor:
    """The anchors of one map (1, C, h, w): ``base`` (A, 4) at each of its places."""
    columns = torch.arange(x.shape[3], device=x.device).to(x.dtype) * stride[0]
    rows = torch.arange(x.shape[2], device=x.device).to(x.dtype) * stride[1]
    rows, columns = torch.meshgrid(rows, columns, indexing='ij')
    places = torch.stack([columns, rows, columns, rows], -1)
    return (places[:, :, None] + base).reshape(-1, 4)


def per_anchor(x: Tensor, channels: int) -> Tensor:
    """A head's map (1, A * channels, h, w) -> (h * w * A, channels)."""
    return x[0].permute(1, 2, 0).reshape(-1, channels)


def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores, or all if there are fewer, and their indices; best first."""
    count: Any = torch.as_tensor(scores.shape[0]).clamp(max=k)  # a tensor stays open when it is traced
    return scores.topk(count)


def decoded(coder: Any, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
    """Boxes moved by the deltas (N, 4) as mmdet's DeltaXYWHBBoxCoder does, within the image if it clips."""
    checked(coder, 'DeltaXYWHBBoxCoder')
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    extent = boxes[:, 2:] - boxes[:, :2]
    shift = extent * deltas[:, :2]
    bound = abs(log(WH_RATIO_CLIP))
    if coder.add_ctr_clamp:
        shift = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp)
        growth = deltas[:, 2:].clamp(max=bound)
    else:
        growth = deltas[:, 2:].clamp(-bound, bound)
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + shift
    half = extent * growth.exp() * 0.5
    moved = torch.cat([centre - half, centre + half], -1)
    return clipped(moved, size) if coder.clip_border else moved


def refined(head: Any, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
    """The boxes (N, 4) moved by a box head's deltas, for each class: (N, C or 1, 4)."""
    classes = 1 if head.reg_class_agnostic else head.num_classes
    repeated = boxes[:, None].expand(-1, classes, -1).reshape(-1, 4)
    return decoded(head.bbox_coder, repeated, deltas.reshape(-1, 4), size).reshape(-1, classes, 4)


def pooled(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """The features (N, C, s, s) of the boxes (N, 4), each from the map for its size."""
    checked(extractor, 'SingleRoIExtractor')
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    levels = extractor.map_roi_levels(rois, len(extractor.roi_layers))
    parts, places = [], []
    for i, (layer, x) in enumerate(zip(extractor.roi_layers, maps, strict=False)):  # a neck may have more maps
        at = (levels == i).nonzero()[:, 0]
        places.append(at)
        settings = (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        parts.append(torchvision.ops.roi_align(x, rois[at], *settings))
    return torch.cat(parts)[torch.cat(places).argsort()]


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one of their group overlaps, best first.

    Groups are moved apart, as in mmcv: rounding decides some overlaps.
    """
    farthest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # nothing has no maximum
    apart = boxes + (groups.to(boxes.dtype) * (farthest + 1))[:, None]
    return torchvision.ops.nms(apart, scores, iou_threshold)


def clipped(boxes: Tensor, size: Size) -> Tensor:
    """The boxes cut at the image's border."""
    return torch.minimum(boxes.clamp(min=0), corners(size, boxes))


def corners(size: Size, like: Tensor) -> Tensor:
    """(width, height, width, height) of an image."""
    height, width = (torch.as_tensor(n, device=like.device).to(like.dtype) for n in size)
    return torch.stack([width, height, width, height])


def has_area(boxes: Tensor, least: float = 0) -> Tensor:
    """Whether a box is wider and higher than this."""
    extent = boxes[:, 2:] - boxes[:, :2]
    return (extent > least).all(1)
