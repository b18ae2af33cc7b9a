"""The losses of the _d2 configs beside detectron2's rules, written down in plain NumPy. detectron2 is not needed.

Both sides sample alike: the first that there are. Boxes are (x1, y1, x2, y2) in pixels.
"""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import RandomSampler
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

SIZES = [(96, 128), (128, 64)]  # of two images, which are padded to 128 x 128
SIDE = 128
# The first image has two objects that overlap, so that they share their best anchors; the second has none.
OBJECTS = [np.array([[16, 16, 80, 80], [20, 16, 80, 80], [0, 60, 30, 90.0]]), np.zeros((0, 4))]
LABELS = [np.array([3, 7, 1]), np.zeros(0, int)]


@pytest.fixture(autouse=True)
def _sample_the_first(monkeypatch):
    init_default_scope('mmdet')
    monkeypatch.setattr(RandomSampler, 'random_choice', lambda self, gallery, number: gallery[:number])


@cache
def model_config(name):
    return Config.fromfile(f'configs/{name}.py').model


def build(name, part, **options):
    """A head, smaller than in the config, and lively."""
    torch.manual_seed(0)
    head = MODELS.build({**deepcopy(model_config(name)[part]), **options})
    for parameter in head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return head.train()


def features(strides, channels=32):
    torch.manual_seed(1)
    return tuple(torch.randn(2, channels, -(-SIDE // s), -(-SIDE // s), requires_grad=True) for s in strides)


def samples():
    found = []
    for (height, width), boxes, labels in zip(SIZES, OBJECTS, LABELS, strict=True):
        shape = dict(img_shape=(height, width), pad_shape=(-(-height // 32) * 32, -(-width // 32) * 32))
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1:y2, x1:x2] = 1
        found.append(DetDataSample(metainfo=dict(shape, ori_shape=(height, width), scale_factor=(1, 1))))
        found[-1].gt_instances = InstanceData(
            bboxes=torch.tensor(boxes).float(),
            labels=torch.tensor(labels),
            masks=BitmapMasks(masks, height, width),
        )
    return found


def flat(maps, values):
    """Maps (N, anchors * values, H, W) -> (N, all anchors, values), by level, row, column and anchor."""
    parts = [m.detach().double().numpy() for m in maps]
    shapes = [(len(m), -1, values, *m.shape[2:]) for m in parts]
    return np.concatenate(
        [m.reshape(s).transpose(0, 3, 4, 1, 2).reshape(len(m), -1, values) for m, s in zip(parts, shapes, strict=True)],
        axis=1,
    )


def overlaps(first, second):
    """The IoU (n, m) of boxes, in float32 as the libraries compute it: thresholds and best boxes hang on roundings."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def match(objects, boxes, low, high, best_too):
    """(object, 1, 0 or -1) of each box: -1 is ignored. The best boxes of an object are positive at any overlap."""
    if not len(objects):
        return np.zeros(len(boxes), int), np.zeros(len(boxes), int)
    table = overlaps(objects, boxes)
    best = table.max(0)
    label = np.where(best >= high, 1, np.where(best < low, 0, -1))
    if best_too:
        label[(table == table.max(1, keepdims=True)).any(0)] = 1
    return table.argmax(0), label


def encode(boxes, objects, weights=(1, 1, 1, 1)):
    size, wanted = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    shift = (objects[:, :2] + wanted / 2 - boxes[:, :2] - size / 2) / size
    return np.concatenate([shift, np.log(wanted / size)], 1) * weights


def decode(boxes, deltas, weights):
    deltas = deltas / weights
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] * size
    size = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16)))
    return np.concatenate([centre - size / 2, centre + size / 2], 1)


def subsample(label, number, share):
    """The positive and negative boxes to take."""
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    positive = positive[: int(number * share)]
    return positive, negative[: number - len(positive)]


def softplus(x):
    return np.logaddexp(0, x)


def total(losses, name):
    value = losses[name]
    return float((sum(value) if isinstance(value, list) else value).detach())


def test_losses_of_the_rpn():
    """256 anchors of each image, and sums over them divided by 512."""
    config = model_config('maskrcnn_mpvit_t_d2')
    head = build('maskrcnn_mpvit_t_d2', 'rpn_head', in_channels=32, feat_channels=32, train_cfg=config.train_cfg.rpn)
    maps = features((4, 8, 16, 32, 64))
    objectness = samples()
    for sample in objectness:
        sample.gt_instances.labels.zero_()  # as mmdet's detectors do
    losses = head.loss(maps, objectness)
    logits, deltas = (flat(out, values) for out, values in zip(head(maps), (1, 4), strict=True))
    anchors = torch.cat(head.prior_generator.grid_priors([m.shape[2:] for m in maps], device='cpu')).double().numpy()
    cls = box = 0
    for image, objects in enumerate(OBJECTS):
        nearest, label = match(objects, anchors, 0.3, 0.7, best_too=True)
        positive, negative = subsample(label, 256, 0.5)
        cls += softplus(-logits[image, positive]).sum() + softplus(logits[image, negative]).sum()
        if len(positive):
            wanted = encode(anchors[positive], objects[nearest[positive]])
            box += abs(deltas[image, positive] - wanted).sum()
    assert total(losses, 'loss_rpn_cls') == pytest.approx(cls / 512, rel=1e-4)
    assert total(losses, 'loss_rpn_bbox') == pytest.approx(box / 512, rel=1e-4)
    assert box > 0


def test_losses_of_retinanet():
    """Twice, for the sums are divided by an average that moves: from 100, a tenth of the way to each new number."""
    config = model_config('retinanet_mpvit_t_d2')
    options = dict(in_channels=32, feat_channels=32, train_cfg=config.train_cfg, test_cfg=config.test_cfg)
    head = build('retinanet_mpvit_t_d2', 'bbox_head', **options)
    maps = features((8, 16, 32, 64, 128))
    logits, deltas = (flat(out, values) for out, values in zip(head(maps), (80, 4), strict=True))
    anchors = torch.cat(head.prior_generator.grid_priors([m.shape[2:] for m in maps], device='cpu')).double().numpy()
    focal = box = positives = 0
    for image, (objects, labels) in enumerate(zip(OBJECTS, LABELS, strict=True)):
        nearest, label = match(objects, anchors, 0.4, 0.5, best_too=True)
        positive = np.flatnonzero(label == 1)
        positives += len(positive)
        x, wanted = logits[image], np.zeros((len(anchors), 80))
        if len(positive):
            wanted[positive, labels[nearest[positive]]] = 1
            box += abs(deltas[image, positive] - encode(anchors[positive], objects[nearest[positive]])).sum()
        chance = 1 / (1 + np.exp(-x))
        right = np.where(wanted == 1, chance, 1 - chance)
        weight = np.where(wanted == 1, 0.25, 0.75)
        entropy = np.where(wanted == 1, softplus(-x), softplus(x))
        focal += (weight * (1 - right) ** 2 * entropy)[label >= 0].sum()
    divisor = 100.0
    for _ in range(2):
        losses = head.loss(maps, samples())
        divisor = 0.9 * divisor + 0.1 * positives
        assert total(losses, 'loss_cls') == pytest.approx(focal / divisor, rel=1e-4)
        assert total(losses, 'loss_bbox') == pytest.approx(box / divisor, rel=1e-4)
    assert positives > 10


def roi_head(name):
    config = model_config(name)
    shrink = dict(in_channels=32, fc_out_channels=64)
    boxes = config.roi_head.bbox_head
    return build(
        name,
        'roi_head',
        bbox_head=[dict(head, **shrink) for head in boxes] if isinstance(boxes, list) else dict(boxes, **shrink),
        bbox_roi_extractor=dict(config.roi_head.bbox_roi_extractor, out_channels=32),
        mask_roi_extractor=dict(config.roi_head.mask_roi_extractor, out_channels=32),
        mask_head=dict(config.roi_head.mask_head, in_channels=32, conv_out_channels=32),
        train_cfg=config.train_cfg.rcnn,
        test_cfg=config.test_cfg.rcnn,
    )


def proposals():
    """60 boxes of each image; some are nearly the first object."""
    random = np.random.RandomState(0)
    found = []
    for height, width in SIZES:
        corners = random.uniform(0, 1, (60, 2, 2)) * (width, height)
        boxes = np.concatenate([corners.min(1), corners.max(1) + 1], 1).clip(0, (width, height, width, height))
        boxes[:12] = np.array([16, 16, 80, 80]) + random.uniform(-12, 12, (12, 4))
        found.append(boxes.clip(0, (width, height, width, height)))
    return found


def stage_losses(extract, boxes, threshold, weights, agnostic):
    """Cross-entropy and L1 loss of a stage over the regions of both images, and the boxes that it makes of them."""
    rois = bbox2roi([torch.tensor(b).float() for b in boxes])
    scores, deltas = (out.detach().double().numpy() for out in extract(rois))
    image = rois[:, 0].numpy().astype(int)
    regions = rois[:, 1:].double().numpy()
    entropy = box = 0.0
    for i, (objects, labels) in enumerate(zip(OBJECTS, LABELS, strict=True)):
        own = image == i
        nearest, label = match(objects, regions[own], threshold, threshold, best_too=False)
        wanted = np.where(label == 1, labels[nearest] if len(labels) else 80, 80)
        logits = scores[own]
        entropy += (np.log(np.exp(logits).sum(1)) - logits[range(len(logits)), wanted]).sum()
        positive = np.flatnonzero(label == 1)
        if len(positive):
            found = deltas[own][positive].reshape(len(positive), -1, 4)
            found = found[range(len(positive)), 0 if agnostic else wanted[positive]]
            box += abs(found - encode(regions[own][positive], objects[nearest[positive]], weights)).sum()
    moved = decode(regions, deltas, weights) if agnostic else None
    return entropy / len(rois), box / len(rois), image, moved


def mask_loss(head, maps, boxes):
    """Over the regions of the objects, each of which its mask fills."""
    rois = bbox2roi([torch.tensor(b).float() for b in boxes])
    logits = head._mask_forward(maps, rois)['mask_preds'].detach().double().numpy()
    labels = np.concatenate(LABELS)
    return softplus(-logits[range(len(labels)), labels]).mean()


def roi_losses(head, maps, boxes):
    results = [InstanceData(bboxes=torch.tensor(b).float(), scores=torch.ones(len(b))) for b in boxes]
    return head.loss(maps, results, samples())


def test_losses_of_mask_rcnn():
    head = roi_head('maskrcnn_mpvit_t_d2')
    maps = features((4, 8, 16, 32))

    def extract(rois):
        return head.bbox_head(head.bbox_roi_extractor(maps, rois))

    losses = roi_losses(head, maps, proposals())
    boxes = [np.concatenate(pair) for pair in zip(proposals(), OBJECTS, strict=True)]
    entropy, box, *_ = stage_losses(extract, boxes, 0.5, (10, 10, 5, 5), agnostic=False)
    assert total(losses, 'loss_cls') == pytest.approx(entropy, rel=1e-4)
    assert total(losses, 'loss_bbox') == pytest.approx(box, rel=1e-4)
    far = [b[12:] if i else b[30:30] for i, b in enumerate(proposals())]  # no region but the objects is positive
    assert total(roi_losses(head, maps, far), 'loss_mask') == pytest.approx(mask_loss(head, maps, OBJECTS), rel=1e-4)


def test_losses_of_the_cascade():
    """Each stage gets all boxes of the one before, without new samples or objects; the mask is learnt at the first."""
    head = roi_head('cascade_maskrcnn_mpvit_s_d2')
    maps = features((4, 8, 16, 32))
    losses = roi_losses(head, maps, proposals())
    boxes = [np.concatenate(pair) for pair in zip(proposals(), OBJECTS, strict=True)]
    for stage, (threshold, weights) in enumerate(
        [(0.5, (10, 10, 5, 5)), (0.6, (20, 20, 10, 10)), (0.7, (30, 30, 15, 15))]
    ):

        def extract(rois, stage=stage):
            return head.bbox_head[stage](head.bbox_roi_extractor[stage](maps, rois))

        entropy, box, image, moved = stage_losses(extract, boxes, threshold, weights, agnostic=True)
        assert total(losses, f's{stage}.loss_cls') == pytest.approx(entropy, rel=1e-4)
        assert total(losses, f's{stage}.loss_bbox') == pytest.approx(box, rel=1e-3)
        assert box > 0
        limits = np.array(SIZES)[image][:, [1, 0, 1, 0]]
        moved = moved.clip(0, limits)
        whole = (moved[:, 2:] > moved[:, :2]).all(1)
        boxes = [moved[whole & (image == i)] for i in range(2)]
    assert {name for name in losses if 'mask' in name} == {'s0.loss_mask'}
    far = [b[12:] if i else b[30:30] for i, b in enumerate(proposals())]
    assert total(roi_losses(head, maps, far), 's0.loss_mask') == pytest.approx(mask_loss(head, maps, OBJECTS), rel=1e-4)


def test_a_third_of_the_gradient_reaches_the_features_of_the_cascade():
    head = roi_head('cascade_maskrcnn_mpvit_s_d2')
    rois = bbox2roi([torch.tensor(b).float() for b in proposals()])
    gradients = []
    for stage_forward in (
        lambda maps: head._bbox_forward(1, maps, rois)['cls_score'],
        lambda maps: head.bbox_head[1](head.bbox_roi_extractor[1](maps, rois))[0],
    ):
        maps = features((4, 8, 16, 32))
        head.zero_grad()
        stage_forward(maps).logsumexp(1).sum().backward()
        gradients.append((maps[0].grad, head.bbox_head[1].fc_cls.weight.grad.clone()))
    (ours, own), (whole, plain) = gradients
    torch.testing.assert_close(ours * 3, whole)
    torch.testing.assert_close(own, plain)
    assert whole.abs().max() > 0
