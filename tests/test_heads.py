"""Detectors with other heads, cut down: each config takes a step, predicts, is evaluated and resumed.

The segmenters' are in test_heads_seg.py.
"""

import json
import math
import sys
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import MMDET, program, run, run_here, scalars
from families import with_quick_arch
from mmcv import imwrite
from mmdet.datasets import CocoPanopticDataset
from mmdet.evaluation import INSTANCE_OFFSET
from mmdet.registry import METRICS, MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from versions import needs_torch
from write_tables import models

from mmvit.flops import count_work
from mmvit.training.setup import find_faults

METHODS = ('deformable_detr', 'dino', 'atss', 'mask2former', 'panoptic_fpn')
INDEX = models()
IN_INDEX = [name for name in INDEX if name.startswith(METHODS) and 'ade20k' not in name]
# The 3x ones have the same networks.
CONFIGS = [name for name in IN_INDEX if not name.endswith('_3x')]
DIGITS = ['dino_mpvit_t_digits', 'mask2former_mpvit_t_digits']
COUNTED = [
    'deformable_detr_mpvit_s',
    'dino_pyramid_tnt_s',
    'atss_regionvit_s',
    'mask2former_mpvit_s_panoptic',
    'panoptic_fpn_pyramid_tnt_s',
]
MPVIT = [name for name in CONFIGS if 'mpvit' in name]
SIZE = (64, 96)
# What whatever has these names becomes, in the model and in the data.
SMALL_MODEL = dict(
    num_layers=2, num_queries=20, num_dn_queries=10, feedforward_channels=64, nms_pre=100, size=SIZE, init_cfg=None
)
SMALL_DATA = dict(scale=SIZE[::-1], scales=[(48, 96), (64, 96)], crop_size=(40, 60), min_size=1)

needs_panopticapi = pytest.mark.skipif(find_spec('panopticapi') is None, reason='panopticapi is not installed')


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


@cache
def read(name):
    return Config.fromfile(f'configs/{name}.py')


def small(name):
    """The config with a quick arch of its backbone, few layers and queries, and small images."""
    config = deepcopy(read(name))
    config.model = shrunk(config.model, SMALL_MODEL)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[part] = shrunk(config[part], SMALL_DATA)
    fed(config.model).in_channels = with_quick_arch(config.model.backbone)
    return config


def shrunk(config, sizes):
    if isinstance(config, list | tuple):
        return type(config)(shrunk(item, sizes) for item in config)
    if not isinstance(config, dict):
        return config
    return type(config)({key: sizes[key] if key in sizes else shrunk(value, sizes) for key, value in config.items()})


def fed(model):
    """The part of a model that takes the backbone's maps."""
    return model.neck if 'neck' in model else model.panoptic_head


def images(name, shapes, objects):
    """Annotated random images; with stuff for a panoptic config."""
    panoptic = 'panoptic' in name
    return demo_mm_inputs(
        len(shapes), shapes, num_items=objects, num_classes=80, with_mask=True, with_semantic=panoptic
    )


@pytest.mark.parametrize('name', CONFIGS + DIGITS)
def test_maps_fit(name):
    """Strides of 8 and more for boxes, of 4 to 32 for masks; a config that does not fit is refused."""
    model = read(name).model
    with torch.device('meta'):
        backbone = MODELS.build(deepcopy(model.backbone))
    from_4 = name.startswith(('mask2former', 'panoptic_fpn'))
    maps = 4 if from_4 or 'pyramid_tnt' in name else 3
    assert backbone.out_strides == tuple((4 if from_4 else 8) << i for i in range(maps))
    assert list(find_faults(model, backbone.out_channels)) == []
    (fault,) = find_faults(model, backbone.out_channels[1:])
    assert 'in_channels' in fault


@pytest.mark.gpu
@pytest.mark.parametrize('name', CONFIGS)
def test_step_and_prediction(name, device):
    """At two sizes, with objects in both images and in none: no parameter is left unused."""
    torch.manual_seed(0)
    config = small(name)
    model = MODELS.build(config.model).train()
    model.init_weights()
    model.to(device)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    for shapes, objects in (([(3, 96, 128), (3, 80, 96)], [2, 1]), ([(3, 97, 65)] * 2, [0, 0])):
        data = model.data_preprocessor(images(name, shapes, objects), training=True)
        loss, parts = model.parse_losses(model(**data, mode='loss'))
        assert all(part.isfinite() for part in parts.values())
        wrapper.backward(loss)
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
        wrapper.step()
        wrapper.zero_grad()
        with torch.no_grad():
            (prediction, _) = model.eval().test_step(images(name, shapes, objects))
        model.train()
        size = prediction.ori_shape[:2]
        if 'panoptic' in name:
            assert prediction.pred_panoptic_seg.sem_seg.shape[-2:] == size
        elif 'mask2former' in name:
            assert prediction.pred_instances.masks.shape[1:] == size
        else:
            assert prediction.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize('name', CONFIGS)
def test_rates_and_decay(name):
    """As the recipes' comments say: of which parameters the rate is a tenth, and which do not decay."""
    config = small(name)
    model = MODELS.build(config.model)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    found = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    norms = {id(p) for module in model.modules() if 'Norm' in type(module).__name__ for p in module.parameters(False)}
    rate, decay = config.optim_wrapper.optimizer.lr, config.optim_wrapper.optimizer.weight_decay
    slow = name.startswith(('deformable_detr', 'dino', 'mask2former'))
    spared = name.startswith(('atss', 'mask2former', 'panoptic_fpn'))
    seen = set()
    for key, p in model.backbone.named_parameters():
        is_spared = id(p) in norms or 'norm' in key or 'pos' in key
        assert found[id(p)] == pytest.approx((rate * (0.1 if slow else 1), 0 if spared and is_spared else decay)), key
        seen.add(is_spared)
    assert seen == {True, False}
    if name.startswith('mask2former'):
        for key, p in model.panoptic_head.named_parameters():
            embeds = any(part in key for part in ('query_embed', 'query_feat', 'level_embed'))
            assert found[id(p)] == pytest.approx((rate, 0 if id(p) in norms or embeds else decay)), key


@pytest.mark.parametrize('name', IN_INDEX)
def test_schedules(name):
    config = read(name)
    if name.startswith('mask2former'):
        assert (config.train_cfg.max_iters, config.param_scheduler.milestones) == (368750, [327778, 355092])
        assert config.optim_wrapper.optimizer.lr == 1e-4
        return
    epochs, milestones, rate = {
        'deformable_detr': (50, [40], 2e-4),
        'dino': (36, [27, 33], 1e-4) if name.endswith('_3x') else (12, [11], 1e-4),
        'atss': (12, [8, 11], 5e-5),
        'panoptic_fpn': (12, [8, 11], 1e-4),
    }[next(method for method in METHODS if name.startswith(method))]
    assert (config.train_cfg.max_epochs, config.param_scheduler[-1].end) == (epochs, epochs)
    assert config.param_scheduler[-1].milestones == milestones
    assert (config.optim_wrapper.optimizer.type, config.optim_wrapper.optimizer.lr) == ('AdamW', rate)


class WithoutProducts(TorchDispatchMode):
    """Makes zeros of matrix products, convolutions and samples: their shapes are right, and they take no time."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket not in (*flop_counter.flop_registry, torch.ops.aten.grid_sampler_2d):
            return func(*args, **kwargs or {})
        shapes, options = tree_map_only(Tensor, lambda tensor: tensor.to('meta'), (args, kwargs or {}))
        return tree_map_only(Tensor, lambda out: torch.zeros(out.shape, dtype=out.dtype), func(*shapes, **options))


@pytest.mark.slow
@needs_torch('2.5', "counting without computing, by PyTorch's formulas,")
@pytest.mark.parametrize('name', COUNTED)
def test_multiply_adds(name):
    """For an image of 800x1280, as the tables have them: each head, and each backbone. All would take two minutes."""
    model = MODELS.build(deepcopy(read(name).model)).eval().requires_grad_(False)
    (sample,) = images(name, [(3, 800, 1280)], [1])['data_samples']
    sample.set_metainfo(dict(batch_input_shape=(800, 1280)))
    with torch.no_grad(), WithoutProducts():
        found = count_work(run_network, model, torch.zeros(1, 3, 800, 1280), [sample]).multiply_adds / 1e9
    assert found == pytest.approx(INDEX[name]['Metadata']['Measured FLOPs (G)'], abs=0.05)


def run_network(model, image, samples):
    """All that computes, with 1000 proposals and 100 masks where there are regions."""
    if not hasattr(model, 'roi_head'):
        return model(image, samples, mode='tensor')
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    model.roi_head.bbox_head(torch.zeros(1000, 256, 7, 7))
    model.roi_head.mask_head(torch.zeros(100, 256, 14, 14))
    return model.semantic_head(maps)


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Small images with rectangles on the sky, as COCO lays them out: boxes, masks and panoptic maps."""
    root = tmp_path_factory.mktemp('coco')
    names = CocoPanopticDataset.METAINFO
    categories = [
        dict(id=number, name=name, isthing=int(name in names['thing_classes']))
        for number, name in enumerate(names['classes'], 1)
    ]
    things = [category for category in categories if category['isthing']]
    sky = names['classes'].index('sky-other-merged') + 1
    for split, count in (('train', 4), ('val', 2)):
        pictures, instances, panoptic = [], [], []
        for number in range(1, count + 1):
            picture = dict(id=number, file_name=f'{number:012d}.jpg', height=SIZE[0], width=SIZE[1])
            pictures.append(picture)
            image, segments = np.full((*SIZE, 3), 200, np.uint8), np.full(SIZE, 1000, np.uint32)
            boxes = {1000: (sky, [0, 0, SIZE[1], SIZE[0]])}
            for category in (1, 3):
                left, top = 10 * number, 15 * category - 10
                image[top : top + 24, left : left + 30] = 40 * category
                segments[top : top + 24, left : left + 30] = category * 300  # in two bytes of the map's colours
                boxes[category * 300] = (category, [left, top, 30, 24])
            segments_info = [
                dict(id=i, category_id=category, iscrowd=0, bbox=box, area=int((segments == i).sum()))
                for i, (category, box) in boxes.items()
            ]
            for info in segments_info[1:]:
                shape = coco_mask.encode(np.asfortranarray(segments == info['id'], np.uint8))
                shape['counts'] = shape['counts'].decode()
                instances.append(dict(info, id=len(instances) + 1, image_id=number, segmentation=shape))
            imwrite(image, str(root / f'{split}2017' / picture['file_name']))
            colours = np.stack([segments // 65536, segments // 256 % 256, segments % 256], -1).astype(np.uint8)  # BGR
            map_name = picture['file_name'].replace('.jpg', '.png')
            imwrite(colours, str(root / 'annotations' / f'panoptic_{split}2017' / map_name))
            panoptic.append(dict(image_id=number, file_name=map_name, segments_info=segments_info))
        for kind, annotations, classes in (('instances', instances, things), ('panoptic', panoptic, categories)):
            content = dict(images=pictures, annotations=annotations, categories=classes)
            (root / 'annotations' / f'{kind}_{split}2017.json').write_text(json.dumps(content))
    return root


@needs_panopticapi
def test_panoptic_quality_is_that_of_the_predictions(coco):
    """All of a perfect prediction, less of one without a thing; the maps' colours are of NumPy's 8 bits."""
    found = [quality(coco, missing) for missing in (None, 2)]
    assert found == pytest.approx([100.0, 100 * 2 / 3])


def quality(coco, missing):
    """mmdet's figure for the maps as they are, if the things of one label are left out."""
    config = small('panoptic_fpn_mpvit_s')
    labels = {1: 0, 3: 2}
    classes = CocoPanopticDataset.METAINFO['classes']
    metric = METRICS.build(at(config.val_evaluator, coco))
    metric.dataset_meta = CocoPanopticDataset.METAINFO
    for number in (1, 2):
        found = np.full((1, *SIZE), classes.index('sky-other-merged'))
        for info in metric._coco_api.imgToAnns[number][1:]:
            left, top, width, height = info['bbox']
            label = labels[info['category_id']]
            found[:, top : top + height, left : left + width] = (
                len(classes) if label == missing else number * INSTANCE_OFFSET + label
            )
        segmented = dict(sem_seg=torch.from_numpy(found))
        path = f'{number:012d}.jpg'
        metric.process({}, [dict(img_id=number, img_path=path, ori_shape=SIZE, pred_panoptic_seg=segmented)])
    return metric.evaluate(size=2)['coco_panoptic/PQ']


def at(config, coco):
    """A part of a config with COCO in another place."""
    if isinstance(config, str):
        return config.replace('data/coco/', f'{coco}/')
    if isinstance(config, list | tuple):
        return type(config)(at(item, coco) for item in config)
    return type(config)({key: at(value, coco) for key, value in config.items()}) if isinstance(config, dict) else config


def write_training(name, coco, folder, epochs):
    """A file of the small config, which trains for some epochs of two iterations and is validated after each."""
    config = small(name)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        config[part] = at(config[part], coco)
        if 'dataset' in config[part]:
            config[part].update(num_workers=0, persistent_workers=False)
    if config.train_cfg.type == 'IterBasedTrainLoop':
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2 * epochs, val_interval=2)
        config.default_hooks.checkpoint.interval = 2
    else:
        config.train_cfg.max_epochs = epochs
    config.default_hooks.logger.interval = 1
    if name.startswith('atss'):
        config.model.test_cfg.score_thr = 0.0  # a few steps in, nothing scores well
    path = folder / f'{epochs}.py'
    config.visualizer.name = config.experiment_name = str(path)  # mmengine keeps one of each name in a process
    config.dump(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize('name', MPVIT)
def test_trains_resumes_and_is_evaluated(name, coco, tmp_path, monkeypatch):
    """As ``mim train`` does it, and once with it; what the second training resumes was saved by the first."""
    if 'panoptic' in name:
        pytest.importorskip('panopticapi')
    work_dir = tmp_path / 'run'
    for epochs, options in ((1, []), (2, ['--resume'])):
        path = write_training(name, coco, tmp_path, epochs)
        if name == 'atss_mpvit_s' and epochs == 1:
            run('mim', 'train', MMDET, path, '--work-dir', work_dir, *options)
        else:
            run_here(monkeypatch, program('mmdet', 'train.py'), path, '--work-dir', work_dir, *options)
    losses = scalars(work_dir, 'loss')
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    metric = 'coco_panoptic/PQ' if 'panoptic' in name else 'coco/segm_mAP' if 'mask2former' in name else 'coco/bbox_mAP'
    assert len(scalars(work_dir, metric)) == 2
    if name == 'dino_mpvit_s':
        sheet = tmp_path / 'sheet.png'
        checkpoint = (work_dir / 'last_checkpoint').read_text()
        run_here(monkeypatch, Path('tools/predict.py'), path, checkpoint, '--sheet', sheet, '--score', 0)
        assert sheet.stat().st_size > 10_000


def test_a_module_that_is_missing(tmp_path, coco, monkeypatch, capsys):
    """The sentence comes before mmdet's error, which tells to install from a repository."""
    monkeypatch.setitem(sys.modules, 'panopticapi', None)
    mine = write_training('panoptic_fpn_mpvit_s', coco, tmp_path, 1)
    with pytest.raises(SystemExit):
        run_here(monkeypatch, program('mmdet', 'train.py'), mine, '--work-dir', tmp_path)
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert said == 'panopticapi is missing: run `pip install --no-deps panopticapi-lite`.'
