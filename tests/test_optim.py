"""What the configs' optimizers do to each parameter, told by built ones."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from timm.layers import LayerNorm2d
from torch import nn

POSITIONS = ('inner_pos', 'outer_pos', 'relative_pos', 'rel_pos_table')
BOTH = """optim_wrapper = dict(
    constructor='mmvit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5, **_base_.decay_weights_only),
)
"""
NAMES = ['retinanet_mpvit_t', 'maskrcnn_pyramid_tnt_s', 'upernet_regionvit_s']
names = pytest.mark.parametrize('name', NAMES)


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


@pytest.fixture
def build(tmp_path):
    """The model of a config with some lines of a user's own added, and each parameter's group in its optimizer."""

    def built(name, lines=''):
        (tmp_path / 'mine.py').write_text(f"_base_ = '{Path(f'configs/{name}.py').resolve()}'\n{lines}")
        config = Config.fromfile(tmp_path / 'mine.py')
        with torch.device('meta'):
            model = MODELS.build(config.model)
        optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
        group = {parameter: group for group in optimizer.param_groups for parameter in group['params']}
        return model, {name: group[parameter] for name, parameter in model.named_parameters()}

    return built


@names
def test_weight_decay_is_the_authors(build, name):
    model, groups = build(name)
    norms = {
        f'{key}.{p}' for key, m in model.named_modules() if isinstance(m, nn.LayerNorm) for p in ('weight', 'bias')
    }
    expected = 0.01 if name.startswith('upernet') else 0.05
    assert all(group['weight_decay'] == expected for key, group in groups.items() if key not in norms)
    assert norms
    assert all(groups[key]['weight_decay'] == expected for key in norms)


def test_weight_decay_of_regionvit_detectors(build):
    """As detectron2 groups the parameters: by their own names, and by the class of the norms."""
    model, groups = build('retinanet_regionvit_s_w14_peg')
    decays = {1e-4: 0, 0.0: 0, 0.05: 0}
    for key, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            is_layer_norm = isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d)
            expected = 1e-4 if own == 'bias' else 0.0 if is_layer_norm else 0.05
            assert groups[f'{key}.{own}']['weight_decay'] == pytest.approx(expected), f'{key}.{own}'
            decays[expected] += 1
    assert all(decays.values())


@pytest.mark.parametrize('name', [*NAMES, 'retinanet_regionvit_s_w14_peg'])
def test_option_decays_weights_only(build, name):
    model, groups = build(name, 'optim_wrapper = dict(paramwise_cfg=_base_.decay_weights_only)')
    for key, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or key.endswith(POSITIONS)
        assert (groups[key]['weight_decay'] == 0) is spared, key


@names
def test_layer_decay(build, name):
    model, groups = build(name, BOTH)
    base = 6e-5 if name.startswith('upernet') else 1e-4
    layers = {key: model.backbone.get_layer_depth(key, 'backbone.') for key in groups if key.startswith('backbone.')}
    for key, group in groups.items():
        layer, count = layers.get(key, (0, 1))
        assert group['lr'] == pytest.approx(base * 0.5 ** (count - 1 - layer))
        assert (group['weight_decay'] == 0) is (group['params'][0].ndim == 1 or key.endswith(POSITIONS))


def test_layers_of_a_backbone(family):
    model = family.build()
    depths = model.depths
    layers = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    assert {count for _, count in layers.values()} == {sum(depths) + 2}
    assert {layer for layer, _ in layers.values()} == set(range(sum(depths) + 1))
    assert all((layer == 0) is name.startswith('stem') for name, (layer, _) in layers.items())
    for index in range(4):
        stage = [layer for name, (layer, _) in layers.items() if name.startswith(f'stages.{index}.')]
        assert min(stage) == 1 + sum(depths[:index])
        assert max(stage) == sum(depths[: index + 1])
    assert family.build(out_indices=(0, 1)).get_layer_depth('stem.x') == (0, sum(depths[:2]) + 2)


def test_layer_decay_says_what_it_needs(build):
    with pytest.raises(ValueError, match='layer_decay_rate'):
        build('retinanet_mpvit_t', BOTH.replace('0.5', '0'))
    wrapper = dict(
        type='OptimWrapper',
        constructor='mmvit.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    with pytest.raises(TypeError, match='get_layer_depth'):
        build_optim_wrapper(nn.Linear(1, 1), wrapper)


@names
def test_auto_scale_lr(name):
    """On this many GPUs the configs' rate, which is for 8 of 2 images each, becomes so many times as high."""
    config = Config.fromfile(f'configs/{name}.py')
    for processes, factor in ((1, 1 / 8), (8, 1), (64, 8)):
        wrapper = build_optim_wrapper(nn.Linear(1, 1), config.optim_wrapper)
        runner = SimpleNamespace(
            _train_dataloader=config.train_dataloader,
            param_schedulers=config.param_scheduler,
            world_size=processes,
            logger=MMLogger.get_current_instance(),
        )
        Runner.scale_lr(runner, wrapper, dict(config.auto_scale_lr, enable=True))
        (group,) = wrapper.optimizer.param_groups
        assert group['lr'] == pytest.approx(factor * config.optim_wrapper.optimizer.lr)
