"""The configs: every one fits its backbone, is as published, trains and predicts."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mim.commands.search import convert2df
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from modelindex.load_model_index import load as load_index
from samples import sample, segmented
from torch import nn
from torch._subclasses import FakeTensorMode
from write_tables import models

import mmvit.models
import mmvit.training
from mmvit.flops import count_work
from mmvit.models import MPViT
from mmvit.models.base import Backbone

# The _d2 ones are other ways to test the same networks (tests/test_detectron2.py).
CONFIGS = sorted(path.stem for path in Path('configs').glob('*.py') if not path.stem.endswith('_d2'))
INDEX = models()
LEAVES = [name for name, entry in INDEX.items() if 'Config' in entry]
SEGMENTERS = [name for name in LEAVES if name.startswith(('upernet', 'fpn', 'segformer'))]
# mmdet's and mmseg's own configs with another backbone; see test_heads.py and test_heads_seg.py.
HEADS = [name for name in LEAVES if name.startswith(('deformable', 'dino', 'atss', 'mask2former', 'panoptic'))]
DETECTORS = [name for name in LEAVES if name not in SEGMENTERS + HEADS]
# The other leaves are these, trained for longer or at other sizes.
NETWORKS = [
    name
    for name in LEAVES
    if name == 'cascade_maskrcnn_mpvit_b_3x' or not name.endswith(('_3x', '_896'))  # this one is trained for 3x only
]
LARGE = [name for name in NETWORKS if re.search(r'_b(_|$)', name)]
COUNTED = [name for name in LEAVES if (name in NETWORKS or name.endswith('_896')) and name not in HEADS]
# Those that test_heads_seg.py cuts down and trains.
SMALL_ONES = [name for name in SEGMENTERS if not name.startswith('upernet')]
# Maps of the regions that FLOPs are counted for, of the box heads and of the mask heads.
PROPOSED, MASKED = (1000, 256, 7, 7), (100, 256, 14, 14)
DROP_PATH_RATES = {'mpvit_t': 0.1, 'mpvit_xs': 0.1, 'mpvit_s': 0.2, 'mpvit_b': 0.4, 'regionvit': 0.2}
OTHER_DROP_PATH_RATES = {
    'cascade_maskrcnn_mpvit_b_3x': 0.5,
    'deformable_detr_mpvit_s': 0.0,
    'deformable_detr_regionvit_s': 0.0,
}


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


@cache
def read(name):
    return Config.fromfile(f'configs/{name}.py')


@cache
def on_meta(name):
    with torch.device('meta'):
        return MODELS.build(deepcopy(read(name).model))


def test_index_names_every_config():
    assert sorted(LEAVES) == [name for name in CONFIGS if not ('_digits' in name or name.endswith('_fsdp'))]
    assert all(INDEX[name]['Config'] == f'configs/{name}.py' for name in LEAVES)
    index = load_index('model-index.yml')
    index.check()
    assert not index.check_errors
    index.build_models_with_collections()
    assert convert2df(index).loc['maskrcnn_mpvit_s', 'measured_parameters(M)'] == 42.7


@pytest.mark.parametrize('name', CONFIGS)
def test_every_recipe_survives(name):
    config = read(name)
    hooks = config.default_hooks
    keys = ('checkpoint', 'check_setup', 'finite_loss', 'threads', 'interrupt', 'random_states')
    training = [hooks[key].type for key in keys]
    assert training == [f'mmvit.{name}' for name in mmvit.training.__all__]
    is_digits, is_epochs = '_digits' in name, config.train_cfg.type == 'EpochBasedTrainLoop'
    assert hooks.checkpoint.get('by_epoch', True) is is_epochs
    if name in HEADS and not is_epochs:  # Mask2Former's
        assert hooks.checkpoint.interval == 5000
        assert hooks.checkpoint.get('max_keep_ckpts') == (None if 'ade20k' in name else 3)
    else:
        assert hooks.checkpoint.interval == (1 if is_epochs else 200 if is_digits else config.train_cfg.max_iters // 10)
        assert hooks.checkpoint.get('max_keep_ckpts') == (1 if is_digits else None)
    assert {'logger', 'visualization'} <= hooks.keys()  # the base's are kept


@pytest.mark.parametrize('name', CONFIGS)
def test_config_fits_its_backbone(name):
    config = read(name)
    batch = 8 if '_digits' in name else 32 if name.startswith('deformable') else 16
    assert config.auto_scale_lr.base_batch_size == batch
    network = network_of(name)
    if network != name:
        assert config.model == read(network).model
        return
    model, backbone = on_meta(name), on_meta(name).backbone
    if name in HEADS or name.startswith(('dino', 'mask2former')):  # see test_heads.py and test_heads_seg.py
        return
    if name.startswith('upernet'):
        assert tuple(config.model.decode_head.in_channels) == backbone.out_channels
        assert config.model.auxiliary_head.in_channels == backbone.out_channels[2]
        return
    if name.startswith('segformer'):
        assert tuple(config.model.decode_head.in_channels) == backbone.out_channels
        assert backbone.out_strides == (4, 8, 16, 32)
        return
    assert tuple(config.model.neck.in_channels) == backbone.out_channels
    if name.startswith('fpn'):
        assert tuple(config.model.decode_head.feature_strides) == backbone.out_strides == (4, 8, 16, 32)
        return
    assert model.neck.start_level == 0
    is_retinanet = name.startswith('retinanet')
    head = model.bbox_head if is_retinanet else model.rpn_head
    assert [stride for stride, _ in head.prior_generator.strides] == [backbone.out_strides[0] << i for i in range(5)]
    assert backbone.out_strides[0] == (8 if is_retinanet else 4)


def network_of(name):
    """The config with the same network."""
    plain = name.removesuffix('_3x').removesuffix('_896').removesuffix('_fsdp')
    return plain if plain in CONFIGS else name


def test_backbones_of_the_index_have_these_parameters():
    for entry in INDEX.values():
        if 'Config' not in entry:
            with torch.device('meta'):
                assert entry['Metadata']['Measured Parameters (M)'] == millions(backbone_of(entry))


def backbone_of(entry):
    """As in the classification networks."""
    cls = getattr(mmvit.models, entry['In Collection'])
    return cls(entry['Metadata']['Arch'], **cls.classifier_options)


@pytest.mark.parametrize('name', LEAVES)
def test_parameters_as_published(name):
    sizes = INDEX[name]['Metadata']
    measured = millions(on_meta(network_of(name)))
    assert sizes['Measured Parameters (M)'] == measured
    published = sizes.get('Published Parameters (M)')
    if published and 'mpvit_t' not in name:  # the paper's detectors have another T than the released one
        assert abs(measured - published) <= max(0.5, 0.012 * published)


def millions(model):
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 1)


@pytest.mark.slow
@pytest.mark.parametrize(('arch', 'expected'), [('tiny', 1.65), ('xsmall', 2.97), ('small', 4.80), ('base', 16.4)])
def test_classification_flops_as_published(arch, expected):
    # Billions of multiply-adds at 224x224, without the classifier's 0.0003.
    flops = FlopAnalyzer(MPViT(arch).eval(), torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False).total()
    assert abs(flops / 1e9 - expected) <= 0.01 * expected


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Accessing the data pointer of FakeTensor')  # tells a changed weight
@pytest.mark.parametrize('name', [name for name in [*INDEX] if name not in LEAVES or name in COUNTED])
def test_flops_as_published(name):
    """Within 2% or the last digit printed, at the papers' image sizes; fake tensors have a shape and no values."""
    entry, sizes = INDEX[name], INDEX[name]['Metadata']
    with torch.device('meta'):
        model = MODELS.build(deepcopy(read(name).model)) if 'Config' in entry else backbone_of(entry)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.eval().to_empty(device='cpu')
        found = count_work(run_network, model, torch.zeros(1, 3, *flops_size(name))).multiply_adds / 1e9
        assert found == pytest.approx(sizes['Measured FLOPs (G)'], abs=0.05)
        if name.startswith('maskrcnn_regionvit'):  # the paper leaves the mask head out
            found -= count_work(run_heads, model.roi_head.mask_head, torch.zeros(*MASKED)).multiply_adds / 1e9
    published = sizes.get('Published FLOPs (G)')
    # The paper's MPViT-T detectors have another T than the released one. For Semantic FPN no image size is known.
    if published and 'mpvit_t' not in name and not name.startswith('fpn'):
        assert abs(found - published) <= max(0.05, 0.02 * published)


def flops_size(name):
    if name in SEGMENTERS:
        return 512, 2048
    if name in LEAVES:
        return (896, 1344) if '896' in name else (672, 1120) if 'regionvit' in name else (800, 1280)
    return (INDEX[name]['Metadata']['Image Size'],) * 2


def run_network(model, image):
    if isinstance(model, Backbone):
        return model(image)
    maps = model.extract_feat(image)
    if hasattr(model, 'decode_head'):
        return model.decode_head(maps)
    if not hasattr(model, 'roi_head'):
        return model.bbox_head(maps)
    model.rpn_head(maps)
    run_heads(model.roi_head.bbox_head, torch.zeros(*PROPOSED))
    return run_heads(model.roi_head.mask_head, torch.zeros(*MASKED))


def run_heads(heads, regions):
    """The head, or all of a cascade's, on the maps of some regions."""
    for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
        head(regions)


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_train_as_published(name):
    config = read(name)
    is_regionvit, is_3x = 'regionvit' in name, name.endswith('_3x')
    assert (config.train_cfg.type, config.train_cfg.max_epochs) == ('EpochBasedTrainLoop', 36 if is_3x else 12)
    warm_up, steps = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001 if is_regionvit else 0.01, 1000, False)
    assert (steps.end, steps.milestones) == ((36, [28, 34]) if is_3x else (12, [8, 11]))
    wrapper = config.optim_wrapper
    assert (wrapper.optimizer.type, wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert wrapper.get('clip_grad') == (None if is_regionvit else dict(max_norm=1.0, norm_type=2))
    assert ('paramwise_cfg' in wrapper) is is_regionvit  # of the others, every parameter decays
    loader = config.train_dataloader
    assert loader.batch_size == 2
    assert loader.dataset.type == 'CocoDataset'
    assert loader.dataset.filter_cfg.filter_empty_gt is is_regionvit
    assert loader.dataset.pipeline[1].get('with_mask', False) is ('maskrcnn' in name)
    test_scale = (1344, 896) if '896' in name else (1120, 672) if is_regionvit else (1333, 800)
    resize = config.test_dataloader.dataset.pipeline[1]
    assert (resize.scale, resize.keep_ratio) == (test_scale, is_3x or not is_regionvit)
    if 'cascade' in name:
        assert all(head.reg_class_agnostic for head in config.model.roi_head.bbox_head)
        assert config.model.train_cfg.rpn_proposal.max_per_img == 2000
    if 'cascade_maskrcnn_mpvit' in name:
        heads = [config.model.rpn_head, *config.model.roi_head.bbox_head]
        assert [head.loss_bbox for head in heads] == [dict(type='L1Loss', loss_weight=1.0)] * 4
        assert config.model.roi_head.stage_loss_weights == [1, 1, 1]


def test_deformable_detr_trains_as_published():
    config = read('deformable_detr_mpvit_s')
    model, wrapper = config.model, config.optim_wrapper
    assert (model.num_queries, model.with_box_refine, model.as_two_stage) == (300, False, False)
    assert (model.num_feature_levels, model.encoder.num_layers, model.decoder.num_layers) == (4, 6, 6)
    assert model.encoder.layer_cfg.ffn_cfg.feedforward_channels == 1024
    assert (wrapper.optimizer.type, wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == ('AdamW', 2e-4, 1e-4)
    rates = {key: value.lr_mult for key, value in wrapper.paramwise_cfg.custom_keys.items()}
    assert rates == dict(backbone=0.1, sampling_offsets=0.1, reference_points=0.1)
    assert wrapper.clip_grad.max_norm == 0.1
    assert (config.train_cfg.max_epochs, config.param_scheduler[0].milestones) == (50, [40])
    assert config.train_dataloader.batch_size == 2
    assert not config.train_dataloader.dataset.filter_cfg.filter_empty_gt
    assert config.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


@pytest.mark.parametrize('name', [name for name in SEGMENTERS if name.startswith('upernet')])
def test_segmenters_train_as_published(name):
    config = read(name)
    assert (config.train_cfg.type, config.train_cfg.max_iters) == ('IterBasedTrainLoop', 160000)
    warm_up, decay = config.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end, warm_up.by_epoch) == ('LinearLR', 1e-6, 1500, False)
    assert (decay.type, decay.power, decay.eta_min, decay.begin, decay.end) == ('PolyLR', 1.0, 0.0, 1500, 160000)
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert optimizer.betas == (0.9, 0.999)
    assert 'paramwise_cfg' not in config.optim_wrapper
    assert config.train_dataloader.batch_size == 2
    head, auxiliary = config.model.decode_head, config.model.auxiliary_head
    assert (head.type, head.channels, head.num_classes) == ('UPerHead', 512, 150)
    assert (auxiliary.type, auxiliary.in_index, auxiliary.num_classes) == ('FCNHead', 2, 150)
    assert auxiliary.loss_decode.loss_weight == 0.4


@pytest.mark.parametrize('name', [name for name in SEGMENTERS if name.startswith('fpn')])
def test_semantic_fpn_trains_as_published(name):
    config = read(name)
    assert (config.train_cfg.type, config.train_cfg.max_iters) == ('IterBasedTrainLoop', 80000)
    assert config.crop_size == (512, 512)
    head = config.model.decode_head
    assert (head.type, head.num_classes) == ('FPNHead', 150)


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_are_as_published(name):
    model = read(name).model
    is_tnt = 'pyramid_tnt' in name
    assert model.data_preprocessor.mean == ([127.5] * 3 if is_tnt else [123.675, 116.28, 103.53])
    assert model.data_preprocessor.std == ([127.5] * 3 if is_tnt else [58.395, 57.12, 57.375])
    assert model.data_preprocessor.bgr_to_rgb
    assert model.backbone.get('norm_cfg') == (None if 'regionvit' in name else dict(type='SyncBN'))
    for part, rate in DROP_PATH_RATES.items():
        if part in name:
            assert model.backbone.get('drop_path_rate', 0.0) == OTHER_DROP_PATH_RATES.get(name, rate)


@pytest.mark.parametrize(
    ('name', 'short_sides', 'long_side'),
    [
        ('retinanet_mpvit_s', [800], 1333),
        ('maskrcnn_pyramid_tnt_s_3x', range(480, 801), 1333),
        ('retinanet_mpvit_s_3x', range(480, 801), 1333),
        ('deformable_detr_mpvit_s', range(480, 801), 1333),
        ('maskrcnn_regionvit_s', [672], 1120),
        ('retinanet_regionvit_s_3x', range(300, 897), 1120),
        ('maskrcnn_regionvit_b_w14_peg_896', [896], 1344),
        ('maskrcnn_regionvit_b_w14_peg_896_3x', range(300, 897), 1344),
    ],
)
def test_training_image_sizes(name, short_sides, long_side):
    resize = Compose(read(name).train_dataloader.dataset.pipeline[2:-1])
    np.random.seed(0)
    found = set()
    for _ in range(20):
        mask = np.zeros((1, 480, 640), np.uint8)
        mask[:, 100:300, 200:500] = 1
        image = resize(
            dict(
                img=np.zeros((480, 640, 3), np.uint8),
                img_shape=(480, 640),
                gt_bboxes=HorizontalBoxes([[200.0, 100.0, 500.0, 300.0]]),
                gt_bboxes_labels=np.zeros(1, int),
                gt_ignore_flags=np.zeros(1, bool),
                gt_masks=BitmapMasks(mask, 480, 640),
            )
        )
        found.add(image['img'].shape[:2])
        assert image['gt_masks'].masks.shape[1:] == image['img'].shape[:2]
    assert all(min(size) in short_sides and max(size) <= long_side for size in found)
    assert len(found) == 1 if len(short_sides) == 1 else len(found) > 8


@pytest.mark.parametrize(
    ('name', 'long'),
    [('maskrcnn_mpvit_s_3x', 1333), ('maskrcnn_regionvit_s_3x', 1120), ('retinanet_regionvit_s_3x', 1120)],
)
def test_a_crop_comes_from_a_resize_without_a_cap(name, long):
    """A wide image: its first resize is to a short side of 400, 500 or 600, however long the other becomes."""
    shrink, crop, *others, resize = read(name).train_pipeline[2].transforms[1]
    found = {apply(shrink, 100, 600)['img'].shape[:2] for _ in range(20)}
    assert found == {(400, 2400), (500, 3000), (600, 3600)}
    assert {scale[1] for scale in resize.scales} == {long}
    assert {scale[0] for scale in resize.scales} == set(range(480, 897 if 'regionvit' in name else 801, 32))
    assert crop.crop_size == (384, 600)
    assert bool(others) is ('regionvit' in name)


def test_boxes_come_from_cropped_masks():
    """Of a triangle whose box fills the image, a crop has only what is above the diagonal."""
    np.random.seed(0)
    _, crop, drop_empty, _ = read('maskrcnn_regionvit_s_3x').train_pipeline[2].transforms[1]
    seen = set()
    for _ in range(30):
        image = inputs(900, 900)
        image['gt_masks'].masks[0] = np.triu(np.ones((900, 900)), 300)  # x - y of 300 and more
        image['gt_bboxes'] = HorizontalBoxes([[300.0, 0.0, 900.0, 600.0]])
        found = Compose([crop, drop_empty])(image)
        masks = found['gt_masks'].masks
        assert len(found['gt_bboxes']) == len(masks) == int(masks.any())
        seen.add(len(masks))
        if len(masks):
            rows, columns = np.nonzero(masks[0])
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert found['gt_bboxes'].numpy().tolist() == [expected]
    assert seen == {0, 1}


def inputs(height, width):
    return dict(
        img=np.zeros((height, width, 3), np.uint8),
        img_shape=(height, width),
        gt_bboxes=HorizontalBoxes([[0.0, 0.0, 50.0, 50.0]]),
        gt_bboxes_labels=np.zeros(1, int),
        gt_ignore_flags=np.zeros(1, bool),
        gt_masks=BitmapMasks(np.zeros((1, height, width), np.uint8), height, width),
    )


def apply(step, height, width):
    return Compose([step])(inputs(height, width))


@pytest.mark.gpu
@pytest.mark.parametrize('size', [(64, 96), (97, 65)])
def test_training_step_and_prediction(family, size, device):
    """The digits detector on one image, at a second size that no stride divides."""
    torch.manual_seed(0)
    detector = MODELS.build(Config.fromfile(family.digits_config).model).to(device)
    data = dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8)], data_samples=[sample(size)])
    losses = detector.train().forward(**detector.data_preprocessor(data, True), mode='loss')
    total, parts = detector.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} <= parts.keys()
    assert all(p.grad is not None for p in detector.backbone.parameters())
    with torch.no_grad():
        (prediction,) = detector.eval().test_step(data)
    assert prediction.pred_instances.masks.shape[1:] == size


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NETWORKS if name not in LARGE + HEADS + SMALL_ONES])
def test_every_network_takes_a_step_and_predicts(name, device):
    """An optimizer step on an image with a box and one without, which leaves no parameter unused, and a prediction."""
    torch.manual_seed(0)
    config = deepcopy(read(name))
    size = (64, 96)
    if 'size' in config.model.data_preprocessor:
        config.model.data_preprocessor.size = size
    model = MODELS.build(config.model).train()
    model.init_weights()  # as the runner does
    model.to(device)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    samples = [segmented(size)] * 2 if name in SEGMENTERS else [sample(size), sample(size, boxes=0)]
    data = dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples], data_samples=samples)
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    wrapper.backward(loss)
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    wrapper.step()
    with torch.no_grad():
        predictions = model.eval().test_step(data)
    for prediction in predictions:
        if name in SEGMENTERS:
            assert prediction.pred_sem_seg.data.shape == (1, *size)
        else:
            assert prediction.pred_instances.bboxes.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize('name', LARGE)
def test_large_networks_have_the_right_shapes(name):
    with torch.device('meta'):
        model = MODELS.build(deepcopy(read(name).model)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        maps = model.to_empty(device='cpu').extract_feat(torch.zeros(1, 3, 256, 384))
        if name in SEGMENTERS:
            assert model.decode_head(maps).shape == (1, 150, 64, 96)
            if not model.with_auxiliary_head:
                return
            assert model.auxiliary_head(maps).shape == (1, 150, 16, 24)
            return
        scores, boxes = (model.bbox_head if name.startswith('retinanet') else model.rpn_head)(maps)
    first = model.backbone.out_strides[0]
    sizes = [(256 // (first << i), 384 // (first << i)) for i in range(5)]
    assert [tuple(out.shape[2:]) for out in scores] == sizes
    assert [tuple(out.shape[2:]) for out in boxes] == sizes
