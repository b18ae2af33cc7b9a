"""Faster backbones inside a runner: what is measured stays the same, and nothing stays behind."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from samples import sample
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from versions import needs_compiler

from mmvit.hooks import backbone_of
from mmvit.registry import HOOKS


class Toy(BaseModel):
    """A backbone in a model that mmengine can train and test."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        maps = self.backbone(inputs)
        if mode == 'loss':
            return dict(loss=sum(m.square().mean() for m in maps))
        self.seen.append([m.detach() for m in maps])
        return [m.mean() for m in maps]


class Metric:
    def process(self, *_, **__):
        pass

    def evaluate(self, *_):
        return dict(nothing=0.0)


def runner(model, hooks, tmp_path, sizes=((64, 96), (65, 97))):
    data = [dict(inputs=torch.randn(3, *size, generator=torch.Generator().manual_seed(1))) for size in sizes]
    loader = DataLoader(data, batch_size=1)
    return Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=[dict(type='mmengine.DumpResults', out_file_path=str(tmp_path / 'results.pkl'))],
        default_scope='mmengine',
        custom_hooks=hooks,
        default_hooks=dict(timer=dict(type='IterTimerHook')),
        experiment_name=str(tmp_path),  # runs of one name in one second would share a visualizer, and its folder
    )


def test_fused_copy_equals_the_original(family):
    model = family.build().eval()
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
    for size in ((64, 96), (65, 97)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for a, b in zip(fused(x), model(x), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.std().item())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('extra', [[], [dict(type='EMAHook', momentum=0.5)]], ids=['alone', 'with averaging'])
def test_fused_test_equals_the_plain_one(normed_family, extra, tmp_path):
    results = []
    for name, hooks in (('plain', []), ('fused', [dict(type='mmvit.FuseBackboneHook')])):
        torch.manual_seed(0)
        model = Toy(normed_family.build())
        folder = tmp_path / name
        run = runner(model, extra + hooks, folder)
        run.train()
        weights = copy.deepcopy(model.state_dict())
        model.seen.clear()
        run.test()
        assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
        assert 'forward' not in vars(model.backbone)
        results.append(model.seen)
    for plain, fused in zip(*results, strict=True):
        for a, b in zip(fused, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.std().item())
            assert not torch.equal(a, b)  # it was another program


class Counter(Hook):
    """Programs that were compiled by the end of each iteration."""

    def __init__(self):
        self.programs, self.counts = 0, []

    def after_train_iter(self, *_, **__):
        self.counts.append(self.programs)

    def compile(self, graph, inputs):
        self.programs += 1
        return graph.forward


def shallow(family, **options):
    """A small backbone without statistics of the batch."""
    options |= dict(norm_eval=True) if family.has_batch_norm else {}
    return family.build(arch=family.shallow, **options)


@pytest.mark.slow
def test_compiled_backbone_trains_and_saves_as_usual(family, tmp_path):
    dynamic = dict(dynamic=None) if family.name == 'mpvit' else {}  # one family shows that the option arrives
    sizes = ((400, 528), (346, 522), (522, 346), (378, 586), (442, 394), (410, 618))
    counter, states = Counter(), []
    compiled = dict(type='mmvit.CompileBackboneHook', backend=counter.compile, **dynamic)
    for name, hooks in (('plain', []), ('compiled', [compiled, counter])):
        torch._dynamo.reset()
        model = Toy(shallow(family))
        torch.manual_seed(0)
        runner(model, hooks, tmp_path / name, sizes).train()
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)
    blocks = sum(family.small.get('num_paths', (1, 1, 1, 1)))
    assert counter.counts[0] == blocks
    # RegionViT has another program where no window is padded.
    assert counter.counts[-1] <= (2 if dynamic or family.name == 'regionvit' else 1) * blocks


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluating'])
def test_pytorchs_compiler_makes_one_program_for_all_sizes(family, training):
    torch._dynamo.reset()
    options = dict(drop_path_rate=0.2, with_cp=True) if training else {}
    plain = shallow(family, out_indices=(0, 1), **options).train(training)
    compiled = copy.deepcopy(plain)
    HOOKS.build(dict(type='mmvit.CompileBackboneHook')).before_run(SimpleNamespace(model=Toy(compiled)))
    assert all(m._compiled_call_impl for m in compiled.modules() if isinstance(m, family.cls.block_class))
    stances = iter(['default', 'fail_on_recompile', 'fail_on_recompile'])
    # At all sizes windows are padded, and a map has more tokens than the 4096 where the compiler turns, or fewer.
    for batch, *size in ((3, 200, 220), (3, 232, 180), (4, 201, 250)):
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.compiler.set_stance(next(stances)):
            for found, expected in zip(results(compiled, x), results(plain, x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item() + 1e-4)


def results(model, x):
    """Maps, and in training the parameters' gradients of a weighted sum of them."""
    torch.manual_seed(0)
    with torch.set_grad_enabled(model.training):
        maps = model(x)
    if not model.training:
        return maps
    model.zero_grad()
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    return [*maps, *(p.grad for p in model.parameters())]


def test_compiling_needs_a_new_pytorch(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model, dynamic=None: model)
    with pytest.raises(RuntimeError, match='isolate_recompiles'):
        HOOKS.build(dict(type='mmvit.CompileBackboneHook'))


def detector_step(config, hook=None, autocast=False):
    """A detector after one training step on fixed data: its losses, and the model."""
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model).train()
    if hook:
        HOOKS.build(dict(type=hook)).before_run(SimpleNamespace(model=model))
    size = (193, 256)  # with fewer pixels batch norms make much of rounding
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=[sample(size)]), True)
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss, parts = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return parts, model


def test_channels_last_detector_equals_the_plain_one(family):
    plain, reference = detector_step(family.digits_config)
    found, model = detector_step(family.digits_config, 'mmvit.ChannelsLastHook')
    conv = model.neck.fpn_convs[0].conv.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert not conv.is_contiguous()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f'{name}: {m}')
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-2 * q.grad.abs().max().item() + 1e-5)


def test_regions_are_read_from_any_map():
    register_all_modules()
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=2)
    extractor = MODELS.build(
        dict(type='mmdet.SingleRoIExtractor', roi_layer=layer, out_channels=16, featmap_strides=[4, 8])
    )
    maps = [torch.randn(2, 16, side, side, generator=torch.Generator().manual_seed(side)) for side in (16, 8)]
    regions = torch.tensor([[0, 3.0, 5.0, 40.0, 33.0], [1, 10.0, 2.0, 30.0, 60.0]])
    expected = extractor(maps, regions)
    HOOKS.build(dict(type='mmvit.RoIAlignHook')).before_run(SimpleNamespace(model=extractor))
    strided = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    torch.testing.assert_close(extractor(strided, regions), expected)
    found = extractor([m.bfloat16() for m in strided], regions)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.1)


@pytest.mark.slow
def test_detector_steps_in_bfloat16():
    config = 'configs/retinanet_pyramid_tnt_s.py'  # test_backbones.py tries each backbone
    plain, _ = detector_step(config)
    found, model = detector_step(config, autocast=True)
    for key, value in plain.items():
        assert found[key].item() == pytest.approx(value.item(), rel=0.05), key
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_other_backbones_are_refused(tmp_path):
    run = runner(Toy(torch.nn.Conv2d(3, 4, 1)), [], tmp_path)
    with pytest.raises(TypeError, match='mmvit'):
        backbone_of(run)
