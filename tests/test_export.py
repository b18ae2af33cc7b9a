"""Export to ONNX: through the command and the function, each kind of model, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from commands import run_here
from families import with_quick_arch
from hostile import Asks
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from versions import needs_torch

from mmvit.checkpoints.trained import load_trained
from mmvit.cpu.pyramid_tnt import WholeTable
from mmvit.deploy import backbones, exporter, graphs, preprocessing
from mmvit.models import PyramidTNT, pyramid_tnt

onnx = pytest.importorskip('onnx', reason="needs the extra 'deploy'")
onnxruntime = pytest.importorskip('onnxruntime', reason="needs the extra 'deploy'")

from mmvit.deploy import choices, evaluation, proof, queries, smaller  # noqa: E402
from mmvit.deploy.runtime import ENGINES, Model, Result, coco_annotations  # noqa: E402

pytestmark = needs_torch(exporter.OLDEST_TORCH, 'export')
SMALL_SIZES = ((75, 131), (33, 47))
LARGE_SIZES = ((333, 501), (640, 150))
KINDS = [  # one of each kind of head, and each family
    'maskrcnn_mpvit_t_digits',
    'maskrcnn_pyramid_tnt_t_digits',
    'maskrcnn_regionvit_t_digits',
    'retinanet_mpvit_t',
    'retinanet_regionvit_s_d2',
    'atss_regionvit_s',
    'cascade_maskrcnn_pyramid_tnt_s',
    'cascade_maskrcnn_mpvit_s_d2',
    'upernet_mpvit_t_digits',
    'upernet_regionvit_s',
    'upernet_pyramid_tnt_s',
    'deformable_detr_regionvit_s',
    'dino_mpvit_t_digits',
    'mask2former_mpvit_t_digits',
    'mask2former_pyramid_tnt_s_panoptic',
    'mask2former_mpvit_t_digits_semantic',
]
QUERIES = re.compile('deformable_detr|dino|mask2former')


# Layers whose outputs get this deviation: then hardly two boxes or scores are equal.
SPREAD = {'rpn_cls': 2, 'retina_cls': 1, 'fc_cls': 2, 'rpn_reg': 0.3, 'retina_reg': 0.3, 'fc_reg': 0.3}
SPREAD |= {'atss_cls': 1, 'atss_reg': 0.3, 'atss_centerness': 1, 'mask_feature': 1}


def with_small_backbone(config):
    """Puts the backbone's quick arch into a config's model: what the test is about are the parts after it."""
    channels = with_quick_arch(config.model.backbone)
    for part in ('neck', 'panoptic_head', 'decode_head', 'auxiliary_head'):
        if part in config.model:
            head = config.model[part]
            head.in_channels = channels[head.in_index] if part == 'auxiliary_head' else channels


def build(config_name, small=False, **options):
    """A config's model with random weights whose outputs are spread as those of a trained one."""
    config = Config.fromfile(f'configs/{config_name}.py')
    config.merge_from_dict(options)
    if small:
        with_small_backbone(config)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
    model.cfg = config
    if QUERIES.match(config_name):
        model.init_weights()
        for parameter in model.parameters():  # as mmdet initialises them, all queries find the same
            parameter.data += 0.02 * torch.randn_like(parameter)
    for name, layer in model.named_modules():
        if deviation := SPREAD.get(name.rpartition('.')[2]):
            outputs = []
            hook = layer.register_forward_hook(lambda layer, inputs, output, outputs=outputs: outputs.append(output))
            proof.computed(model, proof.made_image(192, 256))
            hook.remove()
            factor = deviation / outputs[0].std()
            layer.weight.data *= factor
            middle = outputs[0].mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else outputs[0].mean()
            layer.bias.data.sub_(middle).mul_(factor)
    return model


def export(model, path, **kwargs):
    lines = []
    exporter.export(model, path, log=lines.append, **kwargs)
    return lines


@pytest.fixture
def small_sizes(monkeypatch):
    monkeypatch.setattr(proof, 'SIZES', SMALL_SIZES)


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory):
    """A Mask R-CNN's file."""
    path = tmp_path_factory.mktemp('export') / 'model.onnx'
    model = build('maskrcnn_mpvit_t_digits')
    graph = graphs.graph_of(model)
    exporter.write(graph, path, exporter.describe(model, graph, model.cfg, None, None))
    return path


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_each_kind_of_model_gives_the_same_from_its_file(name, tmp_path):
    compare_with_file(build(name, small='digits' not in name), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'kind'), [('maskrcnn_mpvit_t_digits', 'FasterRCNN'), ('cascade_maskrcnn_pyramid_tnt_s', 'CascadeRCNN')]
)
def test_detectors_without_masks(name, kind, tmp_path):
    no_masks = {'model.roi_head.mask_head': None, 'model.roi_head.mask_roi_extractor': None}
    compare_with_file(build(name, small='digits' not in name, **{'model.type': kind, **no_masks}), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('as_two_stage', [False, True])
def test_boxes_that_are_refined(as_two_stage, tmp_path):
    name, options = 'deformable_detr_mpvit_s', dict(with_box_refine=True, as_two_stage=as_two_stage)
    compare_with_file(build(name, small=True, **{f'model.{key}': on for key, on in options.items()}), name, tmp_path)


def compare_with_file(model, name, tmp_path):
    graph = graphs.graph_of(model, with_logits=hasattr(model, 'decode_head'))
    exporter.write(graph, tmp_path / 'model.onnx', exporter.describe(model, graph, model.cfg, None, None))
    nodes = onnx.load(tmp_path / 'model.onnx').graph.node
    assert not {node.op_type for node in nodes} & {'If', 'Loop', 'Scan'}
    assert {node.domain for node in nodes} <= {'', 'ai.onnx'}
    file, enlarged = choices.FileWithChoices(tmp_path / 'model.onnx', model), proof.enlarging(model)
    for size in map(enlarged, proof.SIZES if 'digits' in name else (*SMALL_SIZES, *LARGE_SIZES)):
        difference, _ = proof.difference_for(proof.made_image(*size), file, model)
        # Of random weights' many boxes, some overlap by what NMS allows; rounding then decides which it keeps.
        assert difference.alone <= 0.05 * difference.found
        assert replace(difference, alone=0, tied=0).is_small(), (size, difference)


def test_mask_rcnn_finds_boxes_and_masks(mask_rcnn):
    session = onnxruntime.InferenceSession(mask_rcnn)
    assert [output.name for output in session.get_outputs()] == ['boxes', 'scores', 'labels', 'masks']
    image = proof.made_image(160, 200)
    boxes, scores, labels, masks = session.run(None, {'image': proof.batch_of(image).numpy()})
    assert boxes.shape == (len(scores), 4)
    assert labels.dtype == np.int64
    assert masks.shape == (len(scores), 28, 28)
    assert len(scores) > 0


def test_file_says_how_to_use_it(mask_rcnn):
    metadata = Model(mask_rcnn).metadata
    assert metadata['task'] == 'instance'
    assert metadata['classes'] == list('0123456789')
    assert metadata['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert metadata['resize']['scale'] == [128, 128]
    assert metadata['thresholds'] == {'score': 0.05, 'nms': 0.5, 'max_per_image': 50}
    assert 'mmvit.MPViT' in metadata['config']


def test_small_images_are_padded_inside(small_sizes, tmp_path):
    export(build('upernet_mpvit_t_digits'), tmp_path / 'model.onnx', with_logits=True)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    classes, logits = session.run(None, {'image': proof.batch_of(proof.made_image(7, 40)).numpy()})
    assert classes.shape == (1, 7, 40)
    assert logits.shape == (1, 11, 7, 40)


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('deformable_detr_mpvit_s', (32, 40)),  # the backbone takes no smaller one
        ('dino_mpvit_t_digits', (64, 64)),  # 8x8 pixels for 50 queries
    ],
)
def test_boxes_as_shares_of_an_image_do_not_count_its_padding(name, size):
    graph = graphs.graph_of(build(name, small='digits' not in name))
    image = torch.rand(1, 3, 20, 40) * 255
    padded = graph.preprocessing.mean.expand(1, 3, *size).clone()
    padded[..., :20, :40] = image
    boxes, scores, labels = graph(image)
    expected, *others = graph(padded)
    torch.testing.assert_close(boxes, torch.minimum(expected, torch.tensor([40.0, 20, 40, 20])))
    torch.testing.assert_close([scores, labels], others)


def test_backbone_takes_batches(family, small_sizes, tmp_path):
    model = family.build().eval()
    export(model, tmp_path / 'model.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    x = torch.randn(3, 3, 70, 45)
    maps = session.run(None, {'image': x.numpy()})
    with torch.no_grad():
        for found, expected in zip(maps, model(x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_written_if_the_file_differs(small_sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs.Preprocessing, 'missing', lambda self, size: -size % 64)
    with pytest.raises(RuntimeError, match=r'at 75x131 the file differs from the model in PyTorch'):
        export(build('maskrcnn_regionvit_t_digits'), tmp_path / 'model.onnx')
    assert list(tmp_path.iterdir()) == []


def test_threshold_is_lowered_for_a_detector_that_finds_nothing(small_sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(proof.Difference, 'is_small', lambda self: True)  # random weights' boxes nearly tie
    lines = export(build('maskrcnn_mpvit_t_digits', **{'model.test_cfg.rcnn.score_thr': 0.9}), tmp_path / 'model.onnx')
    assert 'few boxes: the same again with a lower score threshold' in lines
    assert Model(tmp_path / 'model.onnx').metadata['thresholds']['score'] == 0.9


@pytest.mark.parametrize(('chosen', 'error'), [([2, 0], 0), ([2, 1], 0), ([0, 2], 1), ([2, 2], 1), ([2, 3], 1)])
def test_model_selects_what_its_file_selected(chosen, error):
    x = torch.tensor([[0.0, 1e-7, 1.0, -1.0]])
    with choices.Following([np.array([chosen])]) as following:
        values, indices = torch.topk(x, k=2, dim=1)
        own = torch.topk(x, k=2, dim=1)[1]  # its file chose once
    assert indices.tolist() == [chosen]
    assert values.tolist() == x[:, chosen].tolist()
    assert own.tolist() == [[2, 1]]
    assert following.error == pytest.approx(error / float(x.std()), abs=1e-6)


@pytest.mark.parametrize(('below', 'error'), [([True, True, False], 0), ([True, False, False], 0), ([True] * 3, 0.2)])
def test_model_compares_as_its_file_did(below, error):
    x = torch.tensor([0.2, 0.5 - 3e-8, 0.7])
    with choices.Following([np.array(below)]) as following:
        assert (x < 0.5).tolist() == below
        assert (x < 0.5).tolist() == [True, True, False]
    assert following.error == pytest.approx(error / float(x.std()), abs=1e-6)


FAR = [[100 * i, 0, 100 * i + 50, 50] for i in range(30)]


@pytest.mark.parametrize(
    ('changes', 'alone', 'tied', 'passes'),
    [
        ({}, 0, 0, True),
        ({3: ([300, 0, 350, 50.004], 0.9)}, 0, 0, True),
        ({3: ([300, 0, 350, 50.006], 0.9)}, 0, 1, True),  # elsewhere, with an equal score
        ({3: ([300, 0, 350, 50.006], 0.9), 4: ([0, 7, 3, 9], 0.9)}, 0, 2, False),  # too many of those
        ({3: ([300, 0, 350, 50.006], 0.90001)}, 2, 0, False),
        ({3: ([300, 0, 350, 50], 0.9001)}, 2, 0, False),
        ({3: None}, 1, 0, False),
    ],
)
def test_proof_pairs_boxes(changes, alone, tied, passes):
    def arrays(rows):
        boxes, scores = zip(*rows, strict=True)
        scores = np.array(scores, np.float32)
        return dict(boxes=np.array(boxes, np.float32), scores=scores, labels=np.zeros(len(boxes), int))

    rows = {i: (box, 0.9) for i, box in enumerate(FAR)}
    changed = [row for row in {**rows, **changes}.values() if row]
    difference = proof.compare(arrays(changed[::-1]), arrays(rows.values()), (50, 50))  # in another order
    assert (difference.alone, difference.tied) == (alone, tied)
    assert difference.is_small() == passes


def test_open_pooling_is_adaptive_pooling():
    for size in ((1, 1), (5, 7), (6, 6), (40, 3)):
        x = torch.randn(2, 3, *size)
        for pooled in (1, 2, 3, 6):
            torch.testing.assert_close(graphs.OpenPooling((pooled, pooled))(x), nn.AdaptiveAvgPool2d(pooled)(x))


def names_in_integers(model):
    """Names of the nodes that take an activation in integers."""
    integers = {node.output[0] for node in model.graph.node if node.op_type == 'DequantizeLinear'}
    return ' '.join(node.name for node in model.graph.node if node.input and node.input[0] in integers)


def test_integers_are_for_products_with_weights(small_sizes, tmp_path):
    images = [proof.made_image(*size) for size in SMALL_SIZES]
    nowhere = {'test_dataloader.dataset.data_root': str(tmp_path)}  # else there may be the data of the demonstration
    model = build('upernet_mpvit_t_digits', small=True, **nowhere)
    export(model, tmp_path / 'float.onnx')
    lines = export(model, tmp_path / 'int8.onnx', calibration=images)
    assert lines[-2].endswith('in common on 2 images')
    names = names_in_integers(onnx.load(tmp_path / 'int8.onnx'))
    assert '/patch_embeds.0/pwconv/' in names
    assert '/attn/qkv/' in names
    assert '/mlp/fc1/' in names
    assert 'conv_seg' not in names
    files = [Model(tmp_path / f'{name}.onnx') for name in ('float', 'int8')]
    assert files[0].metadata == files[1].metadata
    found = evaluation.agreement(*files, images)
    assert 0.9 < found < 1


def test_last_layers_stay_float_at_each_level(mask_rcnn):
    names = smaller.float_nodes(onnx.load(mask_rcnn))
    for layer, levels in {'rpn_cls': 5, 'rpn_reg': 5, 'fc_cls': 1, 'fc_reg': 1, 'conv_logits': 1}.items():
        assert sum(f'/{layer}' in name for name in names) == levels


def test_openvino_s_own_format(small_sizes, tmp_path):
    pytest.importorskip('openvino', reason="needs the extra 'openvino'")
    model = build('upernet_mpvit_t_digits', small=True)
    export(model, tmp_path / 'float.onnx')
    for _ in range(2):  # the second time in place of the first
        export(model, tmp_path / 'half.xml', half=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['float.onnx', 'half.bin', 'half.xml']
    assert (tmp_path / 'half.bin').stat().st_size < 0.6 * (tmp_path / 'float.onnx').stat().st_size
    one, other = Model(tmp_path / 'float.onnx'), Model(tmp_path / 'half.xml')
    assert one.metadata == other.metadata
    assert evaluation.agreement(one, other, [proof.made_image(50, 120)]) > 0.99


@pytest.mark.slow
def test_integers_for_openvino(small_sizes, tmp_path):
    pytest.importorskip('nncf', reason="needs the extra 'openvino'")
    images = [proof.made_image(*size) for size in SMALL_SIZES]
    nowhere = {'test_dataloader.dataset.data_root': str(tmp_path)}
    lines = export(build('upernet_mpvit_t_digits', small=True, **nowhere), tmp_path / 'a.xml', calibration=images)
    share = re.search(r'MB and .* MB: (.*)% in common on 2 images', lines[-2])[1]
    assert 90 < float(share) < 100
    names = ' '.join(layer.get('name') for layer in ElementTree.parse(tmp_path / 'a.xml').iter('layer'))
    names = ' '.join(re.findall(r'\S*/fq_weights_1', names))
    assert '/attn/qkv/' in names
    assert '/mlp/fc1/' in names
    assert 'conv_seg' not in names
    Model(tmp_path / 'a.xml')(proof.made_image(50, 120))  # a size that NNCF did not see


@pytest.mark.parametrize(
    ('name', 'missing', 'error', 'message'),
    [
        ('model.pt', '', ValueError, 'must end in .onnx or .xml, not model.pt'),
        ('folder.onnx', '', ValueError, 'folder.onnx is a folder: give another name'),
        ('a.bin/model.onnx', '', ValueError, 'cannot be written into .*a.bin: .*a.bin is a file'),
        ('a.xml', '', ValueError, 'a.bin is there without a.xml and would be overwritten: give another name'),
        ('model.onnx', 'onnx', ImportError, r"model.onnx needs onnx: pip install 'mmvit\[deploy\]'"),
        ('model.xml', 'nncf', ImportError, r"model.xml needs .*nncf: pip install 'mmvit\[openvino\]'"),
    ],
)
def test_what_cannot_be_written_is_refused_first(name, missing, error, message, monkeypatch, tmp_path):
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'a.bin').touch()
    monkeypatch.setattr(exporter, 'find_spec', lambda package: None if package == missing else find_spec(package))
    with pytest.raises(error, match=message):
        exporter.check_target(tmp_path / name, integers=True)


def test_what_nncf_cannot_do_is_said(mask_rcnn, monkeypatch):
    nncf = pytest.importorskip('nncf', reason="needs the extra 'openvino'")

    def fail(*args, **kwargs):
        raise nncf.InternalError('no way')

    monkeypatch.setattr(nncf, 'quantize', fail)
    with pytest.raises(RuntimeError, match='NNCF cannot make 8-bit integers of this model: no way'):
        smaller.to_openvino(mask_rcnn, [proof.made_image(33, 47)])


def test_half_takes_half_the_room(mask_rcnn):
    path = smaller.halve(mask_rcnn)
    assert 0.49 < path.stat().st_size / mask_rcnn.stat().st_size < 0.6
    before, after = Model(mask_rcnn), Model(path)
    image = proof.made_image(160, 200)
    assert evaluation.agreement(before, after, [image]) > 0.9
    assert not np.array_equal(before(image).scores, after(image).scores)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('maskrcnn_mpvit_t_digits', {'model.test_cfg.rcnn.nms.type': 'soft_nms'}, 'only nms='),
        ('upernet_mpvit_t_digits', {'model.test_cfg.mode': 'slide'}, "mode='slide'"),
        ('deformable_detr_mpvit_s', {'model.data_preprocessor.pad_size_divisor': 32}, 'set .*pad_size_divisor=1'),
        ('dino_mpvit_t_digits', {'model.data_preprocessor.pad_size_divisor': 32}, 'set .*pad_size_divisor=1'),
        ('maskrcnn_mpvit_t_digits', {'model.type': 'HybridTaskCascade'}, 'has no graph; these have one'),
    ],
)
def test_what_cannot_be_exported_is_refused(name, options, message, tmp_path):
    if 'model.type' in options:
        model = nn.Module()
        model.__class__ = type(options['model.type'], (nn.Module,), {})
    else:
        model = build(name, **options)
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / 'model.onnx')
    assert list(tmp_path.iterdir()) == []


def test_mask2former_without_instances_or_padding_is_refused():
    model = build('mask2former_mpvit_t_digits')
    model.data_preprocessor.pad_size_divisor = 2
    with pytest.raises(ValueError, match='set .*pad_size_divisor=32'):
        graphs.graph_of(model)
    model.data_preprocessor.pad_size_divisor = 32
    model.panoptic_fusion_head.test_cfg.instance_on = False
    with pytest.raises(ValueError, match='set .*instance_on=True'):
        graphs.graph_of(model)


def test_file_of_a_panoptic_model_may_find_no_thing(tmp_path):
    model = build('mask2former_pyramid_tnt_s_panoptic', small=True)
    head = model.panoptic_head
    head.cls_embed.bias.data[: head.num_things_classes] = -100
    graph = graphs.graph_of(model)
    exporter.write(graph, tmp_path / 'model.onnx', exporter.describe(model, graph, model.cfg, None, None))
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert session.get_outputs()[3].shape == ['found', 'mask_height', 'mask_width']
    boxes, scores, labels, masks = session.run(None, {'image': proof.batch_of(proof.made_image(64, 96)).numpy()})
    assert [len(boxes), len(scores), len(labels)] == [0, 0, 0]
    assert masks.shape == (0, 16, 24)


def test_panoptic_metrics_are_left_out():
    config = Config.fromfile('configs/mask2former_mpvit_s_panoptic.py')
    assert len(config.test_evaluator) == 2
    assert [metric['type'] for metric in evaluation.metrics_of(config)] == ['CocoMetric']
    config = Config.fromfile('configs/mask2former_mpvit_t_digits.py')
    assert [metric['type'] for metric in evaluation.metrics_of(config)] == ['CocoMetric']


class Bounds(nn.Module):
    """The bounds of what is bright in each channel, after a convolution that becomes integers."""

    outputs = ('boxes',)

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)
        self.layer.weight.data = torch.eye(3)[..., None, None]

    def forward(self, image):
        return (queries.bounds(self.layer(image)[0] > 128),)


def test_bounds_of_masks_stay_exact_in_integers(tmp_path):
    pytest.importorskip('nncf', reason="needs the extra 'openvino'")
    image = np.zeros((40, 300, 3), np.uint8)
    image[5:30, 17:280, 0] = image[:, 1:2, 1] = 255
    exporter.write(Bounds().eval(), tmp_path / 'model.onnx', {})
    path = smaller.to_openvino(tmp_path / 'model.onnx', [image])
    boxes = ENGINES['openvino'](str(path), 1, 'f32')[0](proof.batch_of(image).numpy())['boxes']
    assert boxes.tolist() == [[17, 5, 280, 30], [1, 0, 2, 40], [0, 0, 0, 0]]


@pytest.mark.slow
def test_engines_select_the_same_queries(tmp_path):
    """Also at a size that gives a map of 50 pixels, whose first centre lies at the edge of what is left out."""
    pytest.importorskip('openvino', reason="needs the extra 'openvino'")
    model, path = build('dino_mpvit_t_digits'), tmp_path / 'model.onnx'
    exporter.write(graphs.graph_of(model), path, {'task': 'detection'})
    batch = proof.batch_of(proof.made_image(64, 400)).numpy()
    found, expected = (ENGINES[engine](str(path), 1, 'f32')[0](batch) for engine in ('openvino', 'onnxruntime'))
    assert proof.compare(found, expected, (64, 400)).is_small()


@pytest.mark.parametrize('name', [f'mask2former_mpvit_s{kind}' for kind in ('', '_panoptic', '_ade20k')])
def test_full_recipes_can_be_described(name):
    pipeline = Config.fromfile(f'configs/{name}.py').test_dataloader.dataset.pipeline
    interpolation = 'bilinear_float32' if name == 'mask2former_mpvit_s' else 'bilinear'
    assert preprocessing.resize_rule(pipeline)['interpolation'] == interpolation


def test_small_pictures_take_no_part_in_a_proof_that_needs_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, 'SIZES', ((33, 47),))
    images = [proof.made_image(*size) for size in ((40, 30), (64, 80))]
    lines = export(build('dino_mpvit_t_digits'), tmp_path / 'model.onnx', images=images)
    sizes = [line.split(':')[0].strip() for line in lines if line.startswith('  ')]
    assert sizes == ['64x64', '40x30', '64x80']
    assert '  40x30: left out, because the model in PyTorch does not take images that small' in lines
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for image in images:  # the file takes them
        boxes = session.run(['boxes'], {'image': proof.batch_of(image).numpy()})[0]
        assert np.isfinite(boxes).all()
        assert boxes.max() <= max(image.shape)


def test_positions_of_a_pyramid_tnt_are_resized_by_products():
    model = PyramidTNT('tiny')
    graph = graphs.graph_of(model)
    stage, recorded = model.stages[0], graph.backbone.stages[0]
    for size in ((13, 7), (24, 24), (50, 84)):
        table = torch.randn(2, 24 * 24, 5)
        torch.testing.assert_close(backbones.resize(table, (24, 24), size), pyramid_tnt.resize(table, (24, 24), size))
    assert isinstance(recorded.relative_position((13, 7)), WholeTable)
    assert isinstance(stage.relative_position((13, 7)), pyramid_tnt.RelativePosition)  # the user's model
    expected = WholeTable(stage.relative_position((13, 7)))
    torch.testing.assert_close(recorded.relative_position((13, 7)).table, expected.table)


@pytest.mark.parametrize('name', ['atss_mpvit_s', 'deformable_detr_mpvit_s'])
def test_heads_with_softmax_are_refused(name):
    model = build(name)
    model.bbox_head.loss_cls.use_sigmoid = False
    with pytest.raises(ValueError, match='Head with softmax has no graph: set loss_cls.use_sigmoid=True'):
        graphs.graph_of(model)


def own_annotations(model, dataset):
    """A COCO file's content, in which every other thing that a model finds is an object."""
    images, objects = [], []
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        height, width = sample.ori_shape
        images.append(dict(id=sample.img_id, file_name=Path(sample.img_path).name, height=height, width=width))
        found = proof.computed(model, cv2.imread(sample.img_path)[..., ::-1])
        result = Result([], np.zeros((0, 3)), *(found[name][::2] for name in ('boxes', 'scores', 'labels', 'masks')))
        objects += coco_annotations(result, sample.img_id)
    numbered = [{**each, 'id': number} for number, each in enumerate(objects, 1)]
    categories = [dict(id=label, name=str(label)) for label in range(10)]
    return dict(images=images, annotations=numbered, categories=categories)


def test_metrics_are_those_of_the_toolbox(digits, mask_rcnn, tmp_path):
    """The exported model through ``runtime.py`` beside mmdet's test, on objects that the model finds itself."""
    model = build('maskrcnn_mpvit_t_digits')
    config = model.cfg
    dataset_cfg = config.test_dataloader.dataset
    dataset_cfg.data_root = f'{digits}/'
    annotations = tmp_path / 'annotations.json'
    annotations.write_text(json.dumps(own_annotations(model, DATASETS.build(dataset_cfg))))
    dataset_cfg.ann_file = config.test_evaluator.ann_file = str(annotations)
    config.work_dir = str(tmp_path)
    expected = Runner(model, **{key: config[key] for key in RUNNER_KEYS}).test()
    found = evaluation.evaluate(Model(mask_rcnn), config)
    assert 0.3 < expected['coco/bbox_mAP'] < 0.9
    assert found == pytest.approx(expected, abs=1e-4)


RUNNER_KEYS = ('work_dir', 'test_dataloader', 'test_evaluator', 'test_cfg', 'default_scope')


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_exports_a_checkpoint(tmp_path, monkeypatch):
    model = build('upernet_mpvit_t_digits')
    meta = dict(dataset_meta=dict(classes=list('abcdefghijk')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'a.pth')
    command = [sys.executable, 'tools/export.py', 'configs/upernet_mpvit_t_digits.py']
    cv2.imwrite(str(tmp_path / 'a.png'), proof.made_image(96, 120))
    done = run([*command, tmp_path / 'a.pth', '-o', tmp_path / 'a.onnx', '--int8', tmp_path, '--half'])
    assert done.returncode == 0, done.stderr
    assert '8-bit integers, by 1 images' in done.stdout
    assert (tmp_path / 'a.onnx').stat().st_size < 0.5 * (tmp_path / 'a.pth').stat().st_size
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path / 'a.onnx'))
    assert Model(tmp_path / 'a.onnx').metadata['classes'] == list('abcdefghijk')
    with pytest.raises(SystemExit) as failed:  # a sentence: Python prints it and returns 1
        run_here(monkeypatch, Path(command[1]), command[2], tmp_path / 'b.pth', '-o', tmp_path / 'b.onnx')
    assert failed.value.code.startswith('error: no checkpoint at')
    assert '\n' not in failed.value.code


def test_trained_model_is_read_without_running_it(tmp_path):
    model = build('maskrcnn_mpvit_t_digits')
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'a.pth')
    loaded, meta = load_trained(model.cfg, str(tmp_path / 'a.pth'))
    assert not loaded.training
    assert meta == {}
    torch.save(dict(state_dict=Asks(Path.touch, tmp_path / 'ran')), tmp_path / 'b.pth')
    with pytest.raises(RuntimeError, match='could run code'):
        load_trained(model.cfg, str(tmp_path / 'b.pth'))
    assert not (tmp_path / 'ran').exists()


def test_old_pytorch_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(exporter, 'OLDEST_TORCH', '99.1')
    with pytest.raises(ImportError, match=r'export needs PyTorch 99.1 or later, not 2.*: upgrade it'):
        export(nn.Identity(), tmp_path / 'model.onnx')
