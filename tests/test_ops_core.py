"""The operators of mmvit.ops that detectors use most, against slow and plain definitions and against compiled mmcv."""

import importlib
import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from mmcv.ops import (
    DeformConv2d,
    RoIAlign,
    RoIPool,
    bbox_overlaps,
    deform_conv2d,
    modulated_deform_conv2d,
    nms,
    nms_match,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
    soft_nms,
    softmax_focal_loss,
)
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import nn
from torch.nn import functional as F
from versions import needs_compiled_mmcv

import mmvit.ops

MODULES = ['bbox', 'deform_conv', 'focal_loss', 'modulated_deform_conv', 'multi_scale_deform_attn', 'nms']
MODULES += ['roi_align', 'roi_pool']
METHODS = ('naive', 'linear', 'gaussian')
offsets = pytest.mark.parametrize('offset', [0, 1])
pool_modes = pytest.mark.parametrize('pool_mode', ['avg', 'max'])
sampling_ratios = pytest.mark.parametrize('sampling_ratio', [0, 2])
half_types = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
roi_pools = pytest.mark.parametrize(
    'pool',
    [RoIAlign(3, 0.25), RoIAlign(3, 0.25, 2), RoIAlign(3, 0.25, pool_mode='max'), RoIPool(3, 0.25)],
    ids=['avg', 'avg of 2', 'max', 'RoIPool'],
)
compiled = importlib.import_module('mmcv._ext')


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    """mmcv calls the functions of mmvit.ops, whether it has compiled ones or not."""
    for module in MODULES:
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{module}'), 'ext_module', mmvit.ops)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_boxes(count, size=100.0, longest=40.0):
    corners = torch.rand(count, 2) * size - 10
    return torch.cat([corners, corners + torch.rand(count, 2) * longest], 1)


def random_rois(count, images=2):
    """Boxes on images of 60 x 50 pixels, some of them partly or wholly outside, two without width or area."""
    boxes = random_boxes(count, 60)
    boxes[0, 2] = boxes[0, 0]
    boxes[1, 2:] = boxes[1, :2]
    boxes[2] += 500
    return torch.cat([torch.randint(images, (count, 1)).float(), boxes], 1)


def assert_same(values, expected, tolerance=1e-5):
    torch.testing.assert_close(values, torch.as_tensor(expected, dtype=values.dtype), rtol=tolerance, atol=tolerance)


def overlap(a, b, offset=0, mode='iou'):
    """The overlap of two boxes in float32."""
    a, b, offset = np.float32(a), np.float32(b), np.float32(offset)
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, np.float32(0))
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    both = width * height
    return both / (area_a + area_b - both if mode == 'iou' else area_a)


# Boxes


def match_by_loops(boxes, scores, exceeds, offset=0):
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    groups = []
    while left:
        first, *left = left
        groups.append([first] + [i for i in left if exceeds(overlap(boxes[first], boxes[i], offset))])
        left = [i for i in left if i not in groups[-1]]
    return groups


@offsets
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('whole', [False, True], ids=['fractions', 'whole pixels'])
def test_nms(offset, threshold, whole):
    """Boxes of whole pixels often overlap by the threshold itself, in float32 above or below the float64 number."""
    boxes, scores = random_boxes(60, 20, 12), torch.rand(60)
    boxes = boxes.round() if whole else boxes
    boxes[:, 2:] += 1
    groups = match_by_loops(boxes.numpy(), scores.tolist(), lambda iou: iou > np.float32(threshold), offset)
    dets, inds = nms(boxes, scores, threshold, offset)
    assert inds.tolist() == [group[0] for group in groups]
    assert dets.equal(torch.cat([boxes, scores[:, None]], 1)[inds])


def test_nms_compares_in_float32():
    """The boxes overlap by three tenths, which is the threshold in float32 and less than it in float64."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 3, 10]])
    scores = torch.tensor([0.9, 0.8])
    for offset, shift in ((0, 0), (1, 1)):
        shifted = boxes - boxes.new_tensor([0, 0, shift, shift])
        assert nms(shifted, scores, 0.3, offset)[1].tolist() == [0, 1]
        assert nms(shifted, scores, 0.2999, offset)[1].tolist() == [0]


def test_nms_match():
    boxes, scores = random_boxes(60, 40), torch.rand(60)
    groups = nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
    expected = match_by_loops(boxes.numpy(), scores.tolist(), lambda iou: iou >= np.float32(0.4))
    assert [group.tolist() for group in groups] == expected


def soft_nms_by_loops(boxes, scores, threshold, sigma, min_score, method, offset):
    left, picked = dict(enumerate(scores)), []
    while left:
        first = max(left, key=left.get)
        picked.append((first, left.pop(first)))
        for i in list(left):
            iou = float(overlap(boxes[first], boxes[i], offset))
            if method == 'gaussian':
                left[i] *= math.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                left[i] *= 0 if method == 'naive' else 1 - iou
            if left[i] < min_score:
                del left[i]
    return picked


@offsets
@pytest.mark.parametrize('method', METHODS)
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(60, 40), torch.rand(60)
    args = (0.3, 0.5, 0.05, method, offset)
    expected = soft_nms_by_loops(boxes.numpy(), scores.tolist(), *args)
    dets, inds = soft_nms(boxes, scores, *args)
    assert inds.tolist() == [index for index, _ in expected]
    assert_same(dets, torch.cat([boxes[inds], torch.tensor([[score] for _, score in expected])], 1))


@offsets
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_bbox_overlaps(mode, aligned, offset):
    first, second = random_boxes(8, 30), random_boxes(8, 30)
    pairs = zip(first, second, strict=True) if aligned else product(first, second)
    expected = torch.tensor([float(overlap(a.numpy(), b.numpy(), offset, mode)) for a, b in pairs])
    ious = bbox_overlaps(first, second, mode, aligned, offset)
    assert_same(ious, expected if aligned else expected.view(8, 8))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_boxes_of_all_types(dtype):
    boxes, scores = random_boxes(40, 30).to(dtype), torch.rand(40).double().to(dtype)
    for suppress in (partial(nms, iou_threshold=0.5), partial(nms, iou_threshold=0.5, offset=1), soft_nms):
        dets, inds = suppress(boxes, scores)
        assert dets.dtype == dtype
        assert set(inds.tolist()) == set(suppress(boxes.float(), scores.float())[1].tolist())
    ious = bbox_overlaps(boxes, boxes)
    assert ious.dtype == dtype
    assert_same(ious, bbox_overlaps(boxes.float(), boxes.float()), 0.01)


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for suppress in (partial(nms, iou_threshold=0.5), partial(nms, iou_threshold=0.5, offset=1), soft_nms):
        dets, inds = suppress(boxes, scores)
        assert dets.shape == (0, 5)
        assert inds.shape == (0,)
        assert inds.dtype == torch.long
    assert mmvit.ops.nms_match(torch.zeros(0, 5), iou_threshold=0.5) == []
    mmvit.ops.bbox_overlaps(boxes, random_boxes(3), torch.zeros(0, 3), mode=0, aligned=False, offset=0)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings('error')
def test_numbers_that_are_not_finite(bad):
    boxes, scores = random_boxes(30), torch.rand(30)
    boxes[3], boxes[4, 2], boxes[5], scores[5], scores[6] = bad, bad, boxes[6], bad, bad
    for offset in (0, 1):
        assert set(nms(boxes, scores, 0.5, offset)[1].tolist()) <= set(range(30))
    for method in METHODS:
        inds = soft_nms(boxes, scores, method=method)[1].tolist()
        assert len(inds) == len(set(inds))
    assert sorted(torch.cat(nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)).tolist()) == list(range(30))


@pytest.mark.filterwarnings('error')
def test_boxes_without_area():
    boxes, scores = torch.tensor([[5.0, 5, 5, 5]] * 3 + [[0, 0, 9, 9]]), torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert nms(boxes, scores, 0.5)[1].tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, 0.5, offset=1)[1].tolist() == [0, 3]
    assert soft_nms(boxes, scores, 0.5, method='naive')[1].tolist() == [0, 1, 2, 3]


# RoIs


def sample(plane, y, x, border):
    """A plane's value between pixels, or zero from ``border`` pixels off it; its edge goes on before that."""
    height, width = plane.shape
    if y < -border or x < -border or y > height - 1 + border or x > width - 1 + border:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    patch = plane[top : top + 2, left : left + 2]
    weights = np.outer([1 - (y - top), y - top][: len(patch)], [1 - (x - left), x - left][: patch.shape[1]])
    return float((patch * weights).sum())


def roi_align_by_loops(features, rois, size, scale, sampling_ratio, pool_mode, aligned):
    output = np.zeros((len(rois), features.shape[1], size, size))
    for r, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in box)
        width, height = (side if aligned else max(side, 1) for side in (x2 - x1, y2 - y1))
        rows, columns = (sampling_ratio or math.ceil(side / size) for side in (height, width))
        for c, i, j in product(range(features.shape[1]), range(size), range(size)):
            values = [
                sample(
                    features[int(image), c].numpy(),
                    y1 + (i + (row + 0.5) / rows) * height / size,
                    x1 + (j + (column + 0.5) / columns) * width / size,
                    border=1,
                )
                for row, column in product(range(rows), range(columns))
            ]
            if pool_mode == 'max':
                output[r, c, i, j] = max(values, default=-10000)
            else:
                output[r, c, i, j] = sum(values) / max(len(values), 1)
    return output


@pool_modes
@sampling_ratios
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align(pool_mode, sampling_ratio, aligned):
    features, rois = torch.randn(2, 2, 12, 15, dtype=torch.float64), random_rois(8).double()
    args = (3, 0.25, sampling_ratio, pool_mode, aligned)
    assert_same(roi_align(features, rois, *args), roi_align_by_loops(features, rois, *args))


def roi_pool_by_loops(features, rois, size, scale):
    output = np.zeros((len(rois), features.shape[1], size, size))
    for r, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = box[0] * scale, box[1] * scale, (box[2] + 1) * scale, (box[3] + 1) * scale
        for i, j in product(range(size), range(size)):
            top, bottom = math.floor(y1 + i * (y2 - y1) / size), math.ceil(y1 + (i + 1) * (y2 - y1) / size)
            left, right = math.floor(x1 + j * (x2 - x1) / size), math.ceil(x1 + (j + 1) * (x2 - x1) / size)
            pixels = features[int(image), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if x2 > x1 and y2 > y1 and pixels.numel():
                output[r, :, i, j] = pixels.amax((1, 2))
    return output


def test_roi_pool():
    features, rois = torch.randn(2, 3, 12, 15, dtype=torch.float64), random_rois(20).double()
    rois[4, 3] = rois[4, 1] - 5  # an end before the start
    assert_same(roi_pool(features, rois, 3, 0.25), roi_pool_by_loops(features, rois, 3, 0.25))


@roi_pools
def test_gradients_of_roi_pools(pool):
    features, rois = torch.randn(2, 2, 12, 15, dtype=torch.float64, requires_grad=True), random_rois(6).double()
    rois[5, 3] = rois[5, 1]
    assert torch.autograd.gradcheck(partial(pool, rois=rois), features)


@roi_pools
@half_types
def test_roi_pools_of_half_types(pool, dtype):
    features, rois = torch.randn(2, 4, 12, 15).to(dtype).requires_grad_(), random_rois(8).to(dtype)
    wide = features.detach().float().requires_grad_()
    output, expected = pool(features, rois), pool(wide, rois.float())
    assert output.dtype == dtype
    assert output.equal(expected.to(dtype))
    grad_output = torch.randn_like(output)
    output.backward(grad_output)
    expected.backward(grad_output.float())
    # The maxima's coordinates have the features' type.
    assert_same(features.grad, wide.grad, 0.1 if getattr(pool, 'pool_mode', '') == 'max' else 0.02)


@roi_pools
def test_roi_pools_of_any_memory_format(pool):
    features, rois = torch.randn(2, 6, 12, 15, requires_grad=True), random_rois(8)
    others = [
        features.detach().to(memory_format=torch.channels_last),
        features.detach().repeat(1, 2, 1, 2)[:, ::2, :, :15],
    ]
    others[1].copy_(features.detach())
    output = pool(features, rois)
    grad_output = torch.randn_like(output).to(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(output, features, grad_output)
    for other in others:
        assert not other.is_contiguous()
        other.requires_grad_()
        values = pool(other, rois)
        assert_same(values, output)
        assert_same(torch.autograd.grad(values, other, grad_output)[0], expected)


@roi_pools
def test_no_rois(pool):
    features = torch.randn(2, 4, 12, 15, requires_grad=True)
    output = pool(features, torch.zeros(0, 5))
    assert output.shape == (0, 4, 3, 3)
    output.sum().backward()
    assert not features.grad.any()


@roi_pools
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_rois_that_are_not_finite(pool, bad):
    features, rois = torch.rand(1, 2, 12, 15, requires_grad=True), torch.tensor([[0, 4, 4, bad, 20], [0, bad, 4, 8, 8]])
    output = pool(features, rois)
    assert not output.any()
    output.sum().backward()
    assert not features.grad.any()


@pool_modes
def test_outputs_of_roi_align_in_any_memory_format(pool_mode):
    features, rois = torch.randn(2, 4, 12, 15), random_rois(8)
    expected = roi_align(features, rois, 3, 0.25, 2, pool_mode)
    output, argmax_y, argmax_x = (torch.zeros_like(expected, memory_format=torch.channels_last) for _ in range(3))
    mode = dict(spatial_scale=0.25, sampling_ratio=2, pool_mode=int(pool_mode == 'avg'), aligned=True)
    mmvit.ops.roi_align_forward(features, rois, output, argmax_y, argmax_x, aligned_height=3, aligned_width=3, **mode)
    assert output.equal(expected)


# Deformable convolution

GEOMETRIES = [
    dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1),
    dict(stride=2, padding=1, dilation=1, groups=2, deform_groups=2),
    dict(stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=1, deform_groups=4),
]
geometries = pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)


def deform_inputs(geometry, dtype=torch.float64, batch=2, channels=4, outputs=6, kernel=(3, 2)):
    """Input, offset, mask, weight and bias."""
    features = torch.randn(batch, channels, 6, 7, dtype=dtype)
    weight = torch.randn(outputs, channels // geometry['groups'], *kernel, dtype=dtype)
    args = [geometry[name] for name in ('stride', 'padding', 'dilation')]
    size = F.conv2d(features[:, :1].float(), weight[:1, :1].float(), None, *args).shape[2:]
    places = geometry['deform_groups'] * math.prod(kernel)
    offset = torch.randn(batch, 2 * places, *size, dtype=dtype) * 2
    mask = torch.rand(batch, places, *size, dtype=dtype)
    return features, offset, mask, weight, torch.randn(outputs, dtype=dtype)


def zero_padded_sample(plane, y, x):
    return sample(np.pad(plane, 1), y + 1, x + 1, border=0)


def deform_conv_by_loops(features, offset, mask, weight, bias, *, stride, padding, dilation, groups, deform_groups):
    stride, padding, dilation = (
        value if isinstance(value, tuple) else (value,) * 2 for value in (stride, padding, dilation)
    )
    (batch, channels), (outputs, _, rows, columns) = features.shape[:2], weight.shape
    output = np.zeros((batch, outputs, *offset.shape[2:]))
    for n, o, i, j in np.ndindex(*output.shape):
        output[n, o, i, j] = bias[o]
        for c, row, column in np.ndindex(channels // groups, rows, columns):
            channel = o // (outputs // groups) * (channels // groups) + c
            place = (channel // (channels // deform_groups) * rows + row) * columns + column
            y = i * stride[0] - padding[0] + row * dilation[0] + float(offset[n, 2 * place, i, j])
            x = j * stride[1] - padding[1] + column * dilation[1] + float(offset[n, 2 * place + 1, i, j])
            value = zero_padded_sample(features[n, channel].numpy(), y, x)
            output[n, o, i, j] += float(weight[o, c, row, column]) * float(mask[n, place, i, j]) * value
    return output


@geometries
def test_deform_conv(geometry):
    features, offset, mask, weight, bias = deform_inputs(geometry, batch=1)
    expected = deform_conv_by_loops(features, offset, torch.ones_like(mask), weight, torch.zeros_like(bias), **geometry)
    assert_same(deform_conv2d(features, offset, weight, *geometry.values()), expected)


@geometries
def test_modulated_deform_conv(geometry):
    inputs = deform_inputs(geometry, batch=1)
    assert_same(modulated_deform_conv2d(*inputs, *geometry.values()), deform_conv_by_loops(*inputs, **geometry))


@geometries
def test_gradients_of_deform_convs(geometry):
    inputs = [tensor.requires_grad_() for tensor in deform_inputs(geometry, channels=4, outputs=2)]
    features, offset, mask, weight, _ = inputs
    args = geometry.values()
    check = partial(torch.autograd.gradcheck, fast_mode=True)
    assert check(lambda *inputs: deform_conv2d(*inputs, *args), (features, offset, weight))
    assert check(lambda *inputs: modulated_deform_conv2d(*inputs, *args), inputs)
    assert check(lambda *inputs: modulated_deform_conv2d(*inputs, None, *args), (features, offset, mask, weight))


@pytest.mark.parametrize('step', [1, 2, 32])
def test_images_at_once_make_no_difference(step):
    features, offset, _, weight, _ = deform_inputs(GEOMETRIES[1], batch=4)
    alone = [deform_conv2d(features[n : n + 1], offset[n : n + 1], weight, *GEOMETRIES[1].values()) for n in range(4)]
    assert_same(deform_conv2d(features, offset, weight, *GEOMETRIES[1].values(), False, step), torch.cat(alone))


def test_maps_smaller_than_the_kernel():
    conv = DeformConv2d(4, 6, 3, padding=1)
    assert conv(torch.randn(2, 4, 2, 2), torch.zeros(2, 18, 2, 2)).shape == (2, 6, 2, 2)


@half_types
def test_deform_convs_of_half_types(dtype):
    inputs = [tensor.requires_grad_() for tensor in deform_inputs(GEOMETRIES[0], dtype)]
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    for chosen, conv in (((0, 1, 3), deform_conv2d), ((0, 1, 2, 3, 4), modulated_deform_conv2d)):
        grads = []
        for tensors in (inputs, wide):
            output = conv(*(tensors[i] for i in chosen), *GEOMETRIES[0].values())
            assert output.dtype == tensors[0].dtype
            grads.append([output, *torch.autograd.grad(output.sum(), [tensors[i] for i in chosen])])
        for grad, expected in zip(*grads, strict=True):
            assert_same(grad / expected.abs().max(), expected / expected.abs().max(), 0.02)


def test_deform_convs_of_channels_last():
    features, offset, mask, weight, bias = (tensor.requires_grad_() for tensor in deform_inputs(GEOMETRIES[0]))
    for name, conv in (('plain', deform_conv2d), ('modulated', modulated_deform_conv2d)):
        inputs = (features, offset, weight) if name == 'plain' else (features, offset, mask, weight, bias)
        others = [
            tensor.detach().to(memory_format=torch.channels_last).requires_grad_() if tensor.dim() == 4 else tensor
            for tensor in inputs
        ]
        output, other = (conv(*tensors, *GEOMETRIES[0].values()) for tensors in (inputs, others))
        assert_same(other, output)
        grad_output = torch.randn_like(output)
        grads = (
            torch.autograd.grad(output, inputs, grad_output),
            torch.autograd.grad(other, others, grad_output.to(memory_format=torch.channels_last)),
        )
        for expected, grad in zip(*grads, strict=True):
            assert_same(grad, expected)


# Focal loss


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(weighted):
    logits, target = torch.randn(12, 5, dtype=torch.float64) * 3, torch.arange(12) % 7 - 1
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    one_hot = torch.zeros_like(logits)
    for row, label in enumerate(target.tolist()):
        if 0 <= label < 5:
            one_hot[row, label] = 1
    entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction='none')
    expected = (0.25 * one_hot + 0.75 * (1 - one_hot)) * (1 - (-entropy).exp()) ** 2 * entropy
    if weighted:
        expected *= torch.tensor([weight[t] if 0 <= t < 5 else 1 for t in target.tolist()])[:, None]
    assert_same(sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none'), expected)
    assert_same(sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'mean'), expected.sum() / 12)


@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss(weighted):
    logits, target = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 7 - 1
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    expected = []
    for row, label in zip(logits.log_softmax(1), target.tolist(), strict=True):
        known = 0 <= label < 5
        loss = -0.25 * (1 - row[label].exp()) ** 2 * row[label] if known else torch.tensor(0.0)
        expected.append(loss * weight[label] if known and weighted else loss)
    assert_same(softmax_focal_loss(logits, target, 2.0, 0.25, weight, 'none'), torch.stack(expected))


@pytest.mark.parametrize('loss', [sigmoid_focal_loss, softmax_focal_loss], ids=['sigmoid', 'softmax'])
class TestFocalLosses:
    @pytest.mark.parametrize('gamma', [1.0, 2.0, 2.5])
    @pytest.mark.parametrize('reduction', ['mean', 'sum'])
    def test_gradients(self, loss, gamma, reduction):
        logits, target = torch.randn(12, 5, dtype=torch.float64, requires_grad=True), torch.arange(12) % 7 - 1
        for weight in (None, torch.rand(5, dtype=torch.float64)):
            assert torch.autograd.gradcheck(lambda x: loss(x, target, gamma, 0.25, weight, reduction), logits)  # noqa: B023

    @half_types
    def test_half_types(self, loss, dtype):
        logits, target = (torch.randn(64, 5) * 2).to(dtype).requires_grad_(), torch.arange(64) % 7 - 1
        wide = logits.detach().float().requires_grad_()
        output, expected = loss(logits, target), loss(wide, target)
        assert output.dtype == dtype
        assert_same(output, expected, 0.02)
        output.backward()
        expected.backward()
        assert_same(logits.grad, wide.grad, 0.02)

    def test_certain_predictions(self, loss):
        """Logarithms of zero are bounded."""
        logits, target = (torch.eye(5) * 2 - 1) * 300, torch.tensor([0, 1, 0, 1, 5])
        logits.requires_grad_()
        output = loss(logits, target, 2.0, 0.25, None, 'sum')
        assert output.isfinite()
        output.backward()
        assert logits.grad.isfinite().all()

    def test_strided_logits(self, loss):
        logits, target = torch.randn(5, 24).T[::2], torch.arange(12) % 5
        assert_same(loss(logits, target), loss(logits.contiguous(), target))

    def test_no_rows(self, loss):
        logits = torch.zeros(0, 5, requires_grad=True)
        if loss is sigmoid_focal_loss:
            loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum').backward()
            assert logits.grad.shape == (0, 5)
        else:
            assert loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'none').shape == (0,)


# Deformable attention

SHAPES = torch.tensor([[4, 6], [2, 3]])


def attention_inputs(dtype=torch.float64, batch=2, queries=3):
    """Value, shapes, starts, locations (some of them outside) and weights, of 2 heads with 4 channels and 3 points."""
    value = torch.randn(batch, 30, 2, 4, dtype=dtype)
    locations = torch.rand(batch, queries, 2, 2, 3, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, 2, 2, 3, dtype=dtype)
    return value, SHAPES, torch.tensor([0, 24]), locations, weights


def attention_by_loops(value, locations, weights):
    batch, queries, heads, _, points, _ = locations.shape
    output = np.zeros((batch, queries, heads, value.shape[-1]))
    for n, q, h, c in np.ndindex(*output.shape):
        start = 0
        for level, (height, width) in enumerate(SHAPES.tolist()):
            plane = value[n, start : start + height * width, h, c].view(height, width).numpy()
            start += height * width
            for point in range(points):
                x, y = locations[n, q, h, level, point].tolist()
                weight = float(weights[n, q, h, level, point])
                output[n, q, h, c] += weight * zero_padded_sample(plane, y * height - 0.5, x * width - 0.5)
    return output.reshape(batch, queries, -1)


def test_attention():
    value, shapes, starts, locations, weights = attention_inputs()
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    assert_same(output, attention_by_loops(value, locations, weights))


def test_gradients_of_attention():
    value, shapes, starts, locations, weights = attention_inputs()
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    attend = MultiScaleDeformableAttnFunction.apply
    assert torch.autograd.gradcheck(lambda v, p, w: attend(v, shapes, starts, p, w, 64), inputs)


@half_types
def test_attention_of_half_types(dtype):
    """mmcv gives the locations and the weights the value's type."""
    value, shapes, starts, locations, weights = attention_inputs(torch.float32)
    value = value.to(dtype).requires_grad_()
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    assert output.dtype == dtype
    rounded = (tensor.to(dtype).float() for tensor in (locations, weights))
    expected = MultiScaleDeformableAttnFunction.apply(value.detach().float(), shapes, starts, *rounded, 64)
    assert_same(output, expected, 0.02)
    output.sum().backward()
    assert value.grad.dtype == dtype


@pytest.mark.parametrize('count', [dict(queries=0), dict(batch=0)], ids=str)
def test_attention_of_nothing(count):
    value, shapes, starts, locations, weights = attention_inputs(**count)
    value.requires_grad_()
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    assert output.shape == (*locations.shape[:2], 8)
    output.sum().backward()
    assert not value.grad.any()


def test_attention_of_strided_tensors():
    value, shapes, starts, locations, weights = attention_inputs()
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (value, locations, weights)]
    output = mmvit.ops.ms_deform_attn_forward(strided[0], shapes, starts, *strided[1:], im2col_step=64)
    assert output.equal(mmvit.ops.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=64))


# All differentiable operators


class Detector(nn.Module):
    """Some of each: deformable convolutions, RoI pools, focal losses and attention."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Conv2d(4, 18, 3, padding=1)
        self.conv = DeformConv2d(4, 4, 3, padding=1)
        self.pools = nn.ModuleList([RoIAlign(2, 0.25), RoIAlign(2, 0.25, pool_mode='max'), RoIPool(2, 0.25)])
        self.head = nn.Linear(16, 5)

    def forward(self, x, rois):
        x = self.conv(x, self.offset(x))
        logits = torch.cat([self.head(pool(x, rois.to(x.dtype)).flatten(1)) for pool in self.pools])
        target = torch.arange(len(logits)) % 6
        value, shapes, starts, locations, weights = attention_inputs(torch.float32)
        value = value + logits.mean()
        attended = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
        return sigmoid_focal_loss(logits, target) + softmax_focal_loss(logits, target % 5) + attended.mean()


def test_autocast():
    detector, features, rois = Detector(), torch.randn(2, 4, 12, 15), random_rois(8)[3:]
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        detector.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = detector(features, rois)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


# Compiled mmcv


def clustered(count, whole=False):
    """Boxes and scores with duplicates, equal scores and boxes without area."""
    boxes, scores = random_boxes(count, 4 * count**0.5, 30), torch.rand(count)
    boxes = boxes.round() if whole else boxes
    boxes[: count // 10] = boxes[count // 2 : count // 2 + count // 10]
    boxes[-5:, 2:] = boxes[-5:, :2]
    return boxes, (scores * 20).round() / 20 if whole else scores


@needs_compiled_mmcv
@pytest.mark.parametrize('whole', [False, True], ids=['fractions', 'whole pixels'])
@pytest.mark.parametrize('count', [1, 7, 100, 600])
class TestSuppressionSideBySide:
    @offsets
    @pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
    def test_nms(self, count, whole, offset, threshold):
        inputs, args = clustered(count, whole), dict(iou_threshold=threshold, offset=offset)
        assert mmvit.ops.nms(*inputs, **args).tolist() == compiled.nms(*inputs, **args).tolist()

    @offsets
    @pytest.mark.parametrize('method', [0, 1, 2], ids=METHODS)
    def test_soft_nms(self, count, whole, offset, method):
        (boxes, scores), results = clustered(count, whole), []
        for module in (mmvit.ops, compiled):
            dets = torch.zeros(count, 5)
            args = dict(iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
            inds = module.softnms(boxes, scores, dets, **args)
            results.append((inds.tolist(), dets[: len(inds)]))
        assert results[0][0] == results[1][0]
        torch.testing.assert_close(results[0][1], results[1][1], equal_nan=True)

    @pytest.mark.parametrize('threshold', [0.1, 0.5])
    def test_nms_match(self, count, whole, threshold):
        boxes, scores = clustered(count, whole)
        dets = torch.cat([boxes, scores[:, None]], 1)
        groups = [module.nms_match(dets, iou_threshold=threshold) for module in (mmvit.ops, compiled)]
        assert groups[0] == groups[1]


def assert_filled_alike(function, *args, filled, **named):
    """Our function leaves the same as the compiled one in the tensors that it fills, which come last."""
    results = []
    for module in (mmvit.ops, compiled):
        tensors = [tensor.clone() for tensor in filled]
        getattr(module, function)(*args, *tensors, **named)
        results.append(tensors)
    for ours, theirs in zip(*results, strict=True):
        scale = theirs.abs().max() if theirs.numel() else 1
        assert_same(ours / scale, theirs / scale)


@needs_compiled_mmcv
@pool_modes
@sampling_ratios
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_side_by_side(pool_mode, sampling_ratio, aligned):
    features, rois = torch.randn(2, 8, 12, 15), random_rois(40)
    named = dict(aligned_height=7, aligned_width=5, spatial_scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned)
    named['pool_mode'] = int(pool_mode == 'avg')
    output, argmax = torch.zeros(40, 8, 7, 5), torch.zeros(40, 8, 7, 5) if pool_mode == 'max' else torch.zeros(0)
    assert_filled_alike('roi_align_forward', features, rois, filled=[output, argmax, argmax], **named)
    at = (argmax.clone(), argmax.clone())
    compiled.roi_align_forward(features, rois, output, *at, **named)
    assert_filled_alike('roi_align_backward', output, rois, *at, filled=[torch.randn_like(features)], **named)


@needs_compiled_mmcv
@geometries
def test_deform_conv_side_by_side(geometry):
    """The gradients are added to those of input and weight, and take the place of the offset's."""
    features, offset, _, weight, _ = deform_inputs(geometry, torch.float32)
    empty = [torch.zeros(0), torch.zeros(0)]
    named = dict(kH=weight.shape[2], kW=weight.shape[3], group=geometry['groups'], im2col_step=2)
    named['deformable_group'] = geometry['deform_groups']
    for name, key in (('d', 'stride'), ('pad', 'padding'), ('dilation', 'dilation')):
        named[f'{name}H'], named[f'{name}W'] = nn.modules.utils._pair(geometry[key])
    output = deform_conv2d(features, offset, weight, *geometry.values())
    forward = partial(assert_filled_alike, 'deform_conv_forward', features, weight, offset)
    forward(filled=[torch.randn_like(output), *empty], **named)
    filled = [torch.randn_like(features), torch.randn_like(offset), weight, *empty[:1]]
    assert_filled_alike('deform_conv_backward_input', features, offset, output, filled=filled, **named)
    filled = [torch.randn_like(weight), *empty]
    backward = partial(assert_filled_alike, 'deform_conv_backward_parameters', features, offset, output)
    backward(filled=filled, scale=0.5, **named)


@needs_compiled_mmcv
@geometries
@pytest.mark.parametrize('with_bias', [False, True])
def test_modulated_deform_conv_side_by_side(geometry, with_bias):
    features, offset, mask, weight, bias = deform_inputs(geometry, torch.float32)
    bias, empty = bias if with_bias else bias[:0], torch.zeros(0)
    named = dict(kernel_h=weight.shape[2], kernel_w=weight.shape[3], group=geometry['groups'], with_bias=with_bias)
    named['deformable_group'] = geometry['deform_groups']
    for name, key in (('stride', 'stride'), ('pad', 'padding'), ('dilation', 'dilation')):
        named[f'{name}_h'], named[f'{name}_w'] = nn.modules.utils._pair(geometry[key])
    output = modulated_deform_conv2d(features, offset, mask, weight, None, *geometry.values())
    forward = partial(assert_filled_alike, 'modulated_deform_conv_forward', features, weight, bias, empty, offset, mask)
    forward(filled=[torch.randn_like(output), empty], **named)
    grads = [torch.randn_like(tensor) for tensor in (features, weight, bias, offset, mask)]
    backward = partial(assert_filled_alike, 'modulated_deform_conv_backward', features, weight, bias, empty)
    backward(offset, mask, empty, filled=[*grads, output], **named)
