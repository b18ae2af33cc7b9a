"""The segmentation heads: each config, cut down to a small network, trains, predicts, is evaluated and goes on."""

import math
import re
import sys
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import program, run, run_here, scalars
from families import with_quick_arch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from samples import segmented
from versions import needs_torch

from mmvit.deploy import exporter, graphs

SEGMENTERS = sorted(
    path.stem
    for path in Path('configs').glob('*.py')
    if re.match(r'fpn|segformer|mask2former.*(ade20k|semantic)', path.stem)
)
MASK2FORMERS = [name for name in SEGMENTERS if name.startswith('mask2former')]
EXPORTED = ['fpn_mpvit_s', 'fpn_regionvit_s_w14', 'segformer_mpvit_s', 'mask2former_regionvit_s_ade20k']
# What Mask2Former is cut down to: layers of the encoder and of the decoder, and points of a mask that its losses see.
ENCODER_LAYERS, DECODER_LAYERS, POINTS = 1, 3, 64


def shrunk(name):
    """A config whose backbone is its family's quick arch, and whose Mask2Former has fewer layers."""
    config = Config.fromfile(f'configs/{name}.py')
    init_default_scope('mmseg')
    model = config.model
    if 'norm_cfg' in model.backbone:
        model.backbone.norm_cfg.type = 'BN'
    (model.neck if 'neck' in model else model.decode_head).in_channels = with_quick_arch(model.backbone)
    if name in MASK2FORMERS:
        model.decode_head.pixel_decoder.encoder.num_layers = ENCODER_LAYERS
        model.decode_head.transformer_decoder.num_layers = DECODER_LAYERS
        model.decode_head.train_cfg.num_points = POINTS
    else:
        model.decode_head.norm_cfg.type = 'BN'
    return config


def build(config):
    torch.manual_seed(0)
    model = MODELS.build(deepcopy(config.model))
    model.init_weights()
    return model


@pytest.mark.gpu
@pytest.mark.parametrize('name', SEGMENTERS)
def test_each_segmenter_takes_steps_and_predicts(name, device):
    """At two sizes, the second of which no stride divides. No parameter stays without a gradient, as DDP wants it."""
    config = shrunk(name)
    model = build(config).to(device)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    for size in ((64, 96), (97, 65)):
        model.data_preprocessor.size = size
        data = batch(size)
        loss, parts = model.train().parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
        assert ('decode.d0.loss_mask' in parts) == (name in MASK2FORMERS)
        assert loss.isfinite()
        wrapper.zero_grad()
        wrapper.backward(loss)
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
        wrapper.step()
        with torch.no_grad():
            predictions = model.eval().test_step(batch(size))
        for prediction in predictions:
            assert prediction.pred_sem_seg.data.shape == (1, *size)
            assert prediction.seg_logits.data.isfinite().all()


def batch(size):
    """Two images of four classes, the second with pixels that do not count."""
    samples = [segmented(size) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg.data.remainder_(4)
    samples[1].gt_sem_seg.data[:, :40] = 255
    return dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples], data_samples=samples)


@pytest.mark.parametrize('name', SEGMENTERS)
def test_segmenters_have_these_rates(name):
    """Of each parameter: as in mmseg's recipes for Swin (Mask2Former), MiT (SegFormer) and PVT (Semantic FPN)."""
    if 'digits' in name:
        pytest.skip('the digits have a recipe of their own')
    config = shrunk(name)
    model = build(config)
    names = {p: key for key, p in model.named_parameters()}
    norms = {
        p for module in model.modules() if 'Norm' in type(module).__name__ for p in module.parameters(recurse=False)
    }
    for group in build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups:
        for parameter in group['params']:
            key = names[parameter]
            expected = RATES[name.partition('_')[0]](key, parameter in norms or has_positions(key))
            assert (group['lr'], group['weight_decay']) == pytest.approx(expected), key


def has_positions(key):
    return key.endswith(('inner_pos', 'outer_pos', 'relative_pos', 'rel_pos_table'))


def mask2former_rates(key, is_free):
    is_free = is_free or any(part in key for part in ('query_embed', 'query_feat', 'level_embed'))
    return 1e-5 if key.startswith('backbone') else 1e-4, 0.0 if is_free else 0.05


def segformer_rates(key, is_free):
    if key.startswith('decode_head'):
        return 6e-4, 0.01
    return 6e-5, 0.0 if is_free else 0.01


RATES = dict(mask2former=mask2former_rates, segformer=segformer_rates, fpn=lambda key, is_free: (1e-4, 1e-4))


@pytest.mark.parametrize('name', MASK2FORMERS)
def test_semantic_mask2former_without_mmdet(name, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    with pytest.raises(ImportError, match=r"is mmdet's head, and mmdet is not installed: pip install 'mmvit\[det\]'$"):
        Config.fromfile(f'configs/{name}.py')


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    """A few images laid out and named as ADE20K's, with three classes."""
    root = tmp_path_factory.mktemp('ade')
    random = np.random.default_rng(0)
    for split, count in (('training', 4), ('validation', 2)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(root / 'images' / split / f'{i}.jpg'), random.integers(256, size=(60, 90, 3)))
            labels = np.repeat(np.arange(4), 15)[:, None].repeat(90, 1)  # 0 is what ADE20K leaves out
            cv2.imwrite(str(root / 'annotations' / split / f'{i}.png'), labels)
    return root


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fpn_mpvit_s', 'segformer_pyramid_tnt_s', 'mask2former_regionvit_s_ade20k'])
def test_segmenter_trains_is_evaluated_and_goes_on(name, ade, tmp_path, monkeypatch):
    """As ``mim train`` does it, and once with it; what the second training resumes was saved by the first."""
    work_dir = tmp_path / 'run'
    for iterations, options in ((2, []), (3, ['--resume'])):
        path = tmp_path / f'{iterations}.py'
        on_few_images(shrunk(name), ade, iterations, path).dump(path)
        if name.startswith('fpn') and iterations == 2:
            run('mim', 'train', 'mmseg', path, '--work-dir', work_dir, *options)
        else:
            run_here(monkeypatch, program('mmseg', 'train.py'), path, '--work-dir', work_dir, *options)
    losses, accuracies = scalars(work_dir, 'loss'), scalars(work_dir, 'mIoU')
    assert (len(losses), len(accuracies)) == (3, 2)
    assert all(map(math.isfinite, losses + accuracies))


def on_few_images(config, root, iterations, path):
    """The config with images of 64 pixels in its own pipelines, for a few iterations, to be written to a path."""
    config.model.data_preprocessor.size = (64, 64)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(batch_size=min(loader.batch_size, 2), num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
        for step in loader.dataset.pipeline:
            if 'crop_size' in step:
                step.crop_size = (64, 64)
            if 'scale' in step:
                step.scale = (256, 64)
            if 'scales' in step:
                step.scales = [64, 96]
    config.train_cfg.update(max_iters=iterations, val_interval=iterations)
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.interval = iterations
    config.visualizer.name = config.experiment_name = str(path)  # mmengine keeps one of each name in a process
    return config


@needs_torch(exporter.OLDEST_TORCH, 'export')
@pytest.mark.parametrize('name', EXPORTED)
def test_segmenter_gives_the_same_from_its_file(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason="needs the extra 'deploy'")
    model = build(shrunk(name)).eval()
    graph = graphs.graph_of(model)
    exporter.write(graph, tmp_path / 'model.onnx', {})
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for size in ((75, 131), (33, 47)):
        image = torch.randint(256, (1, 3, *size)).float()
        (classes,) = session.run(None, {'image': image.numpy()})
        sample = segmented(size)
        with torch.no_grad():
            (expected,) = model.test_step(dict(inputs=[image[0].flip(0)], data_samples=[sample]))
        assert classes.shape == (1, *size)
        assert (classes != expected.pred_sem_seg.data.numpy()).mean() <= 1e-3


def test_segmenter_with_another_head_is_not_exported():
    model = build(shrunk(EXPORTED[0]))
    model.decode_head = torch.nn.Identity()
    with pytest.raises(ValueError, match='^a segmenter with Identity has no graph; it takes heads of logits'):
        graphs.graph_of(model)
