"""Official detectors, segmenters and classifiers through the whole conversion; detectron2's ways in numbers by hand."""

import hashlib
import json
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import official_heads
import pytest
import reference_inputs
import torch
from commands import program, run, run_here
from families import FAMILIES
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.apis import inference_model, init_model

from mmvit.conversion import (
    OFFICIAL_MODELS,
    OfficialCheckpoint,
    convert_checkpoint,
    fitting_configs,
    recognise_checkpoint,
    recognise_model,
    rename_heads,
)

MPVIT, _, REGIONVIT = FAMILIES
TINY = (96, 176, 216, 216)  # channels of MPViT-T
CONFIGS = Path('configs').resolve()

# Networks of the leaves, cut down in all but the backbone.
SMALL_RPN = 'rpn_head=dict(in_channels=32, feat_channels=32),'
SMALL_ROIS = """
            bbox_roi_extractor=dict(out_channels=32),
            mask_roi_extractor=dict(out_channels=32),
            mask_head=dict(in_channels=32, conv_out_channels=32),
"""
SMALL = {
    'retinanet': (
        'retinanet_mpvit_t_d2',
        """
        neck=dict(out_channels=32),
        bbox_head=dict(in_channels=32, feat_channels=32),
        """,
    ),
    'maskrcnn': (
        'maskrcnn_mpvit_t_d2',
        f"""
        neck=dict(out_channels=32),
        {SMALL_RPN}
        roi_head=dict(
            bbox_head=dict(in_channels=32, fc_out_channels=64),
            {SMALL_ROIS}
        ),
        """,
    ),
    'cascade': (
        'cascade_maskrcnn_mpvit_s_d2',
        f"""
        backbone=dict(arch='tiny'),
        neck=dict(in_channels=[96, 176, 216, 216], out_channels=32),
        {SMALL_RPN}
        roi_head=dict(
            bbox_head=[dict(head, in_channels=32, fc_out_channels=64) for head in _base_.model.roi_head.bbox_head],
            {SMALL_ROIS}
        ),
        """,
    ),
    'upernet': (
        'upernet_mpvit_s',
        """
        backbone=dict(arch='tiny'),
        decode_head=dict(in_channels=[96, 176, 216, 216], channels=32),
        auxiliary_head=dict(in_channels=216, channels=32),
        """,
    ),
}
HEADS = {
    'retinanet': official_heads.detectron2_retinanet(TINY[1:], width=32),
    'maskrcnn': official_heads.detectron2_maskrcnn(TINY, width=32, hidden=64),
    'cascade': official_heads.detectron2_cascade(TINY, width=32, hidden=64),
    'upernet': official_heads.mmseg_upernet(TINY, width=32, auxiliary_width=32),
}
FULL_HEADS = {
    'retinanet': official_heads.detectron2_retinanet,
    'maskrcnn': official_heads.detectron2_maskrcnn,
    'cascade': official_heads.detectron2_cascade,
    'upernet': official_heads.mmseg_upernet,
}
D2_LEAVES = sorted(path.stem for path in CONFIGS.glob('*_d2.py'))
# Some of the pairs (official, mmvit), by hand; a strict load needs all the others.
PAIRS = {
    'retinanet': {
        'backbone.fpn_lateral3.weight': 'neck.lateral_convs.0.conv.weight',
        'backbone.fpn_output4.bias': 'neck.fpn_convs.1.conv.bias',
        'backbone.top_block.p6.weight': 'neck.fpn_convs.3.conv.weight',
        'backbone.top_block.p7.bias': 'neck.fpn_convs.4.conv.bias',
        'head.cls_subnet.4.weight': 'bbox_head.cls_convs.2.conv.weight',
        'head.bbox_subnet.6.bias': 'bbox_head.reg_convs.3.conv.bias',
        'head.cls_score.weight': 'bbox_head.retina_cls.weight',
        'head.bbox_pred.bias': 'bbox_head.retina_reg.bias',
    },
    'maskrcnn': {
        'backbone.fpn_lateral2.weight': 'neck.lateral_convs.0.conv.weight',
        'backbone.fpn_output5.weight': 'neck.fpn_convs.3.conv.weight',
        'proposal_generator.rpn_head.conv.weight': 'rpn_head.rpn_conv.weight',
        'proposal_generator.rpn_head.objectness_logits.bias': 'rpn_head.rpn_cls.bias',
        'proposal_generator.rpn_head.anchor_deltas.weight': 'rpn_head.rpn_reg.weight',
        'roi_heads.box_head.fc1.weight': 'roi_head.bbox_head.shared_fcs.0.weight',
        'roi_heads.box_head.fc2.bias': 'roi_head.bbox_head.shared_fcs.1.bias',
        'roi_heads.box_predictor.cls_score.weight': 'roi_head.bbox_head.fc_cls.weight',
        'roi_heads.box_predictor.bbox_pred.bias': 'roi_head.bbox_head.fc_reg.bias',
        'roi_heads.mask_head.mask_fcn4.weight': 'roi_head.mask_head.convs.3.conv.weight',
        'roi_heads.mask_head.deconv.bias': 'roi_head.mask_head.upsample.bias',
        'roi_heads.mask_head.predictor.weight': 'roi_head.mask_head.conv_logits.weight',
    },
    'cascade': {
        'roi_heads.box_head.1.fc2.weight': 'roi_head.bbox_head.1.shared_fcs.1.weight',
        'roi_heads.box_predictor.2.cls_score.bias': 'roi_head.bbox_head.2.fc_cls.bias',
        'roi_heads.box_predictor.0.bbox_pred.weight': 'roi_head.bbox_head.0.fc_reg.weight',
        'roi_heads.mask_head.mask_fcn1.bias': 'roi_head.mask_head.convs.0.conv.bias',
        'roi_heads.mask_head.predictor.weight': 'roi_head.mask_head.conv_logits.weight',
    },
    'upernet': {
        'decode_head.psp_modules.3.1.conv.weight': 'decode_head.psp_modules.3.1.conv.weight',
        'decode_head.fpn_bottleneck.bn.running_var': 'decode_head.fpn_bottleneck.bn.running_var',
        'auxiliary_head.conv_seg.bias': 'auxiliary_head.conv_seg.bias',
    },
}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


@cache
def official_weights(kind):
    """The weights of an official file with MPViT-T."""
    prefix = 'backbone.' if kind == 'upernet' else 'backbone.bottom_up.backbone.'
    backbone = {k: v for k, v in MPVIT.official('tiny').items() if not k.startswith('cls_head.')}
    arrays = reference_inputs.official_state_dict(HEADS[kind], seed=0)
    # As trained heads, these are sure of little, so that few of the boxes are anything but background.
    arrays = {k: v - 4 if k == 'head.cls_score.bias' else v for k, v in arrays.items()}
    heads = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    return {prefix + key: value for key, value in backbone.items()} | heads


@pytest.mark.parametrize('leaf', [*D2_LEAVES, 'upernet_mpvit_s', 'upernet_mpvit_b'])
def test_heads_of_the_official_networks(leaf):
    """In full size: every weight of neck and heads has its place, and every place a weight."""
    cfg = Config.fromfile(f'configs/{leaf}.py').model
    with torch.device('meta'):
        model = MODELS.build(cfg)
        layout = FULL_HEADS[leaf.split('_')[0]](model.backbone.out_channels)
        heads = {key: torch.empty(shape) for key, shape in layout.items()}
    renamed = rename_heads(heads, recognise_model(heads))
    own = {key: value.shape for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    assert {key: value.shape for key, value in renamed.items()} == own


@pytest.fixture
def config(tmp_path):
    """Writes the cut-down config of a kind; images are tested at a small size."""

    def write(kind):
        leaf, model = SMALL[kind]
        path = tmp_path / f'{kind}.py'
        path.write_text(
            f"_base_ = '{CONFIGS}/{leaf}.py'\nmodel = dict({model})\n"
            '_base_.test_pipeline[1].scale = (160, 96)\n'
            'test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))\n'
        )
        return str(path)

    return write


@pytest.fixture
def source(tmp_path):
    """Writes an official file of a kind, with changes: a value, or None for an entry left out."""

    def write(kind, changes=None, **beside):
        weights = {k: v for k, v in (official_weights(kind) | (changes or {})).items() if v is not None}
        path = tmp_path / f'{kind}_official.pth'
        torch.save({'state_dict' if kind == 'upernet' else 'model': weights, **beside}, path)
        return str(path)

    return write


@pytest.fixture
def convert(monkeypatch, capsys):
    """By the command, which docs/checkpoints.md starts in a process; the path that it wrote, and what it said."""

    def command(*arguments):
        capsys.readouterr()
        run_here(monkeypatch, Path('tools/convert_checkpoint.py'), *arguments)
        said = capsys.readouterr().out
        return said.splitlines()[-1].removeprefix('written: '), said

    return command


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['retinanet', 'maskrcnn', 'cascade'])
def test_a_detectron2_detector_predicts(kind, config, source, convert, tmp_path):
    file = source(kind, optimizer={}, iteration=90000)
    path, said = convert(file, '--config', config(kind), '-o', tmp_path / 'new.pth', '--weights', 'model')
    assert 'mapped to backbone: ' in said
    assert 'left out: 2 keys: optimizer, iteration (the state of the training run)' in said
    weights = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(weights[name], official_weights(kind)[key]) for key, name in PAIRS[kind].items())
    model = init_detector(config(kind), path, device='cpu')
    assert model.dataset_meta['classes'][:2] == ('person', 'bicycle')
    image = np.random.RandomState(0).randint(0, 256, (48, 80, 3), np.uint8)
    instances = inference_detector(model, image).pred_instances
    assert len(instances)
    assert instances.bboxes.isfinite().all()
    assert kind == 'retinanet' or instances.masks.shape[1:] == (48, 80)


@pytest.mark.slow
def test_an_mmseg_segmenter_predicts(config, source, convert, tmp_path):
    file = source('upernet', meta={'mmseg_version': '0.11.0'}, optimizer={})
    path, _ = convert(file, '--config', config('upernet'), '-o', tmp_path / 'new.safetensors')
    model = init_model(config('upernet'), path, device='cpu')
    assert list(model.dataset_meta['classes'][:2]) == ['wall', 'building']
    own = model.state_dict()
    assert all(torch.equal(own[name], official_weights('upernet')[key]) for key, name in PAIRS['upernet'].items())
    segments = inference_model(model, np.zeros((48, 80, 3), np.uint8)).pred_sem_seg.data
    assert segments.shape == (1, 48, 80)


@pytest.mark.slow
def test_a_classifier_becomes_a_backbone(config, convert, tmp_path):
    official = MPVIT.official('tiny')
    torch.save({'model': official, 'epoch': 300, 'lr_scheduler': {}}, tmp_path / 'mpvit_tiny.pth')
    path, said = convert(
        tmp_path / 'mpvit_tiny.pth', '--config', config('maskrcnn'), '-o', tmp_path / 'backbone.safetensors'
    )
    assert 'left out: 2 keys: cls_head.cls.weight, cls_head.cls.bias (no backbone has a classifier)' in said
    cfg = Config.fromfile(config('maskrcnn'))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    model = MODELS.build(cfg.model)
    model.init_weights()
    expected = MPVIT.cls.convert_official(official).weights
    loaded = model.backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_mim_test_takes_the_file(suffix, digits, tmp_path, monkeypatch, capsys):
    """One kind of file by mim, the other by the program that it starts."""
    config = tmp_path / 'digits_d2.py'
    config.write_text(
        f"_base_ = ['{CONFIGS}/maskrcnn_mpvit_t_digits.py', '{CONFIGS}/_base_/detectron2.py']\n"
        'model = _base_.detectron2_maskrcnn\n'
        "_base_.test_pipeline[1].update(type='mmvit.detectron2.Resize', backend='pillow')\n"
        'test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))\n'
    )
    layout = official_heads.detectron2_maskrcnn(TINY, width=64, hidden=256, classes=10, mask_convs=2)
    heads = reference_inputs.official_state_dict(layout, seed=0)
    backbone = {k: v for k, v in official_weights('maskrcnn').items() if k.startswith('backbone.bottom_up.')}
    torch.save({'model': backbone | {k: torch.from_numpy(v) for k, v in heads.items()}}, tmp_path / 'official.pth')
    path, _ = convert_checkpoint(str(tmp_path / 'official.pth'), str(config), str(tmp_path / f'new{suffix}'))
    options = [f'test_dataloader.dataset.data_root={digits}/']
    options += [f'test_evaluator.ann_file={digits}/annotations/instances_val.json']
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', *options]
    if suffix == '.safetensors':
        said = run('mim', 'test', 'mmdet', config, '--checkpoint', path, *options)
    else:
        options.append(f'visualizer.name={tmp_path}')
        run_here(monkeypatch, program('mmdet', 'test.py'), config, path, *options)
        said = capsys.readouterr().out
    assert f'Load checkpoint from {path}' in said
    assert 'unexpected key' not in said
    scores = json.loads(next((tmp_path / 'run').glob('2*/2*.json')).read_text())
    assert 0 <= scores['coco/bbox_mAP'] <= 1


@cache
def regionvit_weights():
    """The weights of an official RetinaNet with RegionViT-S."""
    backbone = {k: v for k, v in REGIONVIT.official('small+det_norm').items() if not k.startswith(('head', 'norm.'))}
    heads = reference_inputs.official_state_dict(official_heads.detectron2_retinanet((192, 384, 768)), seed=0)
    return {f'backbone.bottom_up.model.{k}': v.numpy() for k, v in backbone.items()} | heads


@pytest.fixture
def named(tmp_path):
    """Writes the RetinaNet with RegionViT-S under a name."""

    def write(name):
        path = tmp_path / name
        path.write_bytes(
            pickle.dumps({'model': regionvit_weights(), '__author__': 'them', 'matching_heuristics': True})
        )
        return str(path)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'config', 'size'),
    [
        ('RetinaNet_1x_RegionViT-S.pkl', 'retinanet_regionvit_s_d2.py', 'exactly 672x1120'),
        ('RetinaNet_3x_RegionViT-S.pkl', 'retinanet_regionvit_s_3x_d2.py', 'a short side of 672, at most 1120'),
    ],
)
def test_a_released_name_tells_the_config(name, config, size, named, tmp_path, monkeypatch):
    """From detectron2's pickle of NumPy arrays."""
    path, said = convert_checkpoint(named(name), None, str(tmp_path / 'new.pth'))
    assert f'config: configs/{config} (the one that fits this file)' in said
    assert f'test with: mim test mmdet configs/{config} --checkpoint {path}' in said
    assert 'left out: 2 keys: __author__, matching_heuristics' in said
    weights = torch.load(path, weights_only=True)['state_dict']
    official = regionvit_weights()
    assert all((weights[own].numpy() == official[key]).all() for key, own in PAIRS['retinanet'].items())
    other = 'retinanet_regionvit_s_d2' if '3x' in name else 'retinanet_regionvit_s_3x_d2'
    with pytest.raises(ValueError, match=f'this file needs {size}: give {config}'):
        convert_checkpoint(named(name), f'{CONFIGS}/{other}.py', str(tmp_path / 'new.pth'))


@pytest.mark.slow
def test_another_name_needs_a_config(named, tmp_path):
    out = str(tmp_path / 'new.pth')
    both = 'retinanet_regionvit_s_3x_d2.py, retinanet_regionvit_s_d2.py'
    with pytest.raises(ValueError, match=f'which of {both} fits it: say which with --config'):
        convert_checkpoint(named('mine.pkl'), None, out)
    _, said = convert_checkpoint(named('mine.pkl'), f'{CONFIGS}/retinanet_regionvit_s_3x_d2.py', out)
    assert f"retinanet_regionvit_s_3x_d2.py (as given: the file's name does not tell which of {both} fits it)" in said


@pytest.mark.parametrize(
    ('name', 'arch', 'method', 'expected'),
    [
        ('MaskRCNN_3x_RegionViT-B+peg_dagger.pth', 'base_w14_peg', 1, ['maskrcnn_regionvit_b_w14_peg_896_3x_d2']),
        ('https://x.org/a/MaskRCNN_1x_RegionViT-B%2Bpeg_dagger.pth', 'base_w14_peg', 1, ['b_w14_peg_896_d2']),
        ('RetinaNet_1x_RegionViT-B+peg.pth', 'base_w14_peg', 0, ['retinanet_regionvit_b_w14_peg_d2']),
        ('RetinaNet_3x_RegionViT-S+.pth', 'small_w14', 0, ['retinanet_regionvit_s_w14_3x_d2']),
        ('RetinaNet_3x_RegionViT-S/model.pth', 'small', 0, ['retinanet_regionvit_s_3x_d2', 'regionvit_s_d2']),
    ],
)
def test_configs_of_the_released_files(name, arch, method, expected):
    """The names, as the release writes them."""
    official = OfficialCheckpoint(REGIONVIT.cls, arch, OFFICIAL_MODELS[method], {}, {}, {}, {})
    found = [path.stem for path in fitting_configs(official, name)]
    assert len(found) == len(expected)
    assert all(stem.endswith(end) for stem, end in zip(found, expected, strict=True))


@pytest.mark.slow
def test_averaged_weights_beside_others(source, refused, tmp_path):
    averaged = {key: value * 2 for key, value in official_weights('retinanet').items()}
    refused('retinanet', None, 'weights under model and model_ema: say which with --weights', model_ema=averaged)
    file = source('retinanet', ema_state=averaged)
    out = str(tmp_path / 'new.pth')
    with pytest.raises(ValueError, match='no weights under model_ema, but model and ema_state'):
        convert_checkpoint(file, None, out, 'model_ema')
    config = tmp_path / 'small.py'
    config.write_text(f"_base_ = '{CONFIGS}/retinanet_mpvit_t_d2.py'\nmodel = dict({SMALL['retinanet'][1]})\n")
    path, said = convert_checkpoint(file, str(config), out, 'ema_state')
    assert 'left out: 1 keys: model (another copy of the weights)' in said
    weights = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(weights[own], averaged[key]) for key, own in PAIRS['retinanet'].items())


@pytest.mark.slow
def test_frozen_batch_norms_have_no_counters(source, config, tmp_path):
    frozen = {key: None for key in official_weights('retinanet') if key.endswith('num_batches_tracked')}
    path, said = convert_checkpoint(source('retinanet', frozen), config('retinanet'), str(tmp_path / 'new.pth'))
    assert f'set to 0: {len(frozen)} keys' in said
    weights = torch.load(path, weights_only=True)['state_dict']
    counters = [value.item() for key, value in weights.items() if key.endswith('num_batches_tracked')]
    assert counters == [0] * len(frozen)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(value):
    weights = official_weights('retinanet') | {'head.cls_score.bias': torch.tensor([0, value] * 360)}
    with pytest.raises(ValueError, match='NaN or infinite; 1 keys: head.cls_score.bias'):
        recognise_checkpoint({'model': weights})


@pytest.fixture
def refused(config, source, tmp_path):
    """Asserts that a file is refused with these words, and nothing written or touched."""

    def check(kind, changes=None, *words, to=None, **beside):
        out = tmp_path / 'out'
        out.mkdir(exist_ok=True)
        (out / 'new.pth').write_text('of yesterday')
        with pytest.raises(ValueError, match='.*'.join(words)):
            convert_checkpoint(source(kind, changes, **beside), to or config(kind), str(out / 'new.pth'))
        assert [path.name for path in out.iterdir()] == ['new.pth']
        assert (out / 'new.pth').read_text() == 'of yesterday'

    return check


@pytest.mark.slow
def test_what_has_no_explanation_is_refused(refused):
    refused('retinanet', {'head.mystery.weight': torch.zeros(1)}, 'a detectron2 RetinaNet', 'head.mystery.weight')
    refused('retinanet', {'backbone.bottom_up.backbone.mystery': torch.zeros(1)}, 'unexpected', 'mystery')
    own = f'backbone.bottom_up.backbone.{MPVIT.cls.official_layout.mmvit_landmark}'
    refused('retinanet', {own: torch.zeros(1)}, 'its backbone has the names of mmvit')
    refused('retinanet', {'head.bbox_pred.bias': 'text'}, 'no tensors', 'head.bbox_pred.bias')
    refused('retinanet', None, 'unknown entries beside the weights', 'mystery', mystery=1)
    # P6 as a feature pyramid's own map would take the name of the top block's.
    refused('retinanet', {'backbone.fpn_output6.bias': torch.zeros(32)}, 'do not belong', 'top_block.p6.bias')
    unknown_head = {key: None for key in HEADS['retinanet'] if key.startswith('head.cls_score')}
    refused('retinanet', unknown_head, 'around the backbone', 'a detectron2 RetinaNet', 'backbone.fpn_lateral3.weight')


@pytest.mark.slow
def test_what_does_not_fit_the_config_is_refused(refused, config, tmp_path):
    refused('retinanet', {'head.bbox_pred.bias': None}, 'missing', 'bbox_head.retina_reg.bias')
    refused('retinanet', {'head.bbox_pred.bias': torch.zeros(35)}, 'of another shape', 'bbox_head.retina_reg.bias')
    refused('retinanet', None, 'its model is a MaskRCNN, not a RetinaNet', to=config('maskrcnn'))
    quantised = {'head.bbox_pred.bias': torch.zeros(36, dtype=torch.int8)}
    refused('retinanet', quantised, 'whole numbers', 'bbox_head.retina_reg.bias')
    refused('upernet', None, 'its model is a RetinaNet, not a EncoderDecoder', to=config('retinanet'))
    refused('retinanet', None, 'give its _d2 config', to=f'{CONFIGS}/retinanet_mpvit_t.py')
    wanted = "backbone=dict(type='mmvit.MPViT', arch='tiny'".replace('(', r'\(')
    refused('retinanet', None, 'another arch', wanted, to=f'{CONFIGS}/retinanet_mpvit_s_d2.py')
    refused('retinanet', None, 'its backbone is a RegionViT', wanted, to=f'{CONFIGS}/retinanet_regionvit_s_d2.py')
    with pytest.raises(ValueError, match=r'must end in .pth or .safetensors'):
        convert_checkpoint('official.pth', config('retinanet'), str(tmp_path / 'new.bin'))


@pytest.mark.slow
def test_stored_settings_are_compared(refused, config, source, tmp_path):
    mean, swapped = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([103.53, 116.28, 123.675])
    anchor = torch.tensor([[-64, -32, 64, 32.0]])  # not of these sizes
    refused('maskrcnn', {'pixel_mean': swapped.view(3, 1, 1)}, 'pixel_mean', 'data_preprocessor.mean')
    key = 'proposal_generator.anchor_generator.cell_anchors.'
    refused('maskrcnn', {f'{key}0': anchor.expand(3, 4)}, 'cell_anchors.0', 'anchor_generator')
    refused('maskrcnn', {f'{key}5': anchor}, 'cell_anchors.5', 'anchor_generator')
    refused('maskrcnn', {'pixel_mean_of_mine': mean}, 'do not belong', 'pixel_mean_of_mine')
    # By hand: 32 x 32 pixels of height / width 1/2, 1 and 2.
    anchors = torch.tensor([[-22.6274, -11.3137, 22.6274, 11.3137], [-16, -16, 16, 16]])
    anchors = torch.cat([anchors, anchors[:1, [1, 0, 3, 2]]])
    equal = {f'{key}{i}': anchors * 2**i for i in range(5)} | {'pixel_mean': mean.view(3, 1, 1)}
    _, said = convert_checkpoint(source('maskrcnn', equal), config('maskrcnn'), str(tmp_path / 'new.pth'))
    assert 'left out: 6 keys: proposal_generator.anchor_generator.cell_anchors.0' in said
    assert '(settings, equal in the config)' in said


@pytest.mark.slow
def test_regionvit_behind_a_wrapper_with_its_means(tmp_path):
    """In half precision, in memory order of another kind, and with two weights in the same memory."""
    layout = official_heads.detectron2_retinanet((128, 256, 512), width=32)
    heads = {k: torch.from_numpy(v) for k, v in reference_inputs.official_state_dict(layout, seed=0).items()}
    heads['head.bbox_subnet.0.weight'] = heads['head.cls_subnet.0.weight'] = torch.ones(32, 32, 3, 3)
    heads['pixel_mean'], heads['pixel_std'] = (
        torch.tensor([103.53, 116.28, 123.675]),
        torch.tensor([57.375, 57.12, 58.395]),
    )
    backbone = {f'backbone.bottom_up.model.{k}': v for k, v in REGIONVIT.official('tiny+det_norm').items()}
    weights = {
        k: v.half() for k, v in {**backbone, **heads}.items() if not k.startswith('backbone.bottom_up.model.head')
    }
    name = 'module.backbone.fpn_output3.weight'
    weights = {f'module.{k}': v for k, v in weights.items() if '.model.norm.' not in k}
    weights[name] = weights[name].contiguous(memory_format=torch.channels_last)
    torch.save({'model': weights}, tmp_path / 'official.pth')
    config = tmp_path / 'regionvit.py'
    config.write_text(
        f"_base_ = '{CONFIGS}/retinanet_regionvit_s_d2.py'\n"
        "model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=[128, 256, 512], out_channels=32),"
        'bbox_head=dict(in_channels=32, feat_channels=32))\n'
    )
    path, said = convert_checkpoint(str(tmp_path / 'official.pth'), str(config), str(tmp_path / 'new.pth'))
    assert "a detectron2 RetinaNet with RegionViT 'tiny'" in said
    new = torch.load(path, weights_only=True)['state_dict']
    assert {v.dtype for v in new.values()} == {torch.float32}
    assert all(v.is_contiguous() for v in new.values())
    assert len({v.untyped_storage().data_ptr() for v in new.values()}) == len(new)
    assert torch.equal(new['neck.fpn_convs.0.conv.weight'], weights[name].float())


@pytest.mark.slow
def test_the_name_tells_the_content_and_a_broken_write_leaves_nothing(config, source, tmp_path, monkeypatch):
    for suffix in ('.pth', '.safetensors'):
        out = str(tmp_path / 'new' / f'detector{suffix}')
        path, _ = convert_checkpoint(source('retinanet'), config('retinanet'), out)
        assert path.name == f'detector-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}{suffix}'
        assert convert_checkpoint(source('retinanet'), config('retinanet'), out)[0] == path
    write = Path.write_bytes

    def write_half(path, data):
        write(path, data[: len(data) // 2])
        raise OSError('no space left')

    monkeypatch.setattr(Path, 'write_bytes', write_half)
    with pytest.raises(OSError, match='no space left'):
        convert_checkpoint(source('retinanet'), config('retinanet'), str(tmp_path / 'full' / 'detector.pth'))
    assert list((tmp_path / 'full').iterdir()) == []
