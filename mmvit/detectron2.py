"""What detectron2 does in training and testing and no option of mmdet's says, for detectors that were trained there.

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
from mmdet.models.roi_heads import StandardRoIHead as _StandardRoIHead
from mmdet.models.task_modules import AssignResult
from mmdet.models.task_modules import MaxIoUAssigner as _MaxIoUAssigner
from mmdet.structures.bbox import bbox2roi, scale_boxes
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


class MaxIoUAssigner(_MaxIoUAssigner):
    """Gives every positive box the object that it overlaps most.

    Where a box is the best that there is for another object, mmdet gives it that one.
    """

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        positive = result.gt_inds > 0
        if positive.any():
            nearest = overlaps.argmax(0)[positive]
            result.gt_inds[positive], result.labels[positive] = nearest + 1, gt_labels[nearest]
        return result


class EveryAnchor:
    """A head that trains with the anchors on an image's padding too, where mmdet leaves some out."""

    def get_anchors(self, *args: Any, **kwargs: Any) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        anchors, flags = super().get_anchors(*args, **kwargs)  # type: ignore[misc]
        return anchors, [[torch.ones_like(flag) for flag in levels] for levels in flags]


class RPNHead(EveryAnchor, _RPNHead):
    """Ranks proposals by their logits, where mmdet ranks float32 sigmoids, which tie where logits are large.

    Its losses are divided by the number of anchors that are sampled if there are enough.
    """

    def get_targets(self, anchor_list: list, *args: Any, **kwargs: Any) -> tuple:
        *targets, _ = super().get_targets(anchor_list, *args, **kwargs)
        return *targets, self.train_cfg.sampler.num * len(anchor_list)

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


class RetinaHead(EveryAnchor, _RetinaHead):
    """Clips the boxes that it returns to the image, and drops empty ones, after NMS.

    mmdet clips before NMS, which ``bbox_coder=dict(clip_border=False)`` switches off. Losses are divided by a moving
    average of the number of positive anchors, which begins at 100 in every process, also of a resumed training.
    """

    positives = 100.0
    momentum = 0.9

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        labels, *others, _ = super().get_targets(*args, **kwargs)
        found = sum(int((level < self.num_classes).sum()) for level in labels)
        self.positives = self.momentum * self.positives + (1 - self.momentum) * max(found, 1)
        return labels, *others, self.positives

    def _bbox_post_process(self, results, cfg, rescale=False, with_nms=True, img_meta=None) -> InstanceData:
        if not with_nms:
            return super()._bbox_post_process(results, cfg, rescale, with_nms, img_meta)
        results = without_overlapping_boxes(results, cfg)
        return in_original_image(results, img_meta) if rescale else in_image(results, img_meta['img_shape'])


class Shared2FCBBoxHead(_Shared2FCBBoxHead):
    """Drops overlapping boxes of a class as detectron2 does, and empty boxes after that.

    In a cascade's training, the next stage gets all boxes of this one, those from the objects' own boxes too, except
    empty ones.
    """

    def refine_bboxes(self, sampling_results: list, bbox_results: dict, batch_img_metas: list) -> list | None:
        for result in sampling_results:
            result.pos_is_gt = torch.zeros_like(result.pos_is_gt)
        refined = super().refine_bboxes(sampling_results, bbox_results, batch_img_metas)
        return refined and [without_empty_boxes(boxes) for boxes in refined]

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
    """Averages the class probabilities of its stages, where mmdet averages their logits.

    There is one mask head, which is trained with the first stage's regions. What a box head sends back to the pooled
    features is divided by the number of stages.
    """

    init_mask_head = _StandardRoIHead.init_mask_head
    _mask_forward = _StandardRoIHead._mask_forward
    predict_mask = _StandardRoIHead.predict_mask

    def mask_loss(self, stage: int, x: tuple[Tensor, ...], sampling_results: list, batch_gt_instances: list) -> dict:
        if stage:
            return {'loss_mask': {}}
        predictions = self._mask_forward(x, bbox2roi([result.pos_priors for result in sampling_results]))['mask_preds']
        return self.mask_head.loss_and_target(predictions, sampling_results, batch_gt_instances, self.train_cfg[0])

    def forward(self, x: tuple[Tensor, ...], rpn_results_list: list, batch_data_samples: list) -> tuple:
        proposals = [results.bboxes for results in rpn_results_list]
        numbers = tuple(len(boxes) for boxes in proposals)
        metas = [sample.metainfo for sample in batch_data_samples]
        rois, scores, deltas = self._refine_roi(x, bbox2roi(proposals), metas, numbers)
        return scores, deltas, self._mask_forward(x, torch.cat(rois))['mask_preds'].sigmoid().split(numbers)

    def _refine_roi(self, *args: Any, **kwargs: Any) -> tuple:
        rois, probabilities, deltas = super()._refine_roi(*args, **kwargs)
        # The last stage's head takes the softmax of what it gets: that of log(p) is p, as p sums to 1.
        return rois, [p.log() for p in probabilities], deltas

    def _bbox_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict:
        extractor = self.bbox_roi_extractor[stage]
        features = extractor(x[: extractor.num_inputs], rois)
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient / self.num_stages)
        scores, deltas = self.bbox_head[stage](features)
        if not self.training:
            scores = scores.softmax(-1)
        return {'cls_score': scores, 'bbox_pred': deltas, 'bbox_feats': features}


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
