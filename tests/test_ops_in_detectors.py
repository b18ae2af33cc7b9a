"""mmdet's and mmseg's own configs train and predict on mmvit's operators, cut down to small images on a CPU."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS as DETECTORS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData, PixelData
from mmseg.registry import MODELS as SEGMENTORS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_mmseg

import mmvit.ops

pytestmark = [pytest.mark.slow, pytest.mark.lane]

# With no least score every model has boxes to keep.
SMALL = dict(nms_pre=100, max_per_img=20, score_thr=0.0, num=32, num_queries=20, num_layers=2, init_cfg=None)

# A config, and a part of the names of the parameters that are trained through its operator.
DETECTOR_CONFIGS = [
    ('dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco', 'conv2.conv_offset'),
    ('dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco', 'conv2.conv_offset'),
    ('dcn/faster-rcnn_r50_fpn_dpool_1x_coco', 'offset_fc'),
    ('dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco', 'mask_fc'),
    ('deformable_detr/deformable-detr_r50_16xb2-50e_coco', 'sampling_offsets'),
    ('carafe/mask-rcnn_r50_fpn-carafe_1x_coco', 'content_encoder'),
    ('faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco', 'bbox_head'),
    ('detectors/cascade-rcnn_r50-sac_1x_coco', 'conv2.offset_s'),
    ('guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco', 'feature_adaption'),
    ('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco', 'point_head'),
]


@pytest.fixture(autouse=True)
def _operators_of_mmvit(monkeypatch):
    """Also where mmcv has compiled ones."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', mmvit.ops)


@pytest.mark.parametrize(('config', 'parameter'), DETECTOR_CONFIGS)
def test_detector(config, parameter):
    register_mmdet()
    torch.manual_seed(0)
    config = shrunk(get_config(f'mmdet::{config}.py').model)
    config.backbone.zero_init_residual = False  # otherwise nothing in the blocks has a gradient yet
    config.backbone.norm_eval = False  # the statistics of no weights would let the maps explode
    model = DETECTORS.build(config)
    model.init_weights()
    with_mask = model.with_mask
    shapes = [(3, 96, 128), (3, 80, 96)]
    train(model, parameter, demo_mm_inputs(2, shapes, num_items=[2, 1], num_classes=80, with_mask=with_mask))

    data = demo_mm_inputs(1, shapes[:1])
    with torch.no_grad():
        (sample,) = model.eval().test_step(data)
    found = sample.pred_instances
    assert len(found) > 0
    assert found.bboxes.isfinite().all()
    assert found.scores.isfinite().all()
    if with_mask:
        assert found.masks.shape == (len(found), 96, 128)


def test_segmentor():
    register_mmseg()
    torch.manual_seed(0)
    config = get_config('mmseg::psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py').model
    config.pretrained = None
    config.backbone.depth = 18
    config.decode_head.update(in_channels=512, mask_size=(13, 9))
    config.auxiliary_head.in_channels = 256
    model = revert_sync_batchnorm(SEGMENTORS.build(shrunk(config)))
    model.init_weights()
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)]
    train(model, 'attention', dict(inputs=images, data_samples=[segmented(0), segmented(1)]))

    with torch.no_grad():
        (sample,) = model.eval().test_step(dict(inputs=images[:1], data_samples=[segmented(0)]))
    assert sample.pred_sem_seg.data.shape == (1, 96, 128)
    assert sample.seg_logits.data.isfinite().all()


def segmented(seed: int) -> SegDataSample:
    classes = torch.randint(0, 150, (1, 96, 128), generator=torch.Generator().manual_seed(seed))
    shape = dict(img_shape=(96, 128), ori_shape=(96, 128), pad_shape=(96, 128))
    return SegDataSample(gt_sem_seg=PixelData(data=classes), metainfo=shape)


def shrunk(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(shrunk(item) for item in config)
    if not isinstance(config, dict):
        return config
    return ConfigDict({key: SMALL[key] if key in SMALL else shrunk(value) for key, value in config.items()})


def train(model: torch.nn.Module, parameter: str, data: dict) -> None:
    """One step, with finite losses and gradients; those of the named parameters are not zero."""
    losses = model.train()(**model.data_preprocessor(data, training=True), mode='loss')
    loss, values = model.parse_losses(losses)
    assert all(value.isfinite().all() for value in values.values()), values
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if parameter in name)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def test_roi_extractor():
    """A thousand regions on the four levels of an image of 800 x 1216 pixels."""
    strides = [4, 8, 16, 32]
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=7, sampling_ratio=0), 16, strides)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 16, 800 // s, 1216 // s, generator=generator, requires_grad=True) for s in strides]
    corners = torch.rand(1000, 2, generator=generator) * torch.tensor([1000, 600])
    sizes = torch.exp2(3 + 7 * torch.rand(1000, 2, generator=generator))
    rois = torch.cat([torch.zeros(1000, 1), corners, corners + sizes], 1)
    pooled = extractor(features, rois)
    assert pooled.shape == (1000, 16, 7, 7)
    assert pooled.isfinite().all()
    pooled.square().sum().backward()
    assert all(level.grad.any() and level.grad.isfinite().all() for level in features)


def test_mask_pasting():
    """A mask that is set everywhere fills its box in the image."""
    head = FCNMaskHead(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2)
    boxes = torch.tensor([[4.0, 6, 20, 22], [10, 0, 40, 30]])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]), scores=torch.ones(2))
    shape = dict(ori_shape=(32, 48), img_shape=(32, 48), scale_factor=(1.0, 1.0))
    logits = torch.full((2, 2, 28, 28), 9.0)
    (result,) = head.predict_by_feat((logits,), [found], [shape], ConfigDict(mask_thr_binary=0.5))
    expected = np.zeros((2, 32, 48), bool)
    for mask, (x1, y1, x2, y2) in zip(expected, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    np.testing.assert_array_equal(result.masks, expected)
    assert head(torch.randn(2, 8, 14, 14)).shape == (2, 2, 28, 28)
