"""mmcv's operators give what compiled mmcv 2.1.0 gave: the cases of ``data/mmcv_ops.json`` and their tensors."""

import json
from pathlib import Path

import mmcv.ops
import numpy as np
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

import mmvit.ops

pytestmark = pytest.mark.gpu
DATA = Path(__file__).parent / 'data'
CASES = json.loads((DATA / 'mmcv_ops.json').read_text())['cases']


@pytest.fixture(scope='module')
def tensors():
    with np.load(DATA / 'mmcv_ops.npz') as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def cases(*ops):
    chosen = [case for case in CASES if case['op'] in ops]
    assert chosen
    return pytest.mark.parametrize('case', chosen, ids=lambda case: case['name'])


@pytest.fixture
def recorded(case, tensors, device):
    return {name: tensors[f'{case["name"]}/{name}'].to(device) for name in case['tensors']}


def assert_close(values, expected, tolerance=1e-5):
    """The tolerance is relative to the largest of the expected values."""
    scale = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(values, expected, rtol=0, atol=tolerance * scale)


def assert_gradients_close(output, recorded, inputs):
    grads = torch.autograd.grad(output, inputs.values(), recorded['grad_output'])
    for name, grad in zip(inputs, grads, strict=True):
        assert_close(grad, recorded[f'grad_{name}'], 1e-4)


def differentiable(recorded, *names):
    return {name: recorded[name].clone().requires_grad_() for name in names}


@cases('nms')
def test_nms(case, recorded):
    dets, inds = mmcv.ops.nms(recorded['boxes'], recorded['scores'], **case['args'])
    assert inds.tolist() == recorded['inds'].tolist()
    assert_close(dets, recorded['dets'])


@cases('soft_nms')
def test_soft_nms(case, recorded):
    dets, inds = mmcv.ops.soft_nms(recorded['boxes'], recorded['scores'], **case['args'])
    assert inds.tolist() == recorded['inds'].tolist()
    assert_close(dets, recorded['dets'])


@cases('batched_nms')
def test_batched_nms(case, recorded):
    dets, keep = mmcv.ops.batched_nms(recorded['boxes'], recorded['scores'], recorded['idxs'], **case['args'])
    assert keep.tolist() == recorded['keep'].tolist()
    assert_close(dets, recorded['dets'])


@cases('nms_match')
def test_nms_match(case, recorded):
    groups = mmcv.ops.nms_match(recorded['dets'], case['args']['iou_thr'])
    assert [group.tolist() for group in groups] == case['args']['groups']


@cases('roi_align')
def test_roi_align(case, recorded):
    args = case['args']
    inputs = differentiable(recorded, 'input')
    output = mmcv.ops.RoIAlign(**args)(inputs['input'], recorded['rois'])
    assert_close(output, recorded['output'])
    assert_gradients_close(output, recorded, inputs)


@cases('deform_conv2d')
def test_deform_conv2d(case, recorded):
    inputs = differentiable(recorded, 'input', 'offset', 'weight')
    output = mmcv.ops.deform_conv2d(*inputs.values(), *case['args'].values())
    assert_close(output, recorded['output'])
    assert_gradients_close(output, recorded, inputs)


@cases('modulated_deform_conv2d')
def test_modulated_deform_conv2d(case, recorded):
    inputs = differentiable(recorded, 'input', 'offset', 'mask', 'weight', 'bias')
    output = mmcv.ops.modulated_deform_conv2d(*inputs.values(), *case['args'].values())
    assert_close(output, recorded['output'])
    assert_gradients_close(output, recorded, inputs)


@cases('multi_scale_deformable_attn')
def test_attention_of_mmcv(case, recorded):
    inputs = differentiable(recorded, 'value', 'sampling_locations', 'attention_weights')
    value, locations, weights = inputs.values()
    output = multi_scale_deformable_attn_pytorch(value, recorded['spatial_shapes'], locations, weights)
    assert_close(output, recorded['output'])
    assert_gradients_close(output, recorded, inputs)


@cases('multi_scale_deformable_attn')
def test_attention_of_ours(case, recorded):
    names = ('value', 'spatial_shapes', 'level_start_index', 'sampling_locations', 'attention_weights')
    inputs = [recorded[name] for name in names]
    assert_close(mmvit.ops.ms_deform_attn_forward(*inputs, im2col_step=64), recorded['output'])
    grads = {name: torch.zeros_like(recorded[name]) for name in ('value', 'sampling_locations', 'attention_weights')}
    mmvit.ops.ms_deform_attn_backward(*inputs, recorded['grad_output'], *grads.values(), im2col_step=64)
    for name, grad in grads.items():
        assert_close(grad, recorded[f'grad_{name}'], 1e-4)
