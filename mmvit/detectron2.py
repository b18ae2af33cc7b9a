"""What detectron2 does and no option of mmdet's says, for detectors that were trained there.

Configs name these classes by their place (``type='mmvit.detectron2.RetinaHead'``), not by a registry: the registry's
modules must be importable without mmdet.
"""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
import torch
import torchvision
from mmdet.datasets.transforms import Resize as _Resize
from mmdet.models.dense_heads import RetinaHead as _RetinaHead
from mmdet.models.dense_heads import RPNHead as _RPNHead
from mmdet.models.roi_heads import CascadeRoIHead as _CascadeRoIHead
from mmdet.models.roi_heads import Shared2FCBBoxHead as _Shared2FCBBoxHead
from mmdet.structures.bbox import scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor


class Resize(_Resize):
    """Resizes to the size that detectron2 computes, which is one pixel from mmdet's for some images.

    Args:
        scale: Long and short side in pixels, in either order.
        keep_ratio: True: scale to this short side, or to less where the long side would be longer than this. False:
            make every image exactly of these sides, with the long one upright if the image is higher than wide.
        kwargs: mmdet's other options, such as ``backend``.
    """

    def __init__(self, scale: int | tuple[int, int], keep_ratio: bool = False, **kwargs: Any) -> None:
        super().__init__(scale=scale, keep_ratio=keep_ratio, **kwargs)

    def _resize_img(self, results: dict) -> None:
        height, width = results['img'].shape[:2]
        short, long = sorted(self.scale)
        if self.keep_ratio:
            new_height, new_width = (int(side) for side in shortest_edge_size(height, width, short, long))
        else:
            new_height, new_width = (long, short) if height > width else (short, long)
        results['scale'] = new_width, new_height
        results['img'] = self._resized(results['img'], results['scale'], self.interpolation)
        results['img_shape'] = new_height, new_width
        results['scale_factor'] = new_width / width, new_height / height
        results['keep_ratio'] = self.keep_ratio

    def _resize_masks(self, results: dict) -> None:
        if results.get('gt_masks') is not None:
            results['gt_masks'] = results['gt_masks'].resize(results['img_shape'])

    def _resize_seg(self, results: dict) -> None:
        if results.get('gt_seg_map') is not None:
            results['gt_seg_map'] = self._resized(results['gt_seg_map'], results['scale'], 'nearest')

    def _resized(self, image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
        return mmcv.imresize(image, size, interpolation=interpolation, backend=self.backend)


def shortest_edge_size(
    height: int | np.ndarray, width: int | np.ndarray, short: int, long: int
) -> tuple[np.ndarray, np.ndarray]:
    """The height and width that detectron2's ResizeShortestEdge gives images.

    It rounds after two multiplications. One with the product of the factors rounds some halves the other way.

    Args:
        height: Of one image, or of many.
        width: Likewise.
        short: What the short side becomes,
        long: unless the long one would become longer than this.
    """
    scale = short / np.minimum(height, width)
    sides = np.where(height < width, short, scale * height), np.where(height < width, scale * width, short)
    cap = np.minimum(1.0, long / np.maximum(*sides))
    new_height, new_width = ((side * cap + 0.5).astype(int) for side in sides)
    return new_height, new_width


class RPNHead(_RPNHead):
    """Ranks proposals by their logits, where mmdet ranks float32 sigmoids, which tie where logits are large."""

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list[Tensor],
        mlvl_priors: list[Tensor],
        img_meta: dict,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        cfg = cfg or self.test_cfg
        levels = [
            InstanceData(logits=logits.permute(1, 2, 0).flatten(), deltas=deltas.permute(1, 2, 0).reshape(-1, 4))
            for logits, deltas in zip(cls_score_list, bbox_pred_list, strict=True)
        ]
        for index, (level, anchors) in enumerate(zip(levels, mlvl_priors, strict=True)):
            level.anchors, level.index = anchors, torch.full_like(level.logits, index, dtype=torch.long)
            levels[index] = level[level.logits.topk(min(cfg.nms_pre, len(level))).indices]
        best = InstanceData.cat(levels)
        boxes = self.bbox_coder.decode(best.anchors, best.deltas, max_shape=img_meta['img_shape'])
        found = without_empty_boxes(InstanceData(bboxes=boxes, scores=best.logits, labels=best.index))
        found = without_overlapping_boxes(found, cfg)
        found.scores, found.labels = found.scores.sigmoid(), torch.zeros_like(found.labels)
        return in_original_image(found, img_meta) if rescale else found


class RetinaHead(_RetinaHead):
    """Clips the boxes that it returns to the image, and drops empty ones, after NMS.

    mmdet clips before NMS, which ``bbox_coder=dict(clip_border=False)`` switches off.
    """

    def _bbox_post_process(self, results, cfg, rescale=False, with_nms=True, img_meta=None) -> InstanceData:
        if not with_nms:
            return super()._bbox_post_process(results, cfg, rescale, with_nms, img_meta)
        results = without_overlapping_boxes(results, cfg)
        return in_original_image(results, img_meta) if rescale else in_image(results, img_meta['img_shape'])


class Shared2FCBBoxHead(_Shared2FCBBoxHead):
    """Drops overlapping boxes of a class as detectron2 does, and empty boxes after that."""

    def _predict_by_feat_single(
        self,
        roi: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict,
        rescale: bool = False,
        rcnn_test_cfg: Any = None,
    ) -> InstanceData:
        if rcnn_test_cfg is None or not len(roi):  # without: raw results, no NMS
            return super()._predict_by_feat_single(roi, cls_score, bbox_pred, img_meta, rescale, rcnn_test_cfg)
        raw = super()._predict_by_feat_single(roi, cls_score, bbox_pred, img_meta)
        scores = raw.scores[:, : self.num_classes]
        boxes = raw.bboxes.view(len(roi), -1, 4).expand(-1, self.num_classes, 4)
        found = scores > rcnn_test_cfg.score_thr
        results = InstanceData(bboxes=boxes[found], scores=scores[found], labels=found.nonzero()[:, 1])
        results = without_overlapping_boxes(results, rcnn_test_cfg)
        return in_original_image(results, img_meta) if rescale else without_empty_boxes(results)


class CascadeRoIHead(_CascadeRoIHead):
    """Averages the class probabilities of its stages, where mmdet averages their logits."""

    def _refine_roi(self, *args, **kwargs) -> tuple:
        rois, probabilities, deltas = super()._refine_roi(*args, **kwargs)
        # The last stage's head takes the softmax of what it gets: that of log(p) is p, as p sums to 1.
        return rois, [p.log() for p in probabilities], deltas

    def _bbox_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict:
        results = super()._bbox_forward(stage, x, rois)
        if not self.training:
            results['cls_score'] = results['cls_score'].softmax(-1)
        return results


def without_overlapping_boxes(results: InstanceData, cfg: Any) -> InstanceData:
    """The instances that NMS keeps within each label, from the highest score down, at most ``cfg.max_per_img``.

    torchvision decides by the number of boxes and the device whether it goes label by label or shifts the boxes of
    each label to a place of their own. mmcv shifts up to 10000 boxes, and roundings differ.

    Raises:
        ValueError: ``cfg.nms`` is of another type than ``nms``.
    """
    if cfg.nms.type != 'nms':
        raise ValueError(f"detectron2's heads have nms=dict(type='nms', ...), not {cfg.nms.type!r}: use mmdet's heads")
    kept = torchvision.ops.batched_nms(
        results.bboxes.float(), results.scores.float(), results.labels, cfg.nms.iou_threshold
    )
    return results[kept[: cfg.max_per_img]]


def in_original_image(results: InstanceData, img_meta: dict) -> InstanceData:
    """The instances in the pixels of the image as it was before its resizing."""
    factors = [1 / factor for factor in img_meta['scale_factor']]
    results.bboxes = scale_boxes(results.bboxes, factors)
    return in_image(results, img_meta['ori_shape'])


def in_image(results: InstanceData, shape: tuple[int, ...]) -> InstanceData:
    """The instances with their boxes clipped to an image of this (height, width), without those that lie outside."""
    height, width = shape[:2]
    results.bboxes[:, 0::2].clamp_(0, width)
    results.bboxes[:, 1::2].clamp_(0, height)
    return without_empty_boxes(results)


def without_empty_boxes(results: InstanceData) -> InstanceData:
    """The instances whose box (x1, y1, x2, y2) has a width and a height."""
    x1, y1, x2, y2 = results.bboxes.unbind(-1)
    return results[(x2 > x1) & (y2 > y1)]
