"""The contract that every backbone keeps."""

import copy
import math

import pytest
import torch
from mmcv.ops import RoIAlign
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from versions import needs_compiler


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def total(outs):
    """A scalar to which every output contributes unevenly, so that gradients are not zero by symmetry."""
    return sum((out * torch.arange(out.numel()).view_as(out).sin()).sum() for out in outs)


def gradients(model, x):
    model.zero_grad(set_to_none=True)
    total(model(x)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize('size', [(32, 32), (64, 96), (65, 97), (199, 333)])
def test_output_shapes(family, size):
    model = family.build().eval()
    outs = model(images(2, 3, *size))
    assert len(outs) == 4
    for out, channels, stride in zip(outs, model.out_channels, model.out_strides, strict=True):
        assert out.shape == (2, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 2), (0, 1, 3), [0, 1, 2, 3]])
def test_out_indices_select_from_all(family, out_indices):
    full = family.build().eval()
    some = family.build(out_indices=out_indices).eval()
    some.load_state_dict({k: v for k, v in full.state_dict().items() if k in some.state_dict()})
    x = images(1, 3, 64, 65)
    everything = full(x)
    assert some.out_channels == tuple(full.out_channels[i] for i in out_indices)
    assert some.out_strides == tuple(full.out_strides[i] for i in out_indices)
    for out, i in zip(some(x), out_indices, strict=True):
        torch.testing.assert_close(out, everything[i], rtol=0, atol=0)


def test_images_of_a_batch_do_not_mix(family):
    model = family.build().eval()
    x = images(3, 3, 65, 97)
    for together, alone in zip(model(x), model(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', ['train', 'frozen statistics', 'no_grad'])
@pytest.mark.parametrize('with_cp', [False, True])
def test_batch_without_images(family, mode, with_cp):
    model = family.build(with_cp=with_cp).train(mode == 'train')
    expected = [(0, *out.shape[1:]) for out in model(images(2, 3, 65, 97))]
    x = images(0, 3, 65, 97).requires_grad_()
    with torch.set_grad_enabled(mode != 'no_grad'):
        outs = model(x)
    assert [out.shape for out in outs] == expected
    if mode == 'no_grad':
        return
    total(outs).backward()
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_built_under_inference_mode(family, mode):
    expected_of = family.build().eval()
    with torch.inference_mode():
        model = family.build().eval()
    x = images(1, 3, 65, 97)
    with mode():
        for a, b in zip(model(x), expected_of(x), strict=True):
            assert torch.equal(a, b)
    with torch.inference_mode():
        for module in (model, expected_of):
            for parameter in module.parameters():
                parameter.add_(0.1)
        for a, b in zip(model(x), expected_of(x), strict=True):  # the change of the weights is seen
            assert torch.equal(a, b)


def test_memory_format_of_the_input_does_not_matter(family):
    model = family.build().eval()
    x = images(1, 3, 64, 65)
    for a, b in zip(model(x), model(x.to(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_maps_are_what_mmcv_ops_expect(family):
    # RoIAlign reads channels-last memory as if it were channels-first, and does not say so.
    model = family.build().eval()
    out = model(images(1, 3, 96, 128))[0]
    copied = torch.empty(out.shape).copy_(out)
    align = RoIAlign(7, spatial_scale=0.25)
    boxes = torch.tensor([[0.0, 8.0, 4.0, 90.0, 60.0]])
    torch.testing.assert_close(align(out, boxes), align(copied, boxes), rtol=0, atol=0)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (0, 2), (1,)])
def test_every_parameter_gets_a_gradient(family, out_indices):
    model = family.build(out_indices=out_indices, drop_path_rate=0.0).train()
    for name, grad in gradients(model, images(2, 3, 65, 97)).items():
        assert grad is not None, name
        assert grad.isfinite().all(), name
        # A shift that a softmax over tokens or a batch norm takes away has a zero gradient by nature.
        if 'bias' not in name:
            assert grad.abs().max() > 0, name


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages(family, frozen_stages):
    model = family.build(frozen_stages=frozen_stages)
    before = copy.deepcopy(model.state_dict())
    prefixes = ('stem.', *(f'stages.{i}.' for i in range(4)))[: frozen_stages + 1]
    for _ in range(2):  # a detector calls train() again each epoch
        model.train()
        x = images(2, 3, 64, 65)
        outs = model(x)
        if frozen_stages < 4:
            total(outs).backward()
        for name, parameter in model.named_parameters():
            frozen = name.startswith(prefixes) if prefixes else False
            assert parameter.requires_grad is not frozen, name
            assert (parameter.grad is None) is frozen, name
        for name, value in model.state_dict().items():
            if prefixes and name.startswith(prefixes):
                assert torch.equal(value, before[name]), name
        model.eval()


def test_freezing_needs_no_call_of_train(family):
    model = family.build(frozen_stages=0)
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert not model.stem.training


def test_norm_eval_keeps_batch_statistics(normed_family):
    model = normed_family.build(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert not any(m.training for m in norms)
    before = copy.deepcopy(model.state_dict())
    model(images(2, 3, 64, 64))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training


@pytest.mark.parametrize(
    ('size', 'drop_path_rate'), [((65, 97), 0.5), pytest.param((64, 64), 0.0, marks=pytest.mark.slow)]
)
def test_checkpointed_equals_plain(family, size, drop_path_rate):
    plain = family.build(drop_path_rate=drop_path_rate).train()
    saving = family.build(drop_path_rate=drop_path_rate, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = images(2, 3, *size)
    results = []
    for model in (plain, saving):
        torch.manual_seed(1)
        results.append(gradients(model, x))
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, msg=lambda m, name=name: f'{name}: {m}')
    for (name, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f'{name}: {m}')


def test_checkpointing_keeps_less_for_the_backward_pass(family):
    def saved_bytes(model):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outs = model(images(1, 3, 128, 128))
            size = sum(kept.values())
        del outs
        return size

    assert saved_bytes(family.build(with_cp=True).train()) < 0.8 * saved_bytes(family.build().train())


def test_stochastic_depth(family):
    model = family.build(drop_path_rate=0.9)
    x = images(4, 3, 64, 64)
    model.eval()
    for a, b in zip(model(x), family.build().eval()(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    first = model(x)[-1]
    torch.manual_seed(1)
    assert not torch.equal(first, model(x)[-1])


# aot_eager captures and differentiates as the default backend does, and leaves out its minutes of C++. That one gets
# one block of each kind.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('backend', 'size'),
    [('aot_eager', (65, 97)), pytest.param('inductor', (65, 97), marks=needs_compiler)],
)
def test_compiled_equals_eager(family, backend, size):
    model = family.build(**(dict(arch=family.shallow) if backend == 'inductor' else {})).eval()
    x = images(1, 3, *size)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)(x)
        for a, b in zip(compiled, model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# On a CPU, PyTorch takes another convolution for maps of less than 20480 numbers: that makes another program.
@pytest.mark.slow
def test_one_program_serves_all_sizes(family):
    """Without a graph break. The rows of the last one fit RegionViT's windows, those of the others do not."""
    model = family.build(arch=family.shallow).eval()
    programs = []
    torch._dynamo.reset()
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend=lambda program, _: programs.append(program) or program
    )
    with torch.no_grad():
        for size in [(402, 514), (418, 530), (512, 402)]:
            x = images(1, 3, *size)
            for a, b in zip(model(x), compiled(x), strict=True):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    assert len(programs) == 1


@pytest.mark.slow
def test_compiled_training_step_equals_eager(family):
    model = family.build().train().double()
    x = images(2, 3, 64, 65).double()
    torch._dynamo.reset()
    eager = gradients(copy.deepcopy(model), x)
    compiled = gradients(torch.compile(model, fullgraph=True, backend='aot_eager'), x)
    for name, grad in eager.items():
        torch.testing.assert_close(
            compiled[f'_orig_mod.{name}'], grad, rtol=1e-3, atol=1e-3 * grad.abs().max().item() + 1e-4
        )


@pytest.mark.slow
def test_exported_program_equals_eager(family):
    model = family.build().eval()
    x = images(1, 3, 64, 96)
    exported = torch.export.export(model, (x,)).module()
    for a, b in zip(exported(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mode', ['autocast', 'weights'])
def test_bfloat16_stays_near_float32(family, mode):
    model = family.build().eval()
    x = images(1, 3, 97, 128)
    expected = model(x)
    if mode == 'weights':
        outs = copy.deepcopy(model).bfloat16()(x.bfloat16())
    else:
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(x)
    for out, reference in zip(outs, expected, strict=True):
        assert out.isfinite().all()
        assert (out.float() - reference).std() < 0.05 * reference.std()


def test_float64_gradients_agree_with_finite_differences(family):
    model = family.build().double().eval()
    x = images(1, 3, 32, 33).double().requires_grad_()
    direction = images(1, 3, 32, 33, seed=1).double()
    total(model(x)).backward()
    step = 1e-6
    with torch.no_grad():
        slope = (total(model(x + step * direction)) - total(model(x - step * direction))) / (2 * step)
    torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5)


def test_state_dict_round_trip(family, tmp_path):
    model = family.build().eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    other = family.cls(family.small).eval()
    other.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True), strict=True)
    x = images(1, 3, 64, 65)
    for a, b in zip(model(x), other(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_other_input_channels(family):
    model = family.build(in_channels=5).eval()
    assert model(images(1, 5, 64, 64))[0].shape[1] == model.out_channels[0]


def test_parameter_counts(family):
    for arch, expected in family.parameters.items():
        with torch.device('meta'):
            model = family.cls(arch, **family.classification)
        width = model.stage_channels[-1]
        classifier = 1000 * width + 1000 + 2 * width * family.head_norm
        assert sum(p.numel() for p in model.parameters()) + classifier == expected, arch


BAD_ARGUMENTS = [
    (dict(arch='huge'), ValueError, 'it has'),
    (dict(arch=3), TypeError, 'arch must be'),
    (dict(arch={}), ValueError, 'lacks'),
    (dict(out_indices=(0, 4)), ValueError, 'out_indices'),
    (dict(out_indices=(-1,)), ValueError, 'out_indices'),
    (dict(out_indices=()), ValueError, 'out_indices'),
    (dict(out_indices=(2, 1)), ValueError, 'ascending'),
    (dict(out_indices=(1, 1)), ValueError, 'ascending'),
    (dict(frozen_stages=5), ValueError, 'frozen_stages'),
    (dict(frozen_stages=-2), ValueError, 'frozen_stages'),
    (dict(drop_path_rate=1.0), ValueError, 'drop_path_rate'),
    (dict(drop_path_rate=-0.1), ValueError, 'drop_path_rate'),
    (dict(in_channels=0), ValueError, 'in_channels'),
    (dict(norm_evil=True), TypeError, 'norm_evil'),
]


@pytest.mark.parametrize(('kwargs', 'error', 'message'), BAD_ARGUMENTS)
def test_bad_arguments(family, kwargs, error, message):
    with pytest.raises(error, match=message):
        family.build(**kwargs)


def test_bad_arch_dicts(family):
    with pytest.raises(ValueError, match=r"unknown keys \['depth'\]"):
        family.build(arch={**family.small, 'depth': 3})
    key = next(k for k, v in family.small.items() if isinstance(v, tuple))
    with pytest.raises(ValueError, match=key):
        family.build(arch={**family.small, key: family.small[key][:3]})
    with pytest.raises(ValueError, match=key):
        family.build(arch={**family.small, key: (*family.small[key][:3], 0)})


@pytest.mark.parametrize(
    ('shape', 'message'),
    [((3, 64, 64), 'B, C, H, W'), ((1, 4, 64, 64), 'channels'), ((1, 3, 31, 64), '32'), ((1, 3, 64, 31), '32')],
)
def test_bad_input(family, shape, message):
    with pytest.raises(ValueError, match=message):
        family.build()(torch.zeros(shape))


def test_norm_cfg_reaches_every_batch_norm(normed_family):
    model = normed_family.build(norm_cfg=dict(type='SyncBN', eps=2e-5))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) and m.eps == 2e-5 for m in norms)
