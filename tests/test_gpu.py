"""What no other test shows of a GPU. tools/gpu_report.py runs these, and all others that are marked `gpu`, on one."""

import copy
from dataclasses import replace

import mmcv.ops
import pytest
import torch
import torchvision
from benchmark import Job, Task, peak_memory
from fuzz_cases import DTYPES
from versions import needs_gpu

pytestmark = pytest.mark.gpu


def images(device, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def error(found, expected):
    """The norm of the difference, relative to that of what was expected."""
    found, expected = (torch.cat([x.detach().flatten().double().cpu() for x in xs]) for xs in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def gradients(model, x):
    sum((out * torch.arange(out.numel(), device=out.device).view_as(out).sin()).sum() for out in model(x)).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_is_near_float32(family, device, dtype):
    """The maps, and the gradients of a step."""
    if device == 'cpu' and dtype not in DTYPES:
        pytest.skip('this PyTorch computes networks in float16 on GPUs only')
    model, x = family.build().to(device), images(device, 2, 3, 65, 97)
    exact = copy.deepcopy(model)
    with torch.autocast(device, dtype):
        assert error(model(x), exact(x)) < 0.05
        found = gradients(model, x)
    expected = gradients(exact, x)
    assert error(found, expected) < 0.2


@needs_gpu
def test_compiled_equals_eager(family, device):
    """By PyTorch's own compiler: the maps, and the gradients of a step."""
    model, x = family.build().eval().to(device), images(device, 2, 3, 65, 97)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.no_grad():
        assert error(compiled(x), model(x)) < 1e-4
    assert error(gradients(compiled, x), gradients(model, x)) < 1e-4


@needs_gpu
@torch.no_grad()
def test_graph_equals_eager(family, device):
    """What a CUDA graph recorded with another image."""
    model, x = family.build().eval().to(device), images(device, 2, 3, 65, 97)
    expected, image = model(x), torch.zeros_like(x)
    model(image)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = model(image)
    image.copy_(x)
    graph.replay()
    assert error(maps, expected) < 1e-5


@needs_gpu
def test_no_step_waits_for_the_gpu(family, device):
    model, x = family.build().to(device), images(device, 2, 3, 65, 97)
    gradients(model, x)  # sets libraries up
    torch.cuda.set_sync_debug_mode('error')
    try:
        gradients(model, x)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@needs_gpu
def test_checkpointing_saves_memory(family, device):
    """At least 0.4 of what a training step takes."""
    job = Job(f'{family.name}_small', 'bf16-amp', size=(512, 640), batch=2, step='train', device=device)
    plain, saving = (Task(replace(job, with_cp=with_cp)).warm_up(1) for with_cp in (False, True))
    assert peak_memory(saving, device) < 0.6 * peak_memory(plain, device)


def test_boxes_are_kept_as_elsewhere(device):
    """As torchvision keeps them on the same device, and as we do on the CPU."""
    corners, sizes, scores = 500 * torch.rand(2000, 2), 100 * torch.rand(2000, 2), torch.rand(2000)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    _, kept = mmcv.ops.nms(boxes.to(device), scores.to(device), 0.5)
    assert kept.tolist() == torchvision.ops.nms(boxes.to(device), scores.to(device), 0.5).tolist()
    assert kept.tolist() == mmcv.ops.nms(boxes, scores, 0.5)[1].tolist()


def test_regions_are_aligned_as_elsewhere(device):
    """With the gradient, at the size of a detector's first map."""
    maps, corners = images('cpu', 2, 16, 200, 334), 200 * torch.rand(256, 2)
    regions = torch.cat([torch.arange(256).remainder(2)[:, None], corners, corners + 8 + 400 * torch.rand(256, 2)], 1)

    def aligned(function, device):
        x = maps.to(device).requires_grad_()
        out = function(x, regions.to(device))
        out.square().sum().backward()
        return out, x.grad

    def ours(x, regions):
        return mmcv.ops.roi_align(x, regions, 7, 0.25, 0, 'avg', True)

    def theirs(x, regions):
        return torchvision.ops.roi_align(x, regions, 7, 0.25, -1, aligned=True)

    found = aligned(ours, device)
    for expected in (aligned(theirs, device), aligned(ours, 'cpu')):
        assert all(error([a], [b]) < 1e-5 for a, b in zip(found, expected, strict=True))
