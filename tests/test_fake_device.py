"""What a GPU does with the networks, found out without one.

A fake tensor has a shape, a type and a device, but no values and no memory: a forward pass on fake CUDA tensors needs
no GPU. PyTorch refuses operators between devices and reads of a value there. A backward pass asks the driver, so it
runs on the device ``meta``.
"""

from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cache, partial
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from families import with_quick_arch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from versions import needs_mmcv_lite, needs_torch

import mmvit.ops

pytestmark = pytest.mark.slow
aten = torch.ops.aten
ODD, EVEN = (65, 97), (64, 128)  # the second needs no padding
CASES = [(torch.float32, ODD), (torch.float32, EVEN), (torch.float16, ODD), (torch.bfloat16, EVEN)]
OPTIONS = dict(pyramid_tnt=dict(upsample=True), regionvit=dict(window_mask='exact'))
SUMS = ('softmax', 'layer_norm', 'group_norm', 'sum.', 'mean', 'var', 'norm.', 'cumsum', 'logsumexp', 'avg_pool')
EXACT = {torch.float32, torch.float64, torch.int64, torch.bool}
needs_fake_gpu = needs_torch('2.4', 'a fake GPU without a driver')


class OnOneDevice(TorchDispatchMode):
    """Refuses operators with a tensor of another device, and those that wait for values of the device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs, out))[0] if isinstance(value, torch.Tensor)]
        strangers = {str(tensor.device) for tensor in tensors if tensor.device.type != self.device}
        assert not strangers, f'{func} has a tensor on {strangers}'
        assert not waits(func, args), f'{func} waits for the device'
        return out


def waits(func, args):
    """Whether an operator returns a value to Python, or has a shape that depends on values."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class Record(TorchDispatchMode):
    """Lists the operators with the types of their tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        self.calls.append((func.__name__, {tensor.dtype for tensor in inputs}))
        return func(*args, **kwargs or {})


@contextmanager
def autocast(dtype):
    """Mixed precision on CUDA; ``torch.autocast`` turns itself off where there is no GPU."""
    before = torch.get_autocast_dtype('cuda')
    torch.set_autocast_dtype('cuda', dtype)
    torch.set_autocast_enabled('cuda', True)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.set_autocast_dtype('cuda', before)
        torch.clear_autocast_cache()


def without_gpu():
    """A context in which tensors on CUDA are made without a GPU. Models are built outside it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def on_cuda(model, dtype=torch.float32):
    """The model, which was built on ``meta``, with tensors on a fake GPU. ``model.to`` would ask the driver."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(moved(value, dtype)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, moved(value, dtype))
    return model


def moved(value, dtype):
    return torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device='cuda')


def build(family, **options):
    with torch.device('meta'):
        return family.build(**OPTIONS.get(family.name, {}), **options)


@needs_fake_gpu
@pytest.mark.parametrize('mode', ['train', 'eval', 'no_grad'])
@pytest.mark.parametrize(('dtype', 'size'), CASES, ids=str)
def test_backbone_stays_on_its_gpu(family, dtype, size, mode):
    model = build(family, drop_path_rate=0.5, with_cp=True).train(mode == 'train')
    with without_gpu():
        model = on_cuda(model, dtype)
        x = torch.empty(2, 3, *size, dtype=dtype, device='cuda')
        with torch.set_grad_enabled(mode != 'no_grad'), OnOneDevice('cuda'):
            maps = model(x)
    assert {(out.device.type, out.dtype) for out in maps} == {('cuda', dtype)}


@needs_fake_gpu
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_on_a_gpu(family, dtype, mode):
    """Products are in 16 bits, and what could overflow or lose many small terms there is not."""
    model = build(family, drop_path_rate=0.5).train(mode == 'train')
    with without_gpu():
        model = on_cuda(model)
        x = torch.empty(2, 3, *ODD, device='cuda')
        with autocast(dtype), Record() as record, OnOneDevice('cuda'):
            model(x)
        with Record() as without_autocast:
            model(x)
    products = [types for name, types in record.calls if name.startswith(('addmm', 'convolution'))]
    assert products
    assert all(types == {dtype} for types in products)
    sums = [
        (name, types) for name, types in record.calls if any(word in name for word in SUMS) and 'batch_norm' not in name
    ]
    assert sums
    assert [call for call in sums if not call[1] <= EXACT] == []
    batch_norms = [types for name, types in record.calls if 'batch_norm' in name]
    assert bool(batch_norms) is family.has_batch_norm
    assert all(torch.float32 in types for types in batch_norms)  # weights and statistics
    assert all(dtype not in types for _, types in without_autocast.calls)  # what autocast made is not kept


@needs_fake_gpu
@pytest.mark.parametrize(
    'wrong',
    [
        lambda x: x + torch.ones(()),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.zeros(3),
        lambda x: torch.ones(3).to('cuda'),
        lambda x: x.cpu(),
        lambda x: x[0, 0].item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(x.sum() > 0),
        lambda x: torch.equal(x, x),
    ],
)
def test_one_device_is_enforced(wrong):
    with without_gpu():
        x = torch.empty(4, 4, device='cuda')
        with pytest.raises(Exception, match=r'has a tensor on|waits for the device|^aten\.'), OnOneDevice('cuda'):
            wrong(x)


@pytest.mark.parametrize('with_cp', [False, pytest.param(True, marks=needs_torch('2.4', "checkpointing on 'meta'"))])
@pytest.mark.parametrize(('dtype', 'size'), CASES, ids=str)
def test_step_stays_on_its_device(family, dtype, size, with_cp):
    model = build(family, drop_path_rate=0.5, with_cp=with_cp).to(dtype).train()
    x = torch.empty(2, 3, *size, dtype=dtype, device='meta', requires_grad=True)
    with OnOneDevice('meta'):
        sum(out.sum() for out in model(x)).backward()
    assert all(value.grad.dtype == dtype for value in (x, *model.parameters()))


def whole(model, x):
    return model(x, mode='tensor')


def with_auxiliary(model, x):
    maps = model.extract_feat(x)
    return model.decode_head(maps), model.auxiliary_head(maps)


def with_regions(model, x):
    maps, regions = model.extract_feat(x), [InstanceData(bboxes=x.new_empty(3, 4)) for _ in x]
    semantic = model.semantic_head(maps) if hasattr(model, 'semantic_head') else ()
    return model.rpn_head(maps), model.roi_head(maps[:1], regions), semantic


def with_stages(model, x):
    maps, regions, head = model.extract_feat(x), x.new_empty(6, 5), model.roi_head
    stages = [head._bbox_forward(stage, maps[:1], regions) for stage in range(head.num_stages)]
    return model.rpn_head(maps), stages, head._mask_forward(maps[:1], regions)


def with_queries(model, x):
    queries, references = x.new_empty(6, 2, 20, 256), x.new_empty(6, 2, 20, 4)
    return model.extract_feat(x), model.bbox_head(queries, references)


def with_masks(model, x):
    maps = model.extract_feat(x)
    encoded = [x.new_empty(2, 256, *one.shape[2:]) for one in maps]
    model.panoptic_head.pixel_decoder.forward = lambda _: (encoded[0], encoded[:0:-1])
    return maps, model.panoptic_head(maps, [])


# One config of each kind of head, what runs of it, and the size of its images.
HEADS = {
    'retinanet_mpvit_t': (whole, ODD),
    'atss_regionvit_s': (whole, ODD),
    'maskrcnn_pyramid_tnt_s': (with_regions, ODD),
    'cascade_maskrcnn_mpvit_s': (with_stages, ODD),
    'panoptic_fpn_regionvit_s': (with_regions, EVEN),  # its semantic head adds maps up that have to fit
    'deformable_detr_pyramid_tnt_s': (with_queries, ODD),
    'dino_mpvit_s': (with_queries, ODD),
    'mask2former_mpvit_s': (with_masks, ODD),
    'fpn_regionvit_s_w14': (whole, ODD),
    'segformer_pyramid_tnt_s': (whole, ODD),
    'upernet_mpvit_s': (with_auxiliary, ODD),
}
# Heads with outputs that are in float32 even in mixed precision: boxes, sums of normed maps, averaged probabilities.
PARTLY_EXACT = ('atss', 'panoptic_fpn', 'deformable_detr', 'dino')
PARTLY_EXACT_IN = {'train': PARTLY_EXACT, 'eval': (*PARTLY_EXACT, 'cascade_maskrcnn')}
heads = pytest.mark.parametrize('name', HEADS)


@cache
def read(name):
    return Config.fromfile(f'configs/{name}.py').model


def with_heads(name):
    """The model of a config with a quick arch of its backbone, on ``meta``."""
    register_all_modules(init_default_scope=False)
    config = deepcopy(read(name))
    init_default_scope('mmseg' if 'decode_head' in config else 'mmdet')
    channels = with_quick_arch(config.backbone, shallow=True)
    next(config[part] for part in ('neck', 'panoptic_head', 'decode_head') if part in config).in_channels = channels
    if 'auxiliary_head' in config:
        config.auxiliary_head.in_channels = channels[config.auxiliary_head.in_index]
    with torch.device('meta'):
        return MODELS.build(config).to('meta')  # mmdet makes one parameter elsewhere


def outputs_of_heads(name, model, device):
    forward, size = HEADS[name]
    x = torch.empty(2, 3, *size, device=device)
    with OnOneDevice(device):
        outputs = forward(model, x)
    return [value for value in tree_flatten(outputs)[0] if isinstance(value, torch.Tensor)]


@needs_mmcv_lite
@needs_fake_gpu
@pytest.mark.parametrize(
    ('mixed', 'mode'), [(None, 'eval'), (torch.float16, 'eval'), (torch.bfloat16, 'train')], ids=str
)
@heads
def test_heads_stay_on_their_gpu(name, mixed, mode):
    """All that runs before boxes and masks are picked, but for what mmdet and mmcv need values on the CPU for.

    mmdet lists the regions of each map: they are all on the first here. It moves the constants of its box coder to the
    GPU: all stages of Cascade R-CNN get the same regions. It moves the sizes of maps there, which mmcv reads: DETR's
    encoders and decoders and Mask2Former's encoder of pixels do not run. A step in float32 is below.
    """
    model = with_heads(name).train(mode == 'train')
    with without_gpu(), torch.set_grad_enabled(mode == 'train'), autocast(mixed) if mixed else nullcontext():
        outputs = outputs_of_heads(name, on_cuda(model), 'cuda')
    assert {out.device.type for out in outputs} == {'cuda'}
    exact = {torch.float32} if not mixed or name.startswith(PARTLY_EXACT_IN[mode]) else set()
    assert {out.dtype for out in outputs} == exact | ({mixed} if mixed else set())


@needs_fake_gpu
@pytest.mark.parametrize('wrong', [lambda x: x + torch.ones(1), lambda x: x * x.max().item()])
def test_head_on_another_device_is_found(wrong):
    model = with_heads('retinanet_mpvit_t')
    model.bbox_head.retina_cls.register_forward_hook(lambda module, args, out: wrong(out))
    with without_gpu(), pytest.raises(Exception, match=r'has a tensor on|waits for the device|^aten\.'):
        outputs_of_heads('retinanet_mpvit_t', on_cuda(model), 'cuda')


@needs_mmcv_lite
@heads
def test_step_of_heads_stays_on_its_device(name):
    model = revert_sync_batchnorm(with_heads(name)).train()  # PyTorch has synchronised ones on GPUs only
    with OnOneDevice('meta'):
        sum(out.sum() for out in outputs_of_heads(name, model, 'meta')).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


SIZES = SimpleNamespace(tolist=lambda: [[4, 6], [2, 3]])  # mmcv has them on the GPU, where they are read
# Those whose work does not depend on values, as that of NMS, of RoIPool and of the maximum in RoIAlign does.
OPERATORS = dict(
    roi_align=lambda new: mmcv.ops.roi_align(new(2, 8, 4, 6), new(3, 5).detach(), 7),
    ms_deform_attn=lambda new: mmvit.ops.ms_deform_attn_forward(
        new(2, 30, 4, 8), SIZES, None, new(2, 5, 4, 2, 3, 2), new(2, 5, 4, 2, 3), 64
    ),
    sigmoid_focal_loss=lambda new: mmcv.ops.sigmoid_focal_loss(new(6, 4), new(6).detach().long()),
    softmax_focal_loss=lambda new: mmcv.ops.softmax_focal_loss(new(6, 4), new(6).detach().long()),
    deform_conv=lambda new: mmcv.ops.deform_conv2d(new(2, 8, 4, 6), new(2, 18, 4, 6), new(8, 8, 3, 3), 1, 1),
    modulated_deform_conv=lambda new: mmcv.ops.modulated_deform_conv2d(
        new(2, 8, 4, 6), new(2, 18, 4, 6), new(2, 9, 4, 6), new(8, 8, 3, 3), new(8), 1, 1, 1, 1, 1
    ),
    carafe=lambda new: mmcv.ops.carafe(new(2, 8, 4, 6), new(2, 25, 8, 12), 5, 1, 2),
    psa_mask=lambda new: mmcv.ops.PSAMask('collect', (4, 6))(new(2, 24, 4, 6)),
)
operators = pytest.mark.parametrize('operator', OPERATORS.values(), ids=OPERATORS)


@needs_mmcv_lite
@needs_fake_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@operators
def test_operators_stay_on_their_gpu(operator, dtype):
    with without_gpu(), torch.no_grad(), OnOneDevice('cuda'):
        out = operator(partial(torch.empty, dtype=dtype, device='cuda'))
    assert (out.device.type, out.dtype) == ('cuda', dtype)


@needs_mmcv_lite
@needs_torch('2.4', "a torchvision with its operators on 'meta'")
@operators
def test_step_of_operators_stays_on_its_device(operator):
    with OnOneDevice('meta'):
        operator(partial(torch.empty, device='meta', requires_grad=True)).sum().backward()
