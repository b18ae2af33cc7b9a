"""The _d2 configs: what detectron2 does otherwise than mmdet, each in numbers worked out by hand or in plain NumPy.

Boxes are (x1, y1, x2, y2) in pixels. detectron2 itself is not needed.
"""

from functools import cache
from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from mmvit.detectron2 import shortest_edge_size

LEAVES = sorted(path.stem for path in Path('configs').glob('*_d2.py'))
# What a leaf changes of the config that it is named after.
DELTAS = {'add_ctr_clamp', 'ctr_clamp'}
ASSIGNER = {f'model.train_cfg.rpn.assigner.{key}' for key in ('type', 'min_pos_iou')}
RPN = {'model.rpn_head.type', *ASSIGNER, *(f'model.rpn_head.bbox_coder.{key}' for key in DELTAS)}
BOX_DELTAS = {f'bbox_coder.{key}' for key in DELTAS}
NORM = {f'model.data_preprocessor.{key}.{i}' for key in ('mean', 'std') for i in (0, 2)}
CHANGES = {
    'retinanet': {
        'model.neck.relu_before_extra_convs',
        'model.train_cfg.assigner.type',
        *(
            f'model.bbox_head.{key}'
            for key in ('type', 'anchor_generator.scale_major', 'bbox_coder.clip_border', *BOX_DELTAS)
        ),
    },
    'maskrcnn': RPN | {f'model.roi_head.bbox_head.{key}' for key in ('type', *BOX_DELTAS)},
    'cascade': RPN,
}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


@cache
def read(name):
    return Config.fromfile(f'configs/{name}.py')


@cache
def heads(name):
    """What a leaf's detector has besides a backbone."""
    config = read(name).model.copy()
    train, test = config.pop('train_cfg'), config.pop('test_cfg')
    rcnn = {'train_cfg': None, 'test_cfg': test.get('rcnn')}
    return SimpleNamespace(
        neck=MODELS.build(config.neck),
        bbox_head=MODELS.build(dict(config.bbox_head, train_cfg=train, test_cfg=test))
        if 'bbox_head' in config
        else None,
        rpn_head=MODELS.build(dict(config.rpn_head, train_cfg=None, test_cfg=test.rpn))
        if 'rpn_head' in config
        else None,
        roi_head=MODELS.build(dict(config.roi_head, **rcnn)).eval() if 'roi_head' in config else None,
        preprocessor=MODELS.build(config.data_preprocessor),
    )


def flat(value, name=''):
    """{place: value} of a nested config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {name: value}
    return {k: v for key, inner in items for k, v in flat(inner, f'{name}.{key}' if name else str(key)).items()}


def meta(height, width, scale=1.0):
    """Of an image of this size after it was scaled."""
    return dict(
        img_shape=(height, width),
        ori_shape=(round(height / scale), round(width / scale)),
        scale_factor=(scale, scale),
        batch_input_shape=(height, width),
    )


def decode(box, deltas, weights, growth=1000 / 16):
    """As detectron2: deltas of centre and logarithmic size, divided by weights; growth has a bound, shrinking none."""
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = np.asarray(deltas, float) / weights
    width, height = (x2 - x1) * exp(min(dw, log(growth))), (y2 - y1) * exp(min(dh, log(growth)))
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def maps(channels, sizes, fill):
    return [torch.full((1, channels, *size), float(fill)) for size in sizes]


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_leaf_changes_what_differs_and_nothing_else(leaf):
    ours, normal = flat(dict(read(leaf))), flat(dict(read(leaf.removesuffix('_d2'))))
    changed = {key for key in ours.keys() | normal.keys() if ours.get(key, '-') != normal.get(key, '-')}
    changed = {k for k in changed if not k.startswith(('detectron2_', 'regionvit_preprocessor')) and '_scope_' not in k}
    assert changed == CHANGES[leaf.split('_')[0]] | (NORM if 'regionvit' in leaf else set())


def test_there_is_a_leaf_for_every_official_detector():
    mpvit = {f'{method}_mpvit_{arch}_d2' for method in ('retinanet', 'maskrcnn') for arch in ('t', 'xs', 's', 'b')}
    archs = ('s', 's_w14', 's_w14_peg', 'b', 'b_w14', 'b_w14_peg', 'b_w14_peg_896')
    regionvit = {
        f'{method}_regionvit_{arch}{schedule}_d2'
        for method in ('retinanet', 'maskrcnn')
        for arch in archs
        for schedule in ('', '_3x')  # which test at different sizes
    }
    assert set(LEAVES) == mpvit | regionvit | {
        'cascade_maskrcnn_mpvit_s_d2',
        'cascade_maskrcnn_mpvit_b_3x_d2',
    }


@pytest.mark.parametrize(('short', 'long'), [(672, 1120), (896, 1344), (800, 1333)])
def test_resized_size_of_every_image(short, long):
    """As detectron2's ResizeShortestEdge computes it, for sides up to 1500."""
    sides = np.arange(1, 1501)
    height, width = shortest_edge_size(sides[:, None], sides[None], short, long)
    for low in range(1, 1501):
        scale = short / low
        expected = []
        for high in range(low, 1501):
            side = scale * high
            cap = long / side if side > long else 1.0
            expected.append((int(short * cap + 0.5), int(side * cap + 0.5)))
        found = zip(height[low - 1, low - 1 :].tolist(), width[low - 1, low - 1 :].tolist(), strict=True)
        assert list(found) == expected
    assert (height == width.T).all()  # the other half: portraits


@pytest.mark.parametrize(
    ('leaf', 'size', 'expected'),
    [
        ('maskrcnn_mpvit_s_d2', (480, 640), (800, 1067)),
        ('maskrcnn_mpvit_s_d2', (612, 306), (1333, 667)),  # mmdet: 666
        ('maskrcnn_regionvit_s_d2', (480, 640), (672, 1120)),
        ('maskrcnn_regionvit_s_d2', (500, 500), (672, 1120)),
        ('maskrcnn_regionvit_s_d2', (640, 427), (1120, 672)),
        ('retinanet_regionvit_s_3x_d2', (480, 640), (672, 896)),
        ('retinanet_regionvit_s_3x_d2', (106, 640), (185, 1120)),  # mmdet: 186
        ('retinanet_regionvit_s_3x_d2', (640, 106), (1120, 185)),
        ('maskrcnn_regionvit_b_w14_peg_896_d2', (375, 500), (896, 1344)),
        ('maskrcnn_regionvit_b_w14_peg_896_d2', (500, 375), (1344, 896)),
        ('maskrcnn_regionvit_b_w14_peg_896_3x_d2', (375, 500), (896, 1195)),
        ('retinanet_regionvit_b_w14_peg_896_3x_d2', (205, 640), (430, 1344)),  # mmdet: 431
    ],
)
def test_image_sizes_in_testing(leaf, size, expected):
    """With the boxes and masks of an image."""
    height, width = size
    resize = read(leaf).test_dataloader.dataset.pipeline[1]
    mask = np.zeros((1, *size), np.uint8)
    mask[:, : height // 2] = 1
    found = TRANSFORMS.build(resize)(
        dict(
            img=np.zeros((*size, 3), np.uint8),
            gt_bboxes=HorizontalBoxes([[0.0, 0.0, width, height / 2]]),
            gt_masks=BitmapMasks(mask, *size),
            gt_seg_map=mask[0],
        )
    )
    assert found['img'].shape[:2] == found['img_shape'] == found['gt_seg_map'].shape == expected
    assert found['gt_masks'].masks.shape[1:] == expected
    assert found['gt_masks'].masks[0].mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(found['gt_bboxes'].numpy(), [[0, 0, expected[1], expected[0] / 2]], rtol=1e-6)
    assert found['scale_factor'] == (expected[1] / width, expected[0] / height)


@pytest.mark.parametrize('leaf', ['retinanet_mpvit_t_d2', 'maskrcnn_mpvit_t_d2', 'cascade_maskrcnn_mpvit_s_d2'])
def test_thresholds_that_both_share(leaf):
    model = read(leaf).model
    test = model.test_cfg
    final = test.rcnn if 'rcnn' in test else test
    assert (final.score_thr, final.nms.type, final.nms.iou_threshold, final.max_per_img) == (0.05, 'nms', 0.5, 100)
    assert model.data_preprocessor.pad_size_divisor == 32
    if 'rpn' in test:
        assert (test.rpn.nms_pre, test.rpn.max_per_img, test.rpn.nms.iou_threshold) == (1000, 1000, 0.7)
        assert final.mask_thr_binary == 0.5
    else:
        assert test.nms_pre == 1000


def test_rpn_anchor():
    """The anchor of ratio 1/2 in row 2, column 3 of the finest map, moved, widened, and flattened by far."""
    head = heads('maskrcnn_mpvit_t_d2').rpn_head
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    scores, deltas = maps(3, sizes, -20), maps(12, sizes, 0)
    scores[0][0, 0, 2, 3] = 5
    deltas[0][0, 0:4, 2, 3] = torch.tensor([0.1, -0.2, log(2), -5.0])
    (proposals,) = head.predict_by_feat(scores, deltas, batch_img_metas=[meta(96, 128)])
    # 32 x 32 pixels with height / width = 1/2, about the pixel corner (3 * 4, 2 * 4).
    width, height = 32 * 2**0.5, 32 / 2**0.5
    anchor = (12 - width / 2, 8 - height / 2, 12 + width / 2, 8 + height / 2)
    x1, y1, x2, y2 = decode(anchor, (0.1, -0.2, log(2), -5), 1)
    assert x1 < 0  # is clipped
    assert y2 - y1 == pytest.approx(height * exp(-5))  # mmdet by default: not below 16/1000 of the anchor
    np.testing.assert_allclose(proposals.bboxes[0].numpy(), [0, y1, x2, y2], atol=1e-3)


def test_rpn_ranks_logits_where_sigmoids_tie():
    """1600 logits between 30 and 32, whose sigmoids are all 1 in float32; 1000 are kept, of boxes that are apart."""
    head = heads('maskrcnn_mpvit_t_d2').rpn_head
    sizes = [(40, 40), (20, 20), (10, 10), (5, 5), (3, 3)]
    scores, deltas = maps(3, sizes, -20), maps(12, sizes, -6)
    deltas[0].view(3, 4, 40, 40)[:, :2] = 0  # tiny boxes about the corners of pixels
    logits = np.random.RandomState(0).permutation(1600).astype(np.float32) / 800 + 30
    scores[0][0, 1] = torch.from_numpy(logits).view(40, 40)
    (proposals,) = head.predict_by_feat(scores, deltas, batch_img_metas=[meta(160, 160)])
    assert len(proposals) == 1000
    inside = [i for i in np.argsort(-logits)[:1000] if i // 40 and i % 40]  # the others are cut at the border
    centres = (proposals.bboxes[:, :2] + proposals.bboxes[:, 2:]) / 2
    found = [(x, y) for x, y in centres.round().int().tolist() if x and y]
    assert found == [(i % 40 * 4, i // 40 * 4) for i in inside]


@pytest.mark.parametrize(('others', 'expected'), [(1, [4, 79, 79]), (1000, [4, 79])])
def test_nms_goes_class_by_class_where_torchvision_does(others, expected):
    """Two boxes of class 79 with an IoU of 0.5001. Shifted by 79 times 1121 pixels, float32 makes it 0.5.

    torchvision shifts the boxes of up to 1000 candidates on a CPU.
    """
    head = heads('maskrcnn_mpvit_t_d2').roi_head.bbox_head
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5.001]] + [[0, 0, 1120, 672]] * others
    labels = torch.tensor([79, 79] + [4] * others)
    logits = torch.full((len(boxes), 81), -20.0)
    logits[range(len(boxes)), labels] = torch.tensor([9.0, 8.0] + [7.0] * others)
    regions = torch.cat([torch.zeros(len(boxes), 1), torch.tensor(boxes)], 1)
    (found,) = head.predict_by_feat(
        (regions,),
        (logits,),
        (torch.zeros(len(boxes), 320),),
        [meta(672, 1120)],
        rcnn_test_cfg=read('maskrcnn_mpvit_t_d2').model.test_cfg.rcnn,
    )
    assert sorted(found.labels.tolist()) == expected


def test_soft_nms_is_refused():
    head = heads('maskrcnn_mpvit_t_d2').roi_head.bbox_head
    cfg = read('maskrcnn_mpvit_t_d2').model.test_cfg.rcnn.copy()
    cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ValueError, match="not 'soft_nms'"):
        head.predict_by_feat(
            (torch.zeros(1, 5),), (torch.zeros(1, 81),), (torch.zeros(1, 320),), [meta(9, 9)], rcnn_test_cfg=cfg
        )


def test_retinanet_anchor_order():
    """Nine anchors at a place: the three sizes are the outer order, the three ratios the inner."""
    head = heads('retinanet_mpvit_t_d2').bbox_head
    sizes = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
    expected = []
    for size in (64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)):
        for ratio in (0.5, 1, 2):
            width, height = size / ratio**0.5, size * ratio**0.5
            expected.append((64 - width / 2, 48 - height / 2, 64 + width / 2, 48 + height / 2))
    for index, anchor in enumerate(expected):
        scores, deltas = maps(9 * 80, sizes, -20), maps(9 * 4, sizes, 0)
        scores[1][0, index * 80 + 7, 3, 4] = 3  # stride 16: the pixel corner (64, 48)
        deltas[1][0, index * 4, 3, 4] = 0.1
        (found,) = head.predict_by_feat(scores, deltas, batch_img_metas=[meta(500, 500)])
        assert found.labels.tolist() == [7]
        np.testing.assert_allclose(found.scores.numpy(), [1 / (1 + exp(-3))], rtol=1e-5)
        shift = 0.1 * (anchor[2] - anchor[0])
        x1, y1, x2, y2 = anchor
        box = [max(x1 + shift, 0), max(y1, 0), x2 + shift, y2]
        np.testing.assert_allclose(found.bboxes[0].numpy(), box, atol=1e-3)


def test_retinanet_clips_after_nms_and_drops_empty_boxes():
    """Anchors of 32 x 32 at the left border, moved to the same rows; all of one class, in an image of half the size."""
    head = heads('retinanet_mpvit_t_d2').bbox_head
    sizes = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
    scores, deltas = maps(9 * 80, sizes, -20), maps(9 * 4, sizes, 0)
    channel = 1 * 80 + 7  # size 32, ratio 1
    for row, (shift, score) in enumerate([(-64, 3.0), (4, 2.0), (16, 1.0)]):
        scores[0][0, channel, 3 * row, 0] = score
        deltas[0][0, 4:6, 3 * row, 0] = torch.tensor([shift, 48 - 24 * row]) / 32
    found = head.predict_by_feat(scores, deltas, batch_img_metas=[meta(96, 128, scale=2.0)], rescale=True)[0]
    # Columns -80 to -48: none in the image. -12 to 20 and 0 to 32: an IoU of 20/44, or 20/32 inside the image.
    np.testing.assert_allclose(found.bboxes.numpy(), [[0, 16, 10, 32], [0, 16, 16, 32]], atol=1e-4)


def test_p6_comes_from_c5_and_p7_from_what_is_positive_of_p6():
    neck = heads('retinanet_mpvit_t_d2').neck
    c3, c4, c5 = torch.zeros(1, 176, 8, 8), torch.zeros(1, 216, 4, 4), torch.ones(1, 216, 2, 2)
    p6, p7 = neck.fpn_convs[3].conv, neck.fpn_convs[4].conv
    for conv in (p6, p7):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    p6.weight.data[0, 0, 1, 1] = 3  # channel 0 of P6 is 3 times that of C5
    p6.bias.data[1] = -5  # channel 1 is -5
    p7.weight.data[0, :2, 1, 1] = 1  # P7 is their sum
    *_, six, seven = neck((c3, c4, c5))
    assert six[0, :2, 0, 0].tolist() == [3, -5]
    assert seven[0, 0, 0, 0] == 3


def test_box_head_decodes_per_class_and_clips_and_drops():
    """The first region is sure of class 1, whose deltas count; the second moves out of the image and is dropped."""
    head = heads('maskrcnn_mpvit_t_d2').roi_head.bbox_head
    regions = torch.tensor([[0.0, 10, 10, 40, 70], [0, 0, 0, 20, 20], [0, 50, 50, 60, 60]])
    logits, deltas = torch.full((3, 81), -20.0), torch.zeros(3, 80, 4)
    logits[0, 1], logits[1, 2], logits[2, 80] = 5, 5, 5  # the last is background
    deltas[0, 1] = torch.tensor([1.0, -2.0, 1.5, -25.0])
    deltas[1, 2, 0] = -30.0
    (found,) = head.predict_by_feat(
        (regions,),
        (logits,),
        (deltas.flatten(1),),
        [meta(100, 120)],
        rcnn_test_cfg=read('maskrcnn_mpvit_t_d2').model.test_cfg.rcnn,
    )
    assert found.labels.tolist() == [1]
    expected = decode((10, 10, 40, 70), (1, -2, 1.5, -25), (10, 10, 5, 5))
    np.testing.assert_allclose(found.bboxes[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(('stage', 'weights'), enumerate([(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]))
def test_cascade_box_deltas(stage, weights):
    head = heads('cascade_maskrcnn_mpvit_s_d2').roi_head.bbox_head[stage]
    region, deltas = [100.0, 200.0, 400.0, 260.0], [1.0, -1.0, 1.0, 2.0]
    found = head.bbox_coder.decode(torch.tensor([region]), torch.tensor([deltas]))[0].numpy()
    np.testing.assert_allclose(found, decode(region, deltas, weights), atol=1e-3)
    # By hand, the centre: 250 + 300 / 10, 20 or 30.
    assert (found[0] + found[2]) / 2 == pytest.approx([280, 265, 260][stage], abs=1e-3)


def test_cascade_averages_probabilities(monkeypatch):
    """One region, class 0 or background; from the mean of the logits its score would be 0.765."""
    leaf = 'cascade_maskrcnn_mpvit_s_d2'
    roi_head = heads(leaf).roi_head
    assert roi_head.bbox_head[0].fc_reg.out_features == 4  # for all classes
    for head, sure in zip(roi_head.bbox_head, (0.9, 0.9, 0.3), strict=True):
        logits = torch.full((1, 81), -50.0)
        logits[0, 0], logits[0, 80] = log(sure) + 3, log(1 - sure) + 3
        # Each stage moves the box by its own weight's share of its width.
        monkeypatch.setattr(head, 'forward', lambda x, logits=logits: (logits, torch.tensor([[3.0, 0, 0, 0]])))
    features = tuple(maps(256, [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)], 0))
    proposals = [InstanceData(bboxes=torch.tensor([[10.0, 20.0, 40.0, 50.0]]))]
    (found,) = roi_head.predict_bbox(features, [meta(96, 128)], proposals, rcnn_test_cfg=read(leaf).model.test_cfg.rcnn)
    np.testing.assert_allclose(found.scores.numpy(), [0.7], atol=1e-5)
    shift = 30 * (3 / 10 + 3 / 20 + 3 / 30)
    np.testing.assert_allclose(found.bboxes[0].numpy(), [10 + shift, 20, 40 + shift, 50], atol=1e-3)


def test_one_region_is_pooled():
    """From maps that hold their own column, 100 more on each level; column c of a map is at its pixel c + 0.5."""
    extract = heads('maskrcnn_mpvit_t_d2').roi_head.bbox_roi_extractor
    features = [
        (torch.arange(256 // stride).float() + 100 * level).expand(1, 256, 256 // stride, -1).contiguous()
        for level, stride in enumerate((4, 8, 16, 32))
    ]
    small, large = torch.tensor([[0, 8.0, 8, 36, 36]]), torch.tensor([[0, 16.0, 16, 128, 128]])
    # Bin i of the small region is about the pixel 8 + 4 * (i + 0.5) = 4 * (2 + i + 0.5): the map's column 2 + i.
    np.testing.assert_allclose(extract(features, small)[0, 0, 3].numpy(), 2 + np.arange(7), atol=1e-5)
    # A side of 112 = 224 / 2 is for the next level; bins of 16 pixels: 16 + 16 * (i + 0.5) = 8 * (2.5 + 2 * i + 0.5).
    np.testing.assert_allclose(extract(features, large)[0, 0, 3].numpy(), 102.5 + 2 * np.arange(7), atol=1e-5)


def test_first_layer_takes_channels_then_rows_then_columns():
    head = heads('maskrcnn_mpvit_t_d2').roi_head.bbox_head
    layer = head.shared_fcs[0]
    region = torch.zeros(1, 256, 7, 7)
    region[0, 5, 2, 3] = 1
    with torch.no_grad():
        found = head.shared_fcs[0](region.flatten(1))[0] - layer.bias
        scores, _ = head(region)
        second = head.shared_fcs[1](layer(region.flatten(1)).relu()).relu()
    np.testing.assert_allclose(found.numpy(), layer.weight[:, 5 * 49 + 2 * 7 + 3].detach().numpy(), atol=1e-6)
    torch.testing.assert_close(scores, head.fc_cls(second))


def test_one_mask_is_pasted():
    """A mask of 28 x 28, positive left of its middle, of a box of 56 x 28 pixels in an image of half the size."""
    leaf = 'maskrcnn_mpvit_t_d2'
    head = heads(leaf).roi_head.mask_head
    logits = torch.full((1, 80, 28, 28), -9.0)
    logits[0, 4, :, :14] = 9
    result = InstanceData(bboxes=torch.tensor([[20.0, 40, 76, 68]]), labels=torch.tensor([4]))
    (found,) = head.predict_by_feat(
        [logits], [result], [meta(96, 128, scale=2.0)], read(leaf).model.test_cfg.rcnn, rescale=True
    )
    expected = np.zeros((48, 64), bool)
    expected[20:34, 10:24] = True
    assert (found.masks[0].numpy() == expected).all()


@pytest.mark.parametrize(
    ('leaf', 'expected'),
    [
        ('maskrcnn_mpvit_t_d2', [(30 - 123.675) / 58.395, (20 - 116.28) / 57.12, (10 - 103.53) / 57.375]),
        ('maskrcnn_regionvit_s_d2', [(30 - 103.53) / 57.375, (20 - 116.28) / 57.12, (10 - 123.675) / 58.395]),
    ],
)
def test_means_of_the_channels(leaf, expected):
    """The image's blue is 10, green 20, red 30; the network sees red first, and padding to 32 pixels is 0."""
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 20, 33)
    batch = heads(leaf).preprocessor(dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta(20, 33))]))[
        'inputs'
    ]
    assert batch.shape == (1, 3, 32, 64)
    np.testing.assert_allclose(batch[0, :, 0, 0].numpy(), expected, rtol=1e-5)
    assert (batch[:, :, 20:] == 0).all()


@pytest.mark.parametrize('leaf', LEAVES[:1] + LEAVES[-1:])
def test_images_are_read_and_shrunk_by_pillow(leaf, tmp_path):
    columns = np.array([0, 100, 200, 40], np.uint8)
    Image.fromarray(np.broadcast_to(columns[None, :, None], (4, 4, 3)).copy()).save(tmp_path / 'image.png')
    load, resize = (dict(step) for step in read(leaf).test_dataloader.dataset.pipeline[:2])
    resize['scale'] = (2, 2)
    found = Compose([load, resize])(dict(img_path=str(tmp_path / 'image.png')))['img']
    # To half: a triangle of 2 pixels to each side. OpenCV would take the mean of two pixels: 50 and 120.
    left = (0.75 * 0 + 0.75 * 100 + 0.25 * 200) / 1.75
    right = (0.25 * 100 + 0.75 * 200 + 0.75 * 40) / 1.75
    assert found[:, :, 0].tolist() == [[round(left), round(right)]] * 2
