"""The backbones as timm models: timm's contract for a model, official files with classifiers, files trained with timm.

Not asked of them: torch.jit.script and torch.fx, whose limits the backbones do not heed.
"""

import argparse
import copy

import numpy as np
import pytest
import reference_inputs
import timm
import torch
from families import FAMILIES
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.models import group_parameters, load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3

from mmvit import classifiers

ARCHS = [(family, arch) for family in FAMILIES for arch in family.parameters]
every_arch = pytest.mark.parametrize(('family', 'arch'), ARCHS, ids=[f'{f.key}-{a}' for f, a in ARCHS])


def timm_name(family, arch=None):
    return f'mmvit_{family.name}_{arch or family.smallest}'


def create(family, **options):
    return timm.create_model(timm_name(family), **options)


@pytest.fixture
def quick(family):
    """A classifier with the family's quick arch and fixed random weights."""

    def build(**options):
        torch.manual_seed(0)
        return classifiers.Classifier(family.cls, family.small, num_classes=10, **options)

    return build


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@every_arch
def test_default_cfg_tells_the_model(family, arch):
    with torch.device('meta'):
        model = timm.create_model(timm_name(family, arch))
    assert sum(p.numel() for p in model.parameters()) == family.parameters[arch]
    cfg = model.default_cfg
    assert (model.num_classes, model.in_chans) == (cfg['num_classes'], cfg['input_size'][0]) == (1000, 3)
    convs = cfg['first_conv'] if isinstance(cfg['first_conv'], tuple) else (cfg['first_conv'],)
    assert all(model.get_submodule(conv).in_channels == 3 for conv in convs)
    assert model.get_submodule(cfg['classifier']) is model.get_classifier()
    size = family.cls.arch_zoo[arch].get('img_size', 224)
    assert cfg['input_size'] == (3, size, size)
    assert (cfg['mean'] == cfg['std'] == (0.5, 0.5, 0.5)) == (family.name == 'pyramid_tnt')
    assert bool(cfg['url']) == (family.name == 'regionvit' and arch in ('tiny', 'small', 'base'))

    x = torch.empty(2, *cfg['input_size'], device='meta')
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, *cfg['pool_size'])
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == (2, 1000)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == pooled.shape
    model.reset_classifier(0, '')
    assert model.forward_head(features).shape == features.shape


def test_without_an_address_pretrained_is_an_error():
    with pytest.raises(RuntimeError, match='No pretrained weights exist for mmvit_mpvit_tiny'):
        timm.create_model('mmvit_mpvit_tiny', pretrained=True)


def test_unknown_options_are_refused(family):
    for option in ('no_such_option', 'out_indices'):  # the latter belongs to features_only
        with pytest.raises(TypeError, match=option):
            create(family, **{option: (0,)})


def test_every_parameter_gets_a_gradient(quick, images):
    model = quick(drop_rate=0.1, drop_path_rate=0.1).train()
    logits = model(images)
    assert logits.shape == (2, 10)
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_other_channels_and_type(quick):
    model = quick(in_chans=1, dtype=torch.float64).eval()
    assert model(torch.rand(2, 1, 33, 50, dtype=torch.float64)).dtype == torch.float64
    assert {p.device.type for p in quick(device='meta').parameters()} == {'meta'}


def test_classifier_and_pooling_are_reset(quick, images):
    model = quick(global_pool='max').double().eval()
    images = images.double()
    with torch.no_grad():
        features = model.forward_features(images)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
        model.reset_classifier(5)
        assert (model.num_classes, model.get_classifier().weight.dtype) == (5, torch.float64)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
        model.reset_classifier(5, 'avg')
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
        assert model(images).shape == (2, 5)
        model.reset_classifier(0)
        torch.testing.assert_close(model(images), features.mean((2, 3)))
        model.reset_classifier(0, '')
        torch.testing.assert_close(model(images), features)


def test_features_only_gives_the_backbones_maps(family):
    images = torch.rand(1, 3, 65, 90)
    whole = create(family, in_chans=3, drop_path_rate=0.1, features_only=True).eval()
    part = create(family, features_only=True, out_indices=(-3, 2)).eval()
    backbone = family.cls(family.smallest, **family.classification).eval()
    backbone.load_state_dict(whole.model.backbone.state_dict())
    part.model.load_state_dict(whole.model.state_dict(), strict=False)
    with torch.no_grad():
        expected, maps, some = backbone(images), whole(images), part(images)
    for x, y in zip([*maps, *some], [*expected, expected[1], expected[2]], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    assert tuple(whole.feature_info.channels()) == backbone.out_channels
    assert tuple(whole.feature_info.reduction()) == backbone.out_strides
    assert not any('stages.3.' in name or 'head' in name for name, _ in part.named_parameters())


def test_intermediates_of_a_classifier(quick, images):
    model = quick().eval()
    with torch.no_grad():
        features, maps = model.forward_intermediates(images)
        last = model.forward_intermediates(images, indices=1, intermediates_only=True)
        torch.testing.assert_close(features, model.forward_features(images))
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    assert len(last) == 1
    assert torch.equal(last[0], maps[3])
    with pytest.raises(ValueError, match='NCHW'):
        model.forward_intermediates(images, output_fmt='NHWC')


@pytest.mark.parametrize('indices', [[0], [3], [0, 1, 2]])
def test_a_pruned_model_has_no_unused_parameter(quick, images, indices):
    model = quick().train()
    taken = model.prune_intermediate_layers(indices)
    maps = model.forward_intermediates(images, indices=taken, intermediates_only=True)
    sum(m.square().sum() for m in maps).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model(images).shape[:2] == (2, model.num_features)


def test_checkpointing_changes_no_gradient(quick, images):
    model = quick().double().train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images.double()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    assert any(getattr(m, 'with_cp', False) for m in model.modules())


def test_layers_are_those_of_the_backbone(quick):
    model = quick()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    own = {n: model.backbone.get_layer_depth(n)[0] for n, _ in model.backbone.named_parameters()}
    assert layers.keys() == {n for n, _ in model.named_parameters()}
    assert {n.removeprefix('backbone.'): layer for n, layer in layers.items() if n.startswith('backbone.')} == own
    assert layers['head.fc.weight'] == max(own.values()) + 1
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {parameter: group['lr_scale'] for group in groups for parameter in group['params']}
    assert all(scale[p] == 0.5 ** (layers['head.fc.weight'] - layers[n]) for n, p in model.named_parameters())
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {n.split('.')[2]: layer for n, layer in coarse.items() if 'stages' in n} == {'0': 1, '1': 2, '2': 3, '3': 4}


def test_positions_norms_and_biases_do_not_decay(quick):
    model = quick()
    positions = {n for n, _ in model.named_parameters() if n.endswith(('_pos', 'rel_pos_table'))}
    assert model.no_weight_decay() == positions
    optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.05)
    decay = {parameter: group['weight_decay'] for group in optimizer.param_groups for parameter in group['params']}
    for name, parameter in model.named_parameters():
        assert decay[parameter] == (0 if name in positions or parameter.ndim == 1 else 0.05), name


@pytest.mark.slow
def test_logits_agree_with_the_authors_programs(family, computed):
    goldens = [golden for golden in family.goldens() if 'logits' in golden]
    assert goldens
    for golden in goldens:
        arch = golden['model'].removeprefix(f'{family.key}_')
        overlay = dict(state_dict={'model': family.official(arch, golden['weight_seed'])})
        model = timm.create_model(timm_name(family, arch), pretrained=True, pretrained_cfg_overlay=overlay).eval()
        images = torch.from_numpy(reference_inputs.image(golden['size'], golden['batch'], golden['image_seed']))
        with torch.no_grad():
            logits = model(images).numpy()
        expected = golden['logits']
        assert list(logits.shape) == expected['shape']
        error = np.abs(reference_inputs.sample(logits) - np.array(expected['samples'])).max()
        assert error <= 1e-4 * expected['std'], (golden['model'], golden['size'])


@pytest.fixture
def save(tmp_path):
    def saved(weights):
        torch.save(weights, tmp_path / 'weights.pth')
        return tmp_path / 'weights.pth'

    return saved


def test_official_files_load_in_timms_ways(family, save):
    official = family.official(family.smallest)
    path = save({'model': {'module.' + k: v for k, v in official.items()}})
    backbone = family.cls.convert_official(official).weights
    (linear,) = (k for k in official if k.endswith(('cls.weight', 'head.weight')))
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file=path))
    whole, fewer = create(family, checkpoint_path=path), create(family, num_classes=3, **overlay)
    for model in (whole, fewer):
        assert all(torch.equal(v, backbone[k]) for k, v in model.backbone.state_dict().items())
    assert torch.equal(whole.get_classifier().weight, official[linear])
    assert fewer.get_classifier().weight.shape[0] == 3

    grey = create(family, in_chans=1, **overlay)
    conv = 'backbone.stem.regional' if family.name == 'regionvit' else grey.default_cfg['first_conv']
    expected = backbone[conv.removeprefix('backbone.') + '.weight'].sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_submodule(conv).weight, expected)


def test_an_official_file_without_classifier_is_an_error(family, save):
    classifier = family.cls.official_layout.classifier
    path = save({k: v for k, v in family.official(family.smallest).items() if not k.startswith(classifier)})
    with pytest.raises(RuntimeError, match='head.fc'):
        create(family, checkpoint_path=path)


@pytest.fixture
def detector_backbone(family):
    """The backbone of the family's digits detector, initialised by a file."""

    def build(path, **options):
        config = Config.fromfile(family.digits_config).model
        config.backbone.update(options, init_cfg=dict(type='mmvit.OfficialWeights', checkpoint=str(path)))
        detector = MMDET_MODELS.build(config)
        detector.init_weights()
        return detector.backbone

    return build


@pytest.mark.parametrize(('under', 'prefix'), [(None, ''), ('model', ''), ('state_dict', 'module.')])
def test_a_classifier_initialises_a_detector(family, detector_backbone, save, under, prefix):
    trained = create(family, num_classes=7)
    weights = {prefix + k: v for k, v in trained.state_dict().items()}
    path = save({under: weights} if under else weights)
    options = dict(img_size=family.cls.arch_zoo[family.smallest]['img_size']) if family.name == 'pyramid_tnt' else {}
    loaded = detector_backbone(path, **options).state_dict()
    expected = trained.backbone.state_dict()
    assert {k for k in loaded if 'det_norm' not in k} == expected.keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())


def test_a_classifier_of_another_arch_is_an_error(family, detector_backbone, save):
    with torch.device('meta'):
        other = timm.create_model(timm_name(family, list(family.parameters)[1]))
    path = save(other.to_empty(device='cpu').state_dict())
    with pytest.raises(ValueError, match=f'does not fit this {family.cls.__name__}.*(stem|stages)'):
        detector_backbone(path)


def test_position_tables_of_another_size_are_resized(save):
    trained = timm.create_model('mmvit_pyramid_tnt_tiny', img_size=64, num_classes=7)
    path = save(trained.state_dict())
    larger = timm.create_model('mmvit_pyramid_tnt_tiny', img_size=128, num_classes=7, checkpoint_path=path)
    detector = MMDET_MODELS.build(dict(type='mmvit.PyramidTNT', arch='tiny', img_size=128))
    detector.load_official(str(path))
    for key, value in detector.state_dict().items():
        assert torch.equal(value, larger.backbone.state_dict()[key]), key
    assert larger.backbone.stem.outer_pos.shape[1] == 16 * 16


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    """A folder of scikit-learn's scanned digits as timm's loaders read it, 6 of each class."""
    root = tmp_path_factory.mktemp('scans')
    digits = load_digits()
    for i, (scan, label) in enumerate(zip(digits.images[:100], digits.target[:100], strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray((scan * 15).astype(np.uint8)).save(root / str(label) / f'{i}.png')
    return root


@pytest.mark.slow
def test_timm_trains_saves_and_resumes(family, scans, detector_backbone, tmp_path):
    torch.manual_seed(0)
    img_size = dict(img_size=32) if family.name == 'pyramid_tnt' else {}
    model = create(family, num_classes=10, drop_path_rate=0.05, **img_size)
    data = resolve_data_config({}, model=model)
    loader = create_loader(
        ImageDataset(scans),
        input_size=(3, 32, 32),
        batch_size=20,
        is_training=True,
        no_aug=True,
        mean=data['mean'],
        std=data['std'],
        num_workers=0,
        device=torch.device('cpu'),
        use_prefetcher=False,
    )
    optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=3)
    averaged = ModelEmaV3(model, decay=0.5)
    args = argparse.Namespace(model=timm_name(family), lr=1e-3)
    saver = CheckpointSaver(model, optimizer, args, averaged, checkpoint_dir=str(tmp_path))
    losses = []
    for epoch in range(epochs):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update(model)
            losses.append(loss.item())
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=-losses[-1])
    assert np.mean(losses[-5:]) < np.mean(losses[:2])

    last = str(tmp_path / 'last.pth.tar')
    resumed = create(family, num_classes=10, **img_size)
    again = create_optimizer_v2(resumed, 'adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    assert resume_checkpoint(resumed, last, again) == epochs
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in model.state_dict().items())
    assert again.state_dict()['state'].keys() == optimizer.state_dict()['state'].keys()

    load_checkpoint(resumed, last)  # the averaged weights
    of_average = copy.deepcopy(averaged.module.state_dict())
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in of_average.items())
    loaded = detector_backbone(last, **img_size).state_dict()
    assert all(torch.equal(v, of_average[f'backbone.{k}']) for k, v in loaded.items() if 'det_norm' not in k)
