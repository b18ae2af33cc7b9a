"""What detectron2's heads do and no option of mmdet's says, for detectors that were trained there.

The ``_d2`` configs name these classes by their place (``type='mmvit.detectron2.RetinaHead'``), not by a registry: the
registry's modules must be importable without mmdet.
"""

from __future__ import annotations

from mmdet.models.dense_heads import RetinaHead as _RetinaHead
from mmdet.models.roi_heads import CascadeRoIHead as _CascadeRoIHead
from mmdet.models.roi_heads import Shared2FCBBoxHead as _Shared2FCBBoxHead
from mmengine.structures import InstanceData
from torch import Tensor


class RetinaHead(_RetinaHead):
    """Clips the boxes that it returns to the image, and drops empty ones, after NMS.

    mmdet clips before NMS, which ``bbox_coder=dict(clip_border=False)`` switches off.
    """

    def _bbox_post_process(self, results, cfg, rescale=False, with_nms=True, img_meta=None) -> InstanceData:
        results = super()._bbox_post_process(results, cfg, rescale, with_nms, img_meta)
        height, width = img_meta['ori_shape' if rescale else 'img_shape'][:2]
        results.bboxes[:, 0::2].clamp_(0, width)
        results.bboxes[:, 1::2].clamp_(0, height)
        return without_empty_boxes(results)


class Shared2FCBBoxHead(_Shared2FCBBoxHead):
    """Drops empty boxes after NMS."""

    def _predict_by_feat_single(self, *args, rcnn_test_cfg=None, **kwargs) -> InstanceData:
        results = super()._predict_by_feat_single(*args, rcnn_test_cfg=rcnn_test_cfg, **kwargs)
        return without_empty_boxes(results) if rcnn_test_cfg else results  # without: raw results, no NMS


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


def without_empty_boxes(results: InstanceData) -> InstanceData:
    """The instances whose box (x1, y1, x2, y2) has a width and a height."""
    x1, y1, x2, y2 = results.bboxes.unbind(-1)
    return results[(x2 > x1) & (y2 > y1)]
