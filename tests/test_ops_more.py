"""mmcv's rarer operators against the loops that their kernels are, and those that mmcv has in Python.

mmcv's own classes call mmvit's operators here, in an environment with compiled ones too.
"""

import math
import sys

import mmcv.ops
import numpy as np
import pytest
import torch
from commands import run
from mmcv.ops.merge_cells import ConcatCell, GlobalPoolingCell, SumCell
from mmcv.utils.env import collect_env
from mmengine.registry import MODELS
from torch.autograd import gradcheck
from versions import needs_compiled_mmcv

import mmvit.ops

NARROW = ((torch.float16, 2e-3), (torch.bfloat16, 2e-2))


@pytest.fixture(autouse=True)
def _operators_of_mmvit(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', mmvit.ops)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(*tensors):
    return [tensor.detach().requires_grad_() for tensor in tensors]


def assert_all_layouts_and_types(function, *inputs):
    """Channels-last and 16-bit inputs give what the float64 inputs give, and gradients too."""
    output = function(*leaves(*inputs))
    cotangent = torch.randn_like(output)
    expected = _gradients(function, cotangent, *leaves(*inputs))
    last = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    for value, reference in zip(_gradients(function, cotangent, *leaves(*last)), expected, strict=True):
        torch.testing.assert_close(value, reference)
    for dtype, tolerance in ((torch.float32, 1e-5), *NARROW):
        narrow = [x.to(dtype) for x in inputs]
        expected = _gradients(function, cotangent.to(dtype).double(), *leaves(*(x.double() for x in narrow)))
        values = _gradients(function, cotangent.to(dtype), *leaves(*narrow))
        assert {value.dtype for value in values} == {dtype}
        for value, reference in zip(values, expected, strict=True):
            error = (value.double() - reference).abs().max()
            assert error <= tolerance * reference.abs().max(), dtype


def _gradients(function, cotangent, *inputs):
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, inputs, cotangent)]


# CARAFE


def carafe_loop(features, masks, kernel_size, group_size, scale_factor):
    n, channels, height, width = features.shape
    output = np.zeros((n, channels, height * scale_factor, width * scale_factor))
    for b, c, y, x, i, j in np.ndindex(*output.shape, kernel_size, kernel_size):
        row, column = y // scale_factor + i - kernel_size // 2, x // scale_factor + j - kernel_size // 2
        if 0 <= row < height and 0 <= column < width:
            group = c // (channels // group_size)
            weight = masks[b, (group * kernel_size + i) * kernel_size + j, y, x]
            output[b, c, y, x] += features[b, c, row, column] * weight
    return output


CARAFE_SIZES = [(5, 1, 2, (3, 4)), (3, 2, 2, (4, 3)), (1, 4, 3, (2, 2)), (3, 1, 1, (1, 5))]


def carafe_inputs(kernel_size, group_size, scale_factor, size):
    upsampled = [side * scale_factor for side in size]
    return randn(2, 4, *size), randn(2, group_size * kernel_size**2, *upsampled, seed=1)


@pytest.mark.parametrize('args', CARAFE_SIZES)
def test_carafe(args):
    *options, _ = args
    features, masks = leaves(*carafe_inputs(*args))
    output = mmcv.ops.carafe(features, masks, *options)
    np.testing.assert_allclose(
        output.detach(), carafe_loop(features.detach().numpy(), masks.detach().numpy(), *options)
    )
    assert gradcheck(lambda *inputs: mmcv.ops.carafe(*inputs, *options), (features, masks))
    assert_all_layouts_and_types(lambda *inputs: mmcv.ops.carafe(*inputs, *options), features, masks)


@pytest.mark.parametrize('args', CARAFE_SIZES)
def test_carafe_naive(args):
    """mmcv's own class refuses to differentiate on a CPU."""
    *options, _ = args
    features, masks = leaves(*carafe_inputs(*args))
    output = mmcv.ops.carafe(features, masks, *options)
    naive = torch.zeros_like(output)
    mmvit.ops.carafe_naive_forward(features.detach(), masks.detach(), naive, *options)
    torch.testing.assert_close(naive, output)
    cotangent = torch.randn_like(output)
    expected = torch.autograd.grad(output, (features, masks), cotangent)
    grads = torch.zeros_like(features), torch.zeros_like(masks)
    with torch.no_grad():
        mmvit.ops.carafe_naive_backward(cotangent, features, masks, *grads, *options)
    torch.testing.assert_close(grads, expected)


def test_carafe_without_images():
    features, masks = torch.zeros(0, 4, 3, 5, requires_grad=True), torch.zeros(0, 50, 6, 10, requires_grad=True)
    output = mmcv.ops.carafe(features, masks, 5, 2, 2)
    assert output.shape == (0, 4, 6, 10)
    output.sum().backward()
    assert features.grad.shape == features.shape
    assert masks.grad.shape == masks.shape


def test_carafe_pack_trains():
    pack = MODELS.build(dict(type='carafe', channels=8, scale_factor=2))
    pack(torch.randn(1, 8, 3, 4)).sum().backward()
    assert all(p.grad.isfinite().all() for p in pack.parameters())


# Deformable RoI pooling


def interpolate(feature, y, x):
    """RoIAlign's value at a point of a map (h, w)."""
    height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top, left] * (1 - (x - left)) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (1 - (x - left)) + feature[bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def deform_roi_pool_loop(features, rois, offsets, size, spatial_scale, sampling_ratio, gamma):
    output = np.zeros((len(rois), features.shape[1], *size))
    for r, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (side * spatial_scale - 0.5 for side in box)
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        rows, columns = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)
        for c, i, j in np.ndindex(*output.shape[1:]):
            top, left = y1 + i * bin_h, x1 + j * bin_w
            if offsets is not None:
                left += gamma * (x2 - x1) * offsets[r, 0, i, j]
                top += gamma * (y2 - y1) * offsets[r, 1, i, j]
            points = [
                interpolate(features[int(image), c], top + (k + 0.5) * bin_h / rows, left + (m + 0.5) * bin_w / columns)
                for k in range(rows)
                for m in range(columns)
            ]
            output[r, c, i, j] = sum(points) / max(len(points), 1)
    return output


ROIS = torch.tensor(
    [[0, 3.1, 2.3, 14.2, 11.7], [1, 0, 1.5, 24.9, 9.8], [1, -9.1, -7.2, 3, 30], [0, 6, 6, 6, 6], [0, 60, 60, 70, 70]],
    dtype=torch.float64,
)
POOL_OPTIONS = [((2, 3), 0.5, 2, 0.1), ((3, 2), 0.5, 0, 0.3), ((1, 1), 1.0, 0, 0.1), ((2, 2), 0.25, 3, 0.1)]


@pytest.mark.parametrize('with_offsets', [True, False])
@pytest.mark.parametrize('options', POOL_OPTIONS)
def test_deform_roi_pool(options, with_offsets):
    features, offsets = randn(2, 3, 7, 9), randn(len(ROIS), 2, *options[0], seed=1) if with_offsets else None
    output = mmcv.ops.deform_roi_pool(features, ROIS, offsets, *options)
    arrays = features.numpy(), ROIS.numpy(), offsets.numpy() if with_offsets else None
    expected = deform_roi_pool_loop(*arrays, *options)
    np.testing.assert_allclose(output, expected, atol=1e-12)


@pytest.mark.parametrize('options', POOL_OPTIONS)
def test_deform_roi_pool_gradients(options):
    inside = ROIS[:1].clamp(max=12) if options[1] == 1 else ROIS[:1]
    features, offsets = leaves(randn(2, 1, 12, 14), 0.2 * randn(1, 2, *options[0], seed=1))
    assert gradcheck(lambda *x: mmcv.ops.deform_roi_pool(x[0], inside, x[1], *options), (features, offsets))
    assert gradcheck(lambda x: mmcv.ops.deform_roi_pool(x, ROIS, None, *options), features)
    assert gradcheck(lambda x: mmcv.ops.deform_roi_pool(x, ROIS, randn(5, 2, *options[0]), *options), features)


def offset_gradient_loop(features, roi, offsets, size, spatial_scale, ratio, gamma):
    """mmcv's derivative of the sum of all bins of one region: it extrapolates beyond the rims."""
    height, width = features.shape[2:]
    x1, y1, x2, y2 = (side * spatial_scale - 0.5 for side in roi[1:])
    grad = np.zeros_like(offsets)
    for c, i, j, k, m in np.ndindex(features.shape[1], *size, ratio, ratio):
        x = x1 + gamma * (x2 - x1) * offsets[0, 0, i, j] + (j + (m + 0.5) / ratio) * (x2 - x1) / size[1]
        y = y1 + gamma * (y2 - y1) * offsets[0, 1, i, j] + (i + (k + 0.5) / ratio) * (y2 - y1) / size[0]
        if -1 <= x <= width and -1 <= y <= height:
            left, top = (min(int(max(p, 0)), side - 1) for p, side in ((x, width), (y, height)))
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            f = features[int(roi[0]), c]
            across = (bottom - y) * (f[top, right] - f[top, left]) + (y - top) * (f[bottom, right] - f[bottom, left])
            down = (right - x) * (f[bottom, left] - f[top, left]) + (x - left) * (f[bottom, right] - f[top, right])
            grad[0, :, i, j] += gamma * np.array([(x2 - x1) * across, (y2 - y1) * down]) / ratio**2
    return grad


@pytest.mark.parametrize('roi', ROIS[:3])
def test_deform_roi_pool_gradients_of_offsets_are_mmcvs_at_the_rims(roi):
    options = (3, 2), 0.5, 2, 0.4
    features, offsets = randn(2, 3, 7, 9), randn(1, 2, *options[0], seed=1).requires_grad_()
    mmcv.ops.deform_roi_pool(features, roi[None], offsets, *options).sum().backward()
    expected = offset_gradient_loop(features.numpy(), roi.numpy(), offsets.detach().numpy(), *options)
    np.testing.assert_allclose(offsets.grad, expected, atol=1e-12)


def test_deform_roi_pool_in_pieces(monkeypatch):
    def pool(features, offsets):
        return mmcv.ops.deform_roi_pool(features, ROIS, offsets, (3, 2), 0.5, 0, 0.3)

    inputs = leaves(randn(2, 3, 7, 9), randn(len(ROIS), 2, 3, 2, seed=1))
    cotangent = randn(len(ROIS), 3, 3, 2, seed=2)
    whole = _gradients(pool, cotangent, *inputs)
    monkeypatch.setattr('mmvit.ops.deform_roi_pool.POINTS', 100)
    torch.testing.assert_close(_gradients(pool, cotangent, *inputs), whole)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_deform_roi_pool_layouts_and_types(sampling_ratio):
    rois = torch.tensor([[0, 2, 2, 13, 11], [1, 1, 1, 21, 9]], dtype=torch.float64)  # exact in 16 bits

    def pool(features, offsets):
        return mmcv.ops.deform_roi_pool(features, rois.to(features), offsets, (3, 2), 0.5, sampling_ratio, 0.125)

    assert_all_layouts_and_types(pool, randn(2, 3, 7, 9), randn(2, 2, 3, 2, seed=1))


@pytest.mark.parametrize('pack', [mmcv.ops.DeformRoIPoolPack, mmcv.ops.ModulatedDeformRoIPoolPack])
def test_deform_roi_pool_packs_train_without_regions_too(pack):
    layer = pack(output_size=3, output_channels=4, deform_fc_channels=8, spatial_scale=0.5)
    features = torch.randn(2, 4, 7, 9, requires_grad=True)
    empty = mmcv.ops.deform_roi_pool(features, ROIS[:0].float(), None, (3, 3))
    assert empty.shape == (0, 4, 3, 3)
    empty.sum().backward()
    assert not features.grad.any()
    layer(features, ROIS.float()).square().sum().backward()
    assert features.grad.any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# Masked convolution


@pytest.mark.parametrize(('kernel_size', 'padding', 'size'), [(3, 1, (5, 6)), (1, 0, (4, 3)), ((3, 5), (1, 2), (6, 5))])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_masked_conv(kernel_size, padding, size, dtype):
    layer = mmcv.ops.MaskedConv2d(3, 4, kernel_size, padding=padding).to(dtype)
    x = randn(1, 3, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    mask = randn(1, *size, seed=1) > 0.3
    expected = layer(x) * mask
    torch.testing.assert_close(layer(x, mask), expected, atol=2e-2 if dtype.itemsize == 2 else 1e-5, rtol=0)
    assert not layer(x, torch.zeros_like(mask)).any()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_masked_im2col_takes_zeros_from_beyond_the_image(dtype):
    """mmcv's class asks only for places whose windows lie in the padded image; the kernel knows no such limit."""
    image = randn(1, 2, 3, 4).to(dtype)
    columns = torch.full((2 * 3 * 3, 2), torch.nan, dtype=dtype)
    places = torch.tensor([2, 0]), torch.tensor([3, 0])
    mmvit.ops.masked_im2col_forward(image, *places, columns, kernel_h=3, kernel_w=3, pad_h=0, pad_w=0)
    expected = np.zeros((2, 3, 3, 2))
    for c, i, j, place in np.ndindex(*expected.shape):
        row, column = int(places[0][place]) + i, int(places[1][place]) + j
        if row < 3 and column < 4:
            expected[c, i, j, place] = image[0, c, row, column]
    np.testing.assert_array_equal(columns, expected.reshape(18, 2))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_masked_col2im_leaves_the_other_places(dtype):
    values, image = randn(2, 3).to(dtype), torch.full((1, 2, 4, 5), 7, dtype=dtype)
    expected = image.clone()
    places = [(3, 4), (0, 2), (1, 2)]
    for i, (row, column) in enumerate(places):
        expected[0, :, row, column] = values[:, i]
    mmvit.ops.masked_col2im_forward(values, *torch.tensor(places).unbind(1), image, height=4, width=5, channels=2)
    assert torch.equal(image, expected)


# PSANet's masks


def psa_mask_loop(masks, collect, mask_size):
    n, _, height, width = masks.shape
    masks = masks.reshape(n, *mask_size, height, width)
    output = np.zeros((n, height, width, height, width), masks.dtype)
    for i, j, h, w in np.ndindex(*masks.shape[1:]):
        row, column = h + i - (mask_size[0] - 1) // 2, w + j - (mask_size[1] - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            place = (row, column, h, w) if collect else (h, w, row, column)
            output[(slice(None), *place)] = masks[:, i, j, h, w]
    return output.reshape(n, height * width, height, width)


PSA_SIZES = [((3, 4), (5, 7)), ((4, 3), (3, 3)), ((2, 2), (4, 6)), ((1, 3), (1, 1))]


@pytest.mark.parametrize(('size', 'mask_size'), PSA_SIZES)
@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
def test_psa_mask(psa_type, size, mask_size):
    layer = mmcv.ops.PSAMask(psa_type, mask_size)
    masks = randn(2, math.prod(mask_size), *size)
    np.testing.assert_array_equal(layer(masks), psa_mask_loop(masks.numpy(), psa_type == 'collect', mask_size))
    assert gradcheck(layer, leaves(masks))
    assert_all_layouts_and_types(layer, masks)
    assert layer(masks[:0]).shape == (0, math.prod(size), *size)


@needs_compiled_mmcv
@pytest.mark.parametrize(('size', 'mask_size'), PSA_SIZES)
@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
def test_psa_mask_is_the_compiled_one(psa_type, size, mask_size, monkeypatch):
    def values():
        return _gradients(mmcv.ops.PSAMask(psa_type, mask_size), cotangent, masks)

    masks = randn(2, math.prod(mask_size), *size).requires_grad_()
    cotangent = randn(2, math.prod(size), *size, seed=1)
    ours = values()
    monkeypatch.setattr(sys.modules['mmcv.ops.psa_mask'], 'ext_module', mmcv._ext)
    assert all(torch.equal(value, compiled) for value, compiled in zip(ours, values(), strict=True))


# Synchronised batch norm


def sync_bn(x, weight, bias, running_mean, running_var, momentum=0.1, eps=1e-5):
    """mmcv's function for one process, in the input's type: its own takes 32 and 16 bits only."""
    mean, var, std = (x.new_zeros(x.shape[1]) for _ in range(3))
    norm, output = torch.zeros_like(x), torch.zeros_like(x)
    mmvit.ops.sync_bn_forward_mean(x, mean)
    mmvit.ops.sync_bn_forward_var(x, mean, var)
    mmvit.ops.sync_bn_forward_output(
        x, mean, var, weight, bias, running_mean, running_var, norm, std, output, eps, momentum, 1
    )
    return output, norm, std


@pytest.mark.parametrize('shape', [(3, 4, 5), (1, 2, 9)])
def test_sync_bn_steps(shape):
    x, weight, bias = leaves(randn(*shape), randn(shape[1], seed=1), randn(shape[1], seed=2))
    running = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    expected_running = [tensor.clone() for tensor in running]
    expected = torch.nn.functional.batch_norm(x, *expected_running, weight, bias, True)
    cotangent = torch.randn_like(x)
    expected_grads = torch.autograd.grad(expected, (x, weight, bias), cotangent)
    with torch.no_grad():
        output, norm, std = sync_bn(x, weight, bias, *running)
        torch.testing.assert_close((output, *running), (expected, *expected_running))
        grads = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        mmvit.ops.sync_bn_backward_param(cotangent, norm, *grads[1:])
        mmvit.ops.sync_bn_backward_data(cotangent, weight, *grads[1:], norm, std, grads[0])
        torch.testing.assert_close(grads, expected_grads)
        assert torch.equal(sync_bn(x, None, None, None, None)[0], norm)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), *NARROW])
def test_sync_bn_layouts_and_types(dtype, tolerance):
    """Statistics are float32."""
    x, weight, bias = randn(2, 3, 4, 5).to(dtype), randn(3, seed=1).float(), randn(3, seed=2).float()
    expected = torch.nn.functional.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    for layout in (torch.contiguous_format, torch.channels_last):
        flat = x.contiguous(memory_format=layout).flatten(2)
        mean, var, std = torch.zeros(3), torch.zeros(3), torch.zeros(3)
        norm, output = torch.zeros_like(flat, dtype=torch.float32), torch.zeros_like(flat)
        mmvit.ops.sync_bn_forward_mean(flat, mean)
        mmvit.ops.sync_bn_forward_var(flat, mean, var)
        mmvit.ops.sync_bn_forward_output(flat, mean, var, weight, bias, None, None, norm, std, output, 1e-5, 0.1, 1)
        assert (output.view_as(x).double() - expected).abs().max() <= tolerance * expected.abs().max()
        grads = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(flat)
        mmvit.ops.sync_bn_backward_param(flat, norm, *grads[:2])
        mmvit.ops.sync_bn_backward_data(flat, weight, *grads[:2], norm, std, grads[2])
        assert all(grad.isfinite().all() for grad in grads)


SYNC_BN = """
import importlib
import mmvit.ops, torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
module = importlib.import_module('mmcv.ops.sync_bn')
module.ext_module = mmvit.ops
images = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
cotangent = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))
plain = torch.nn.BatchNorm2d(3)
state = {key: value.clone() for key, value in plain.state_dict().items()}
expected = plain(images)
expected.backward(cotangent)

synced = module.SyncBatchNorm(3)
synced.load_state_dict(state)
share = slice(2 * rank, 2 * rank + 2)
part = images[share].detach().requires_grad_()
output = synced(part)
output.backward(cotangent[share])
torch.testing.assert_close(output, expected[share])
torch.testing.assert_close(part.grad, images.grad[share])
torch.testing.assert_close(synced.weight.grad * 2, plain.weight.grad)
torch.testing.assert_close(synced.bias.grad * 2, plain.bias.grad)
torch.testing.assert_close(synced.state_dict(), plain.state_dict())
torch.testing.assert_close(synced.eval()(part), plain.eval()(images)[share])

synced = module.SyncBatchNorm(3, stats_mode='N')
synced.load_state_dict(state)
share = slice(0, 4 - 4 * rank)
torch.testing.assert_close(synced(images[share]), expected[share])
print('agreed')
"""


def test_sync_bn_in_two_processes_is_batch_norm_in_one(tmp_path):
    """The second time, one process has no images; mmcv weighs the processes by theirs, in the forward pass only."""
    script = tmp_path / 'script.py'
    script.write_text(SYNC_BN)
    torchrun = sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2
    assert run(*torchrun, script).count('agreed') == 2


# What mmcv has in Python


def test_corner_pool():
    x = randn(2, 3, 4, 5).requires_grad_()
    values = x.detach().numpy()
    expected = {
        'top': np.maximum.accumulate(values[:, :, ::-1], 2)[:, :, ::-1],
        'bottom': np.maximum.accumulate(values, 2),
        'left': np.maximum.accumulate(values[..., ::-1], 3)[..., ::-1],
        'right': np.maximum.accumulate(values, 3),
    }
    for mode, pooled in expected.items():
        np.testing.assert_array_equal(mmcv.ops.CornerPool(mode)(x).detach(), pooled)
    assert gradcheck(mmcv.ops.CornerPool('top'), (x,))


def test_criss_cross_attention():
    layer = mmcv.ops.CrissCrossAttention(16)
    layer.gamma.scale.data.fill_(1)
    x = torch.randn(2, 16, 5, 6, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.any() for p in layer.parameters() if p is not layer.key_conv.bias)


def test_points():
    features = torch.randn(2, 3, 6, 7, requires_grad=True)
    points = torch.rand(2, 5, 2, requires_grad=True)
    sampled = mmcv.ops.point_sample(features, points, align_corners=True)
    for n, c, p in np.ndindex(2, 3, 5):
        x, y = points[n, p].tolist()
        expected = interpolate(features[n, c].detach(), 5 * y, 6 * x)
        torch.testing.assert_close(sampled[n, c, p], expected, atol=1e-5, rtol=1e-5)
    aligned = mmcv.ops.SimpleRoIAlign((2, 3), 0.5)(features, ROIS[:3].float())
    assert aligned.shape == (3, 3, 2, 3)
    in_image = mmcv.ops.rel_roi_point_to_rel_img_point(ROIS[:2].float(), points, features.shape[2:], 0.5)
    (sampled.sum() + aligned.sum() + in_image.sum()).backward()
    assert features.grad.any()
    assert points.grad.any()


@pytest.mark.parametrize('cell', [SumCell, ConcatCell, GlobalPoolingCell])
def test_merge_cells(cell):
    merge = cell(4, 4)
    x, y = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)
    out = merge(x, y, (6, 6))
    assert out.shape == (2, 4, 6, 6)
    out.square().sum().backward()
    assert x.grad.any()
    assert y.grad.any()


@pytest.mark.parametrize('use_deform', [True, False])
def test_switchable_atrous_convolution(use_deform):
    layer = MODELS.build(
        dict(type='SAC', in_channels=4, out_channels=6, kernel_size=3, padding=1, bias=False, use_deform=use_deform)
    )
    x = torch.randn(2, 4, 8, 7, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, 6, 8, 7)
    out.square().sum().backward()
    assert x.grad.any()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


# What is left


def test_environment_report():
    assert mmcv.ops.get_compiler_version() == mmvit.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version() == mmvit.ops.get_compiling_cuda_version()
    report = collect_env()
    assert report['MMCV CUDA Compiler']


@pytest.mark.parametrize('name', ['box_iou_rotated', 'nms_rotated', 'prroi_pool_forward'])
def test_other_operators_raise_when_they_are_called(name):
    with pytest.raises(NotImplementedError, match=f'^mmvit has no {name} operator: [^.]*$'):
        getattr(mmvit.ops, name)(torch.zeros(2, 5))


def test_rotated_boxes_raise():
    with pytest.raises(NotImplementedError, match='box_iou_rotated'):
        mmcv.ops.box_iou_rotated(torch.ones(2, 5), torch.ones(3, 5))


def test_private_names_are_not_operators():
    assert not hasattr(mmvit.ops, '__wrapped__')
