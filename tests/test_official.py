"""Official checkpoints: exact outputs, every form of the files, and no weights lost without an error."""

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

from mmvit.checkpoints.loading import OfficialWeights


def nested(weights, *, under=None, prefix='', extra=None):
    """The forms that official files have."""
    renamed = {prefix + k: v for k, v in weights.items()} | (extra or {})
    return {under: renamed, 'epoch': 3, 'optimizer': {'state': {}}} if under else renamed


def without_classifier(family, weights):
    return {k: v for k, v in weights.items() if not k.startswith(family.cls.official_layout.classifier)}


@pytest.mark.gpu
def test_outputs_agree_with_the_authors_programs(family, computed, device):
    for golden in family.goldens():
        arch = golden['model'].removeprefix(f'{family.key}_')
        options = {**family.classification, **golden['options']}
        model = family.cls(arch, **options).eval()
        weights = family.official('+'.join([arch, *golden['options']]), golden['weight_seed'])
        model.load_state_dict(family.cls.convert_official(weights).weights, strict=True)
        image = torch.from_numpy(reference_inputs.image(golden['size'], golden['batch'], golden['image_seed']))
        with torch.no_grad():
            outs = model.to(device)(image.to(device))
        for out, stage in zip([out.cpu() for out in outs], golden['stages'], strict=True):
            assert list(out.shape) == stage['shape']
            error = np.abs(reference_inputs.sample(out.numpy()) - np.array(stage['samples'])).max()
            assert error <= 1e-4 * stage['std'], (golden['model'], golden['size'])
            assert abs(out.std(correction=0).item() - stage['std']) <= 1e-3 * stage['std']


@pytest.mark.slow
def test_every_arch_is_recognised(family):
    for layout in family.layouts():
        found, weights = family.cls.convert_official(family.official(layout))
        arch, *options = layout.split('+')
        assert found == arch
        with torch.device('meta'):
            model = family.cls(arch, **{**family.classification, **dict.fromkeys(options, True)})
        assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.slow
def test_every_arch_goes_back_to_the_official_layout(family):
    for layout in family.layouts():
        official = without_classifier(family, family.official(layout))
        restored = family.cls.to_official(family.cls.convert_official(official).weights)
        assert restored.keys() == official.keys()
        assert all(restored[k].shape == v.shape and torch.equal(restored[k], v) for k, v in official.items())


def test_other_weights_have_no_official_layout(family):
    with pytest.raises(ValueError, match='not the state dict.*neck'):
        family.cls.to_official({'neck.conv.weight': torch.zeros(1)})


@pytest.fixture
def official(family):
    return family.official(family.smallest)


@pytest.mark.parametrize('under', [None, 'model', 'state_dict'])
def test_official_shapes(family, official, under):
    expected = family.cls.convert_official(official).weights
    for prefix in ('', 'module.', *family.prefixes, *('module.' + p for p in family.prefixes)):
        heads = {'decode_head.conv_seg.weight': torch.zeros(3), 'proposal_generator.x': torch.zeros(1)}
        extra = heads if prefix.endswith(family.prefixes) else {}
        for weights in (official, without_classifier(family, official)):
            converted = family.cls.convert_official(nested(weights, under=under, prefix=prefix, extra=extra)).weights
            assert converted.keys() == expected.keys(), prefix
            assert all(torch.equal(converted[k], expected[k]) for k in expected), prefix


def test_files_with_the_names_of_mmvit_may_be_of_any_arch(family):
    weights = family.build().state_dict()
    arch, converted = family.cls.convert_official({'state_dict': {f'module.{k}': v for k, v in weights.items()}})
    assert arch is None
    assert converted.keys() == weights.keys()


def test_numpy_arrays_are_taken(family, official):
    converted = family.cls.convert_official({k: v.numpy() for k, v in official.items()}).weights
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
        with pytest.raises(ValueError, match=f'not an official {family.cls.__name__}') as error:
            family.cls.convert_official(foreign)
        assert named in str(error.value)


def test_a_wrong_shape_or_a_missing_tensor_is_named(family, official):
    model_keys = family.cls.convert_official(official).weights.keys()
    layout = family.cls.official_layout
    key = next(k for k in without_classifier(family, official) if 'fc1' in k)
    (name,) = layout.rename({key: official[key]})
    assert name in model_keys
    without = {k: v for k, v in official.items() if k != key}
    for broken in ({**official, key: official[key][:-1]}, without):
        with pytest.raises(ValueError, match='not an official') as error:
            family.cls.convert_official(broken)
        assert name in str(error.value)


@pytest.fixture
def official_file(family, official, tmp_path):
    path = tmp_path / 'official.pth'
    torch.save(nested(official, under='model'), path)
    return str(path)


def detector_config(family, **backbone):
    config = Config.fromfile(family.digits_config).model
    config.backbone.update(family.classification)
    config.backbone.pop('img_size', None)  # position tables of the official size
    config.backbone.update(backbone)
    return config


def test_init_cfg_loads_an_official_file_into_a_detector(family, official, official_file):
    config = detector_config(family, init_cfg=dict(type='mmvit.OfficialWeights', checkpoint=official_file))
    detector = MMDET_MODELS.build(config)
    detector.init_weights()
    expected = family.cls.convert_official(official).weights
    loaded = detector.backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], expected[k]) for k in expected)


def test_stages_not_built_are_left_out_in_one_line(family, official, official_file, caplog):
    init_cfg = dict(type='OfficialWeights', checkpoint=official_file)
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
    expected = family.cls.convert_official(official).weights
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_weights_that_do_not_fit_are_an_error(family, official, official_file, tmp_path):
    other_arch = list(family.parameters)[1]
    for kwargs in (dict(arch=other_arch), dict(arch=family.smallest, in_channels=4)):
        init_cfg = dict(type='mmvit.OfficialWeights', checkpoint=official_file)
        model = family.cls(**kwargs, **family.classification, init_cfg=init_cfg)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r'does not fit.*(stem|stages)\.'):
            model.init_weights()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    partial = dict(list(official.items())[:-20])
    torch.save({'model': partial}, tmp_path / 'partial.pth')
    with pytest.raises(ValueError, match='missing'):
        family.cls(family.smallest).load_official(str(tmp_path / 'partial.pth'))


def test_initialiser_on_anything_else_says_where_it_belongs(official_file):
    with pytest.raises(TypeError, match='init_cfg of one of'):
        OfficialWeights(official_file)(torch.nn.Linear(1, 1))


def test_pretrained_of_mmengine_loads_converted_files(family, official, tmp_path):
    converted = family.cls.convert_official(official).weights
    torch.save(converted, tmp_path / 'converted.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'converted.pth'))
    detector = MMDET_MODELS.build(detector_config(family, init_cfg=init_cfg))
    detector.init_weights()
    assert all(torch.equal(v, converted[k]) for k, v in detector.backbone.state_dict().items())
    model = family.cls(family.smallest, **family.classification)
    load_checkpoint(model, str(tmp_path / 'converted.pth'), strict=True)
