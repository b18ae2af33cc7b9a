"""The configs: every one builds, fits its backbone, and is the size that the papers print."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmvit.models import MPViT

CONFIGS = sorted(Path('configs').glob('*.py'))
PUBLISHED_PARAMETERS = {  # millions
    'maskrcnn_mpvit_t': 25.7,  # of the released T (mlp_ratio 2); the paper prints another T's 28
    'maskrcnn_mpvit_xs': 30,
    'maskrcnn_mpvit_s': 43,
    'maskrcnn_mpvit_b': 95,
    'maskrcnn_regionvit_s': 50.1,
}


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_neck_fits_backbone(path):
    config = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(config.model)
    assert tuple(config.model.neck.in_channels) == model.backbone.out_channels
    assert config.auto_scale_lr.base_batch_size > 0


@pytest.mark.parametrize('name', PUBLISHED_PARAMETERS)
def test_parameters_as_published(name):
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(f'configs/{name}.py').model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    expected = PUBLISHED_PARAMETERS[name]
    assert abs(millions - expected) <= max(0.5, 0.012 * expected)


@pytest.mark.parametrize(
    ('arch', 'expected'),
    [('tiny', 1.65), ('xsmall', 2.97), ('small', 4.80), pytest.param('base', 16.4, marks=pytest.mark.slow)],
)
def test_classification_flops_as_published(arch, expected):
    # Billions of multiply-adds at 224x224, without the classifier's 0.0003.
    flops = FlopAnalyzer(MPViT(arch).eval(), torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False).total()
    assert abs(flops / 1e9 - expected) <= 0.01 * expected


@pytest.mark.slow
def test_detector_flops_as_published():
    """268 G (published) at 800x1280 with 1000 proposals to the box head and 100 to the mask head."""

    class Detector(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images, boxes):
            features = self.model.extract_feat(images)
            head = self.model.roi_head
            return (
                self.model.rpn_head(features),
                head._bbox_forward(features, boxes)['cls_score'],
                head._mask_forward(features, boxes[:100])['mask_preds'],
            )

    model = MODELS.build(Config.fromfile('configs/maskrcnn_mpvit_s.py').model).eval()
    corners = torch.rand(1000, 2) * torch.tensor([900.0, 500.0])
    boxes = torch.cat([torch.zeros(1000, 1), corners, corners + 20 + torch.rand(1000, 2) * 250], dim=1)
    flops = FlopAnalyzer(Detector(model), (torch.zeros(1, 3, 800, 1280), boxes)).unsupported_ops_warnings(False)
    assert abs(flops.total() / 1e9 - 268) <= 0.02 * 268


def test_recipe_of_the_paper():
    config = Config.fromfile('configs/maskrcnn_mpvit_s.py')
    assert (config.train_cfg.type, config.train_cfg.max_epochs) == ('EpochBasedTrainLoop', 12)
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert config.optim_wrapper.clip_grad.max_norm == 1.0
    assert 'paramwise_cfg' not in config.optim_wrapper  # every parameter decays
    warm_up, steps = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.01, 1000, False)
    assert steps.milestones == [8, 11]
    assert config.train_dataloader.dataset.type == 'CocoDataset'
    assert config.train_dataloader.dataset.filter_cfg.filter_empty_gt is False
    assert config.train_dataloader.batch_size == 2
    assert config.model.backbone.norm_cfg.type == 'SyncBN'
    assert config.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize('size', [(64, 96), (97, 65)])
def test_training_step_and_prediction(family, size):
    """The digits detector on one image, at a second size that no stride divides."""
    torch.manual_seed(0)
    detector = MODELS.build(Config.fromfile(family.digits_config).model)
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


def sample(size):
    mask = np.zeros((1, *size), np.uint8)
    mask[:, 10:40, 20:50] = 1
    instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10.0, 50.0, 40.0]]),
        labels=torch.tensor([3]),
        masks=BitmapMasks(mask, *size),
    )
    data_sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=size)
    )
    data_sample.gt_instances = instances
    data_sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    return data_sample
