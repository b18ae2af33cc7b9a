"""Released checkpoints: exact outputs, every released shape, and nothing loaded silently or half."""

import copy
import logging

import numpy as np
import pytest
import reference_inputs
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint

from mmvit.checkpoint import OfficialWeights


def nested(weights, *, under=None, prefix='', extra=None):
    """The shapes that released files have."""
    renamed = {prefix + k: v for k, v in weights.items()} | (extra or {})
    return {under: renamed, 'epoch': 3, 'optimizer': {'state': {}}} if under else renamed


def without_classifier(family, weights):
    return {k: v for k, v in weights.items() if not k.startswith(family.cls.official_layout.classifier)}


def test_outputs_agree_with_the_authors_programs(family):
    for golden in family.goldens():
        arch = golden['model'].removeprefix(f'{family.key}_')
        options = {**family.classification, **golden['options']}
        model = family.cls(arch, **options).eval()
        weights = family.official('+'.join([arch, *golden['options']]), golden['weight_seed'])
        model.load_state_dict(family.cls.convert_official(weights), strict=True)
        with torch.no_grad():
            outs = model(
                torch.from_numpy(reference_inputs.image(golden['size'], golden['batch'], golden['image_seed']))
            )
        for out, stage in zip(outs, golden['stages'], strict=True):
            assert list(out.shape) == stage['shape']
            error = np.abs(reference_inputs.sample(out.numpy()) - np.array(stage['samples'])).max()
            assert error <= 1e-4 * stage['std'], (golden['model'], golden['size'])
            assert abs(out.std(correction=0).item() - stage['std']) <= 1e-3 * stage['std']


@pytest.mark.slow
def test_every_arch_is_recognised(family):
    for layout in family.layouts():
        weights = family.cls.convert_official(family.official(layout))
        arch, *options = layout.split('+')
        with torch.device('meta'):
            model = family.cls(arch, **{**family.classification, **dict.fromkeys(options, True)})
        assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.slow
def test_every_arch_goes_back_to_the_released_layout(family):
    for layout in family.layouts():
        official = without_classifier(family, family.official(layout))
        restored = family.cls.to_official(family.cls.convert_official(official))
        assert restored.keys() == official.keys()
        assert all(restored[k].shape == v.shape and torch.equal(restored[k], v) for k, v in official.items())


def test_other_weights_have_no_released_layout(family):
    with pytest.raises(ValueError, match='not the state dict.*neck'):
        family.cls.to_official({'neck.conv.weight': torch.zeros(1)})


@pytest.fixture
def official(family):
    return family.official(family.smallest)


@pytest.mark.parametrize('under', [None, 'model', 'state_dict'])
def test_released_shapes(family, official, under):
    expected = family.cls.convert_official(official)
    for prefix in ('', 'module.', *family.prefixes, *('module.' + p for p in family.prefixes)):
        heads = {'decode_head.conv_seg.weight': torch.zeros(3), 'proposal_generator.x': torch.zeros(1)}
        extra = heads if prefix.endswith(family.prefixes) else {}
        for weights in (official, without_classifier(family, official)):
            converted = family.cls.convert_official(nested(weights, under=under, prefix=prefix, extra=extra))
            assert converted.keys() == expected.keys(), prefix
            assert all(torch.equal(converted[k], expected[k]) for k in expected), prefix


def test_numpy_arrays_are_taken(family, official):
    converted = family.cls.convert_official({k: v.numpy() for k, v in official.items()})
    assert all(isinstance(v, torch.Tensor) for v in converted.values())


def test_disagreeing_copies_are_refused(family, official):
    layout = family.cls.official_layout
    names: dict[str, list[str]] = {}
    for key in without_classifier(family, official):
        names.setdefault(next(iter(layout.rename({key: official[key]}))), []).append(key)
    copies = next((keys for keys in names.values() if len(keys) > 1), None)
    if copies is None:
        pytest.skip('no tensor stands in these files twice')
    official[copies[-1]] = official[copies[-1]] + 1
    with pytest.raises(ValueError, match='disagree') as error:
        family.cls.convert_official(official)
    assert copies[0] in str(error.value)
    assert copies[-1] in str(error.value)


def test_foreign_files_are_refused(family, official):
    resnet = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.bias': torch.zeros(1000)}
    landmark = family.cls.official_layout.landmark
    bare = without_classifier(family, official)
    a_key = next(k for k in bare if k != landmark and k.endswith('weight'))
    for foreign, named in [
        (resnet, 'conv1.weight'),
        ({}, landmark),
        ({k: v for k, v in bare.items() if k == landmark}, 'missing'),
        ({**official, 'mystery.weight': torch.zeros(1)}, 'mystery.weight'),
        ({**official, a_key: 'text'}, a_key),
    ]:
        with pytest.raises(ValueError, match=f'not a released {family.cls.__name__}') as error:
            family.cls.convert_official(foreign)
        assert named in str(error.value)


def test_a_wrong_shape_or_a_missing_tensor_is_named(family, official):
    model_keys = family.cls.convert_official(official).keys()
    layout = family.cls.official_layout
    theirs = next(k for k in without_classifier(family, official) if 'fc1' in k)
    (ours,) = layout.rename({theirs: official[theirs]})
    assert ours in model_keys
    without = {k: v for k, v in official.items() if k != theirs}
    for broken in ({**official, theirs: official[theirs][:-1]}, without):
        with pytest.raises(ValueError, match='not a released') as error:
            family.cls.convert_official(broken)
        assert ours in str(error.value)


@pytest.fixture
def released_file(family, official, tmp_path):
    path = tmp_path / 'released.pth'
    torch.save(nested(official, under='model'), path)
    return str(path)


def detector_config(family, **backbone):
    config = Config.fromfile(family.digits_config).model
    config.backbone.update(family.classification)
    config.backbone.pop('img_size', None)  # position tables as released
    config.backbone.update(backbone)
    return config


def test_init_cfg_loads_a_released_file_into_a_detector(family, official, released_file):
    config = detector_config(family, init_cfg=dict(type='mmvit.OfficialWeights', checkpoint=released_file))
    detector = MMDET_MODELS.build(config)
    detector.init_weights()
    expected = family.cls.convert_official(official)
    loaded = detector.backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], expected[k]) for k in expected)


def test_stages_not_built_are_left_out_in_one_line(family, official, released_file, caplog):
    init_cfg = dict(type='OfficialWeights', checkpoint=released_file)
    model = family.cls(family.smallest, out_indices=(0, 1), init_cfg=init_cfg, **family.classification)
    MMLogger.get_instance('mmvit-test', log_level='INFO')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        model.init_weights()
    logger.removeHandler(caplog.handler)
    lines = [r.getMessage() for r in caplog.records if 'leaving out' in r.getMessage()]
    assert len(lines) == 1
    assert 'stages.2, stages.3' in lines[0]
    expected = family.cls.convert_official(official)
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_weights_that_do_not_fit_are_an_error(family, official, released_file, tmp_path):
    other_arch = list(family.parameters)[1]
    for kwargs in (dict(arch=other_arch), dict(arch=family.smallest, in_channels=4)):
        init_cfg = dict(type='mmvit.OfficialWeights', checkpoint=released_file)
        model = family.cls(**kwargs, **family.classification, init_cfg=init_cfg)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r'does not fit.*(stem|stages)\.'):
            model.init_weights()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    partial = dict(list(official.items())[:-20])
    torch.save({'model': partial}, tmp_path / 'partial.pth')
    with pytest.raises(ValueError, match='missing'):
        family.cls(family.smallest).load_official(str(tmp_path / 'partial.pth'))


def test_initialiser_on_anything_else_says_where_it_belongs(released_file):
    with pytest.raises(TypeError, match='init_cfg of one of'):
        OfficialWeights(released_file)(torch.nn.Linear(1, 1))


def test_pretrained_of_mmengine_loads_converted_files(family, official, tmp_path):
    converted = family.cls.convert_official(official)
    torch.save(converted, tmp_path / 'converted.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'converted.pth'))
    detector = MMDET_MODELS.build(detector_config(family, init_cfg=init_cfg))
    detector.init_weights()
    assert all(torch.equal(v, converted[k]) for k, v in detector.backbone.state_dict().items())
    model = family.cls(family.smallest, **family.classification)
    load_checkpoint(model, str(tmp_path / 'converted.pth'), strict=True)
