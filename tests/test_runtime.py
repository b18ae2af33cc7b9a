"""What runs an exported model: on small hand-made ONNX files, beside mmdet, mmcv, PyTorch and pycocotools."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import mmcv
import numpy as np
import onnx
import pytest
import torch
from commands import run
from mmcv.transforms import Compose
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import Config
from mmengine.registry import init_default_scope
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from scipy.ndimage import map_coordinates
from skimage import data
from torch.nn.functional import interpolate

from mmvit.deploy import runtime
from mmvit.deploy.preprocessing import resize_rule
from mmvit.deploy.runtime import Model, Result, draw, encode, image_frames, paste, read_image, resize, working_size

RULE = dict(scale=[96, 64], keep_ratio=True, rounding='mmcv', interpolation='bilinear')
# The boxes of the hand-made detector, in parts of the input's width and height.
PARTS = np.array([[0.1, 0.2, 0.5, 0.9], [0.5, 0.25, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]], np.float32)


@pytest.fixture
def photo(tmp_path) -> Path:
    """A file of a photograph, 300 pixels high and 451 wide."""
    path = tmp_path / 'in' / 'photo.png'
    path.parent.mkdir()
    assert cv2.imwrite(str(path), data.chelsea()[..., ::-1])
    return path


def detector(folder: Path, masks: bool = True, **metadata) -> Path:
    """A file that finds ``PARTS`` as boxes, with the means of red, green and blue as scores, and the three as masks.

    It drops scores below 0.05: it finds nothing in a black image.
    """
    nodes = [
        helper.make_node('Conv', ['image', 'weights'], ['unit']),  # an engine could do this in bfloat16
        helper.make_node('ReduceMean', ['unit'], ['rows'], axes=[3], keepdims=0),  # engines add in float32
        helper.make_node('ReduceMean', ['rows'], ['means'], axes=[0, 2], keepdims=0),
        helper.make_node('Greater', ['means', 'least'], ['is_kept']),
        helper.make_node('Compress', ['means', 'is_kept'], ['scores'], axis=0),
        helper.make_node('Shape', ['image'], ['shape']),
        helper.make_node('Gather', ['shape', 'sides'], ['size']),
        helper.make_node('Cast', ['size'], ['size_float'], to=TensorProto.FLOAT),
        helper.make_node('Mul', ['size_float', 'parts'], ['all_boxes']),
        helper.make_node('Compress', ['all_boxes', 'is_kept'], ['boxes'], axis=0),
        helper.make_node('Compress', ['all_labels', 'is_kept'], ['labels'], axis=0),
        helper.make_node('Resize', ['unit', '', '', 'small'], ['channels'], mode='linear'),
        helper.make_node('Squeeze', ['channels', 'first'], ['all_masks']),
        helper.make_node('Compress', ['all_masks', 'is_kept'], ['masks'], axis=0),
    ]
    constants = {
        'weights': np.eye(3, dtype=np.float32)[:, :, None, None] / 255,
        'least': np.float32(0.05),
        'sides': np.array([3, 2, 3, 2]),
        'parts': PARTS,
        'all_labels': np.array([0, 1, 0]),
        'small': np.array([1, 3, 28, 28]),
        'first': np.array([0]),
    }
    shapes = {'boxes': ('n', 4), 'scores': ('n',), 'labels': ('n',), 'masks': ('n', 28, 28)}
    if not masks:
        del shapes['masks']
    metadata = {'task': 'instance' if masks else 'detection', 'classes': ['cat', 'dog'], **metadata}
    return save(folder, nodes, constants, shapes, metadata)


def segmenter(folder: Path, outputs: tuple[str, ...] = ('classes', 'logits'), **metadata) -> Path:
    """A file with the image as logits: the class of a pixel is its strongest colour."""
    nodes = [
        helper.make_node('Identity', ['image'], ['logits']),
        helper.make_node('ArgMax', ['image'], ['batch'], axis=1, keepdims=0),
        helper.make_node('Squeeze', ['batch', 'first'], ['classes']),
    ]
    shapes = {'classes': ('h', 'w'), 'logits': (1, 3, 'h', 'w')}
    metadata = {'task': 'semantic', 'classes': ['red', 'green', 'blue'], **metadata}
    return save(folder, nodes, {'first': np.array([0])}, {name: shapes[name] for name in outputs}, metadata)


def save(folder: Path, nodes: list, constants: dict, outputs: dict, metadata: dict) -> Path:
    whole = dict(labels=TensorProto.INT64, classes=TensorProto.INT64)
    graph = helper.make_graph(
        nodes,
        'hand-made',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, (1, 3, 'height', 'width'))],
        [helper.make_tensor_value_info(name, whole.get(name, 1), shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    defaults = {'version': '0.2.0', 'palette': None, 'resize': RULE, 'mask_threshold': 0.5}
    helper.set_model_props(model, {'mmvit': json.dumps({**defaults, **metadata})})
    path = folder / 'model.onnx'
    onnx.save(model, path)
    return path


@pytest.fixture(params=['onnxruntime', 'openvino'])
def engine(request) -> str:
    return pytest.importorskip(request.param).__name__


# Resizing.


@pytest.mark.parametrize(
    'config',
    [
        'maskrcnn_mpvit_t_digits',
        'retinanet_mpvit_t',
        'maskrcnn_mpvit_t_d2',
        'upernet_mpvit_s',
        'mask2former_mpvit_s',  # in float32
    ],
)
@pytest.mark.parametrize('shape', [(300, 451), (97, 41), (33, 1500)])
def test_images_are_resized_as_in_the_test_pipeline(config, shape, tmp_path):
    cfg = Config.fromfile(f'configs/{config}.py')
    init_default_scope(cfg.default_scope)
    pipeline = cfg.test_dataloader.dataset.pipeline
    path = tmp_path / 'image.jpg'
    assert cv2.imwrite(str(path), cv2.resize(data.astronaut(), shape[::-1]))
    expected = Compose(pipeline[:2])(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(resize(read_image(path), resize_rule(pipeline)), expected)


def test_images_keep_their_size_without_a_resize():
    pipeline = Config.fromfile('configs/upernet_mpvit_t_digits.py').test_dataloader.dataset.pipeline
    assert resize_rule(pipeline) is None
    image = data.chelsea()
    assert resize(image, None) is image


def test_other_transforms_and_sizes():
    pipeline = [dict(type='mmdet.Resize', scale=(30, 20)), dict(type='mmdet.PackDetInputs')]
    assert resize_rule(pipeline) == dict(scale=[30, 20], keep_ratio=False, rounding='mmcv', interpolation='bilinear')
    assert resize(data.chelsea(), resize_rule(pipeline)).shape == (20, 30, 3)
    assert resize_rule([dict(type='Resize', scale=64, keep_ratio=True)])['scale'] == [64, 64]


def test_detectron2_rounds_a_few_sizes_to_another_pixel():
    """The authors' RegionViT detectors, beside detectron2 itself, at a long side of 640."""
    step = dict(type='mmvit.detectron2.Resize', scale=(1120, 672), keep_ratio=True)
    rule = resize_rule([step])
    assert rule['rounding'] == 'detectron2'
    others = {**rule, 'rounding': 'mmcv'}
    differ = [
        short for short in range(100, 641) if working_size(short, 640, **rule) != working_size(short, 640, **others)
    ]
    assert differ == [106, 150, 182, 194, 222, 230, 246, 254, 258, 290, 382]
    assert working_size(106, 640, **rule) == [185, 1120]
    assert working_size(640, 106, **rule) == [1120, 185]
    fixed = resize_rule([dict(type='mmvit.detectron2.Resize', scale=(1120, 672), keep_ratio=False)])
    assert working_size(300, 400, **fixed) == [672, 1120]
    assert working_size(400, 300, **fixed) == [1120, 672]


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        ([dict(type='Pad', size_divisor=32)], 'has Pad, .* leave it out'),
        ([dict(type='Resize', scale_factor=0.5)], 'no scale in pixels'),
        ([dict(type='Resize', scale=8, interpolation='area')], "interpolation='area'.* 'bilinear'"),
        ([dict(type='Resize', scale=8, backend='tifffile')], "backend='tifffile'.* 'cv2' or 'pillow'"),
        ([dict(type='Resize', scale=8)] * 2, 'more than once'),
        ([dict(type='LoadImageFromFile', color_type='grayscale')], "color_type='grayscale'"),
        ([dict(type=dict)], 'by its class'),
    ],
)
def test_pipelines_that_cannot_be_repeated(steps, message):
    with pytest.raises(ValueError, match=message):
        resize_rule(steps)


# Reading images.


def exif(path, image):
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by a quarter
    Image.fromarray(image).save(path, exif=tags)


IMAGE_FILES = {
    'grey.png': lambda path, image: Image.fromarray(image[..., 0]).save(path),
    'alpha.png': lambda path, image: Image.fromarray(np.dstack([image, image[..., 0]])).save(path),
    'sixteen_bits.png': lambda path, image: cv2.imwrite(str(path), image.astype(np.uint16) * 255),
    'palette.png': lambda path, image: Image.fromarray(image).convert('P').save(path),
    'turned.jpg': exif,
    'grey.tif': lambda path, image: Image.fromarray(image[..., 0]).save(path),
    'ünïcode.webp': lambda path, image: Image.fromarray(image).save(path),
}


@pytest.mark.parametrize('name', IMAGE_FILES)
def test_files_are_read_as_mmcv_reads_them(name, tmp_path):
    IMAGE_FILES[name](tmp_path / name, data.chelsea()[:40, :60])
    expected = mmcv.imread(tmp_path / name)
    assert expected.shape == ((60, 40, 3) if name == 'turned.jpg' else (40, 60, 3))
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n'])
def test_a_file_that_is_no_image(content, tmp_path):
    (tmp_path / 'image.png').write_bytes(content)
    with pytest.raises(OSError, match='image.png is not an image'):
        read_image(tmp_path / 'image.png')


@pytest.mark.parametrize(
    'image', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_an_array_that_is_no_image(image, tmp_path):
    with pytest.raises(ValueError, match='uint8 .H, W, 3. in BGR order, and not'):
        Model(detector(tmp_path))(image)


# Models.


def test_boxes_scores_and_labels(engine, photo, tmp_path):
    model = Model(detector(tmp_path), engine)
    result = model(photo)
    height, width = 300, 451
    # 96 x 64 pixels for the network, whose boxes go back by the two sides' own factors.
    np.testing.assert_allclose(result.boxes, PARTS * [width, height, width, height], rtol=1e-5)
    inside = resize(read_image(photo), RULE)
    assert inside.shape == (64, 96, 3)
    np.testing.assert_allclose(result.scores, inside.mean((0, 1))[::-1] / 255, rtol=1e-4)  # red first
    assert result.labels.tolist() == [0, 1, 0]
    assert (result.labels.dtype, result.boxes.dtype, result.masks.dtype) == (np.int64, np.float32, bool)
    assert result.masks.shape == (3, height, width)
    assert result.classes is None


def test_masks_are_those_of_the_image(photo, tmp_path):
    """The last box is the whole image, and its mask is where the image, shrunk to 28 x 28, is rather blue."""
    image = read_image(photo)
    mask = Model(detector(tmp_path))(image).masks[2]
    assert (mask == (image[..., 0] >= 127.5)).mean() > 0.9
    assert 0.05 < mask.mean() < 0.95


def test_no_instances(engine, tmp_path):
    image = np.zeros((40, 70, 3), np.uint8)
    result = Model(detector(tmp_path), engine)(image)
    assert (result.boxes.shape, result.scores.shape, result.labels.shape) == ((0, 4), (0,), (0,))
    assert result.masks.shape == (0, 40, 70)
    np.testing.assert_array_equal(draw(image, result), image)


def test_a_detector_without_masks(photo, tmp_path):
    result = Model(detector(tmp_path, masks=False, resize=None), threads=1)(str(photo))
    assert result.masks is None
    assert len(result.boxes) == 3


@pytest.mark.parametrize('size', [(64, 96), (300, 451), (20, 31)])
def test_segmentation_enlarges_the_logits(engine, size, tmp_path):
    image = cv2.resize(data.astronaut(), size[::-1])
    model = Model(segmenter(tmp_path, resize=dict(RULE, keep_ratio=False)), engine)
    found = model(image).classes
    logits = torch.from_numpy(resize(image, model.metadata['resize'])[..., ::-1].astype(np.float32)).permute(2, 0, 1)
    expected = interpolate(logits[None], size, mode='bilinear')[0].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    assert found.dtype == np.int64
    assert (found != expected).mean() < 1e-3


def test_segmentation_by_classes_alone(engine, tmp_path):
    image = np.zeros((2, 4, 3), np.uint8)
    image[0, :, 2] = image[1, :2, 1] = image[1, 2:, 0] = 255
    found = Model(segmenter(tmp_path, ('classes',), resize=dict(RULE, scale=[8, 4])), engine)(image).classes
    assert found.tolist() == [[0, 0, 0, 0], [1, 1, 2, 2]]


# Masks.


def test_masks_are_pasted_as_mmdet_pastes_them():
    rng = np.random.default_rng(0)
    height, width = 211, 307
    corners = rng.uniform(-20, 300, (60, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 0.5], 1).astype(np.float32)
    boxes[:20, 2:] = boxes[:20, :2] + rng.uniform(0.1, 3, (20, 2))  # tiny
    boxes[20:30] = boxes[20:30].clip(0, [width, height, width, height])
    boxes[20:30, 2:] = np.maximum(boxes[20:30, 2:], boxes[20:30, :2] + 0.25)
    masks = cv2.GaussianBlur(rng.random((28, 28, 60)), (0, 0), 2).transpose(2, 0, 1).astype(np.float32)
    found = paste(masks, boxes, boxes, (height, width), 0.5)
    expected, _ = _do_paste_mask(
        torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), height, width, skip_empty=False
    )
    expected = (expected >= 0.5).numpy()
    assert expected.sum() > 10000
    assert (found != expected).sum() <= expected.sum() / 10000


def test_a_box_without_an_area_has_no_mask():
    boxes = np.array([[3, 3, 3, 9], [3, 4.5, 9, 4.5]], np.float32)
    with np.errstate(all='raise'):
        assert not paste(np.ones((2, 28, 28), np.float32), boxes, boxes, (12, 12), 0.5).any()


def test_masks_of_the_whole_image(photo, tmp_path):
    """As Mask2Former gives them: their cells are pixels of the padded image, and count within the box."""
    model = Model(detector(tmp_path, mask_stride=4))
    result = model(photo)
    image = resize(read_image(photo), model.metadata['resize'])[..., ::-1].transpose(2, 0, 1)
    masks = model._run(image[None].astype(np.float32))['masks']
    height, width = result.masks.shape[1:]
    y = (np.arange(height) + 0.5) * image.shape[1] / height / 4
    x = (np.arange(width) + 0.5) * image.shape[2] / width / 4
    for mask, small, box in zip(result.masks, masks, result.boxes, strict=True):
        cells = map_coordinates(small, np.meshgrid(y - 0.5, x - 0.5, indexing='ij'), order=1, mode='nearest')
        inside = slice(int(box[1]) + 10, int(box[3]) - 3), slice(int(box[0]) + 10, int(box[2]) - 3)
        assert 0.02 < mask[inside].mean() < 0.98
        np.testing.assert_array_equal(mask[inside], cells[inside] >= 0.5)
        mask[slice(max(int(box[1]) - 1, 0), int(box[3]) + 2), slice(max(int(box[0]) - 1, 0), int(box[2]) + 2)] = False
        assert not mask.any()


def test_masks_of_the_whole_image_are_enlarged_as_pytorch_does():
    rng = np.random.default_rng(0)
    masks = cv2.GaussianBlur(rng.normal(size=(24, 32, 6)), (0, 0), 2).transpose(2, 0, 1).astype(np.float32)
    size = (90, 121)  # of the image; the network saw it padded to 96x128
    boxes = np.tile(np.float32([0, 0, size[1], size[0]]), (6, 1))
    found = paste(masks, boxes, image_frames(masks, 4, np.ones(2)), size, 0.0)
    expected = interpolate(torch.from_numpy(masks)[None], scale_factor=4, mode='bilinear')[0] > 0
    expected = expected.numpy()[:, : size[0], : size[1]]
    assert 0.2 < expected.mean() < 0.8
    assert (found != expected).mean() <= 1e-4


@pytest.mark.parametrize('fill', [0.0, 0.5, 1.0])
def test_run_lengths_are_those_of_pycocotools(fill):
    rng = np.random.default_rng(0)
    masks = [rng.random((53, 41)) < fill, cv2.GaussianBlur(rng.random((300, 200)), (0, 0), 9) < fill]
    for mask in masks:
        expected = coco_masks.encode(np.asfortranarray(mask, np.uint8))
        assert encode(mask) == expected['counts'].decode()


# Drawing.


def test_drawing_boxes_masks_and_labels():
    image = np.full((100, 200, 3), 128, np.uint8)
    masks = np.zeros((2, 100, 200), bool)
    masks[0, 40:60, 40:60] = masks[1, 40:60, 140:160] = True
    boxes = np.array([[30, 30, 70, 70], [130, 30, 170, 70]], np.float32)
    result = Result(['cat'], np.array([[0, 0, 255]], np.uint8), boxes, np.float32([0.9, 0.4]), np.array([0, 0]), masks)
    drawn = draw(image, result)
    assert (image == 128).all()
    assert drawn[70, 50].tolist() == [0, 0, 255]  # the box
    assert drawn[50, 50].tolist() == [64, 64, 191]  # the mask
    assert (drawn[:, 100:] == 128).all()  # the second instance's score is too low
    label = drawn[15:30, 30:70]
    assert (label == [0, 0, 255]).all(-1).any()
    assert (label > 200).all(-1).any()  # white letters
    assert (draw(image, result, 0.3)[70, 150] == [0, 0, 255]).all()


def test_the_best_is_drawn_last():
    boxes = np.array([[30, 30, 70, 70], [30, 30, 70, 70]], np.float32)
    palette = np.array([[0, 0, 255], [255, 0, 0]], np.uint8)
    result = Result(['cat', 'dog'], palette, boxes, np.float32([0.9, 0.8]), np.array([0, 1]))
    assert draw(np.zeros((100, 100, 3), np.uint8), result)[70, 50].tolist() == [0, 0, 255]


def test_labels_stay_inside_the_image():
    box = np.array([[190, 0, 194, 4]], np.float32)
    result = Result(['a long name'], np.array([[0, 255, 0]], np.uint8), box, np.float32([0.9]), np.array([0]))
    drawn = draw(np.full((200, 200, 3), 128, np.uint8), result)
    rows, columns = np.nonzero((drawn < 60).all(-1))  # of black letters
    assert np.ptp(rows) >= 7
    assert np.ptp(columns) > 80


def test_drawing_classes():
    result = Result(['a', 'b'], np.array([[0, 0, 0], [200, 100, 0]], np.uint8), classes=np.eye(8, dtype=np.int64))
    drawn = draw(np.full((8, 8, 3), 100, np.uint8), result)
    assert drawn[0, 0].tolist() == [150, 100, 50]
    assert drawn[0, 1].tolist() == [50, 50, 50]


def test_a_palette_is_rgb(tmp_path):
    assert Model(detector(tmp_path, palette=[[1, 2, 3], [4, 5, 6]])).palette.tolist() == [[3, 2, 1], [6, 5, 4]]
    assert len({tuple(colour) for colour in Model(detector(tmp_path, classes=[*'0123456789'])).palette.tolist()}) == 10


# What is wrong with a model.


def test_model_without_its_weights(tmp_path):
    (tmp_path / 'model.xml').touch()
    with pytest.raises(FileNotFoundError, match='model.xml needs model.bin beside it: copy both'):
        Model(tmp_path / 'model.xml')


def test_no_such_model(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file .*other.onnx'):
        Model(tmp_path / 'other.onnx')


def test_a_file_that_is_no_model(engine, photo):
    with pytest.raises(ValueError, match=f'photo.png is not a model that {engine} can run'):
        Model(photo, engine)


def test_a_model_of_someone_else(engine, tmp_path):
    path = detector(tmp_path)
    model = onnx.load(path)
    helper.set_model_props(model, {'author': 'someone'})
    onnx.save(model, path)
    with pytest.raises(ValueError, match='does not say how to use it .* export it'):
        Model(path, engine)


def test_a_backbone(tmp_path):
    with pytest.raises(ValueError, match='is a backbone'):
        Model(detector(tmp_path, task='features'))


def test_unknown_engine(tmp_path):
    with pytest.raises(ValueError, match="'tensorrt' is unknown: take onnxruntime or openvino"):
        Model(detector(tmp_path), 'tensorrt')


def test_precision(photo, tmp_path, monkeypatch):
    path = detector(tmp_path)
    with pytest.raises(ValueError, match='onnxruntime computes in f32 on CPUs: for bf16 take openvino'):
        Model(path, precision='bf16')
    openvino = pytest.importorskip('openvino')
    if 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        found = Model(path, 'openvino', precision='bf16')(photo).scores
        expected = Model(path)(photo).scores
        assert 1e-5 < np.abs(found - expected).max() < 1e-2
    monkeypatch.setattr(openvino.Core, 'get_property', lambda *_: ['FP32'])
    with pytest.raises(ValueError, match='OpenVINO does not compute in bf16 on this CPU'):
        Model(path, 'openvino', precision='bf16')


def test_engine_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ImportError, match='pip install openvino'):
        Model(detector(tmp_path), 'openvino')


# The command, as a file of its own, where no PyTorch and no OpenMMLab can be imported.


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmvit', 'timm'):
            raise AssertionError(f'{name} is imported')

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def alone(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a copy of the file in a folder."""
    shutil.copy(runtime.__file__, folder / 'runtime.py')
    command = [sys.executable, '-I', '-c', ALONE, 'runtime.py', *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_an_image(photo, tmp_path):
    detector(tmp_path)
    done = alone(tmp_path, 'model.onnx', photo, '--score', '0.1', '--threads', '1')
    assert done.returncode == 0, done.stderr
    assert '1 of 1: photo.png' in done.stderr
    result = Model(tmp_path / 'model.onnx')(photo)
    drawn = cv2.imread(str(tmp_path / 'predictions' / 'photo.png'))
    np.testing.assert_array_equal(drawn, draw(read_image(photo), result, 0.1))
    found = COCO(tmp_path / 'predictions' / 'predictions.json')
    assert found.loadImgs([1]) == [{'id': 1, 'file_name': 'photo.png', 'height': 300, 'width': 451}]
    assert [category['name'] for category in found.loadCats(found.getCatIds())] == ['cat', 'dog']
    instances = found.loadAnns(found.getAnnIds())
    assert [instance['category_id'] for instance in instances] == result.labels.tolist()
    np.testing.assert_array_equal(np.stack([found.annToMask(i) for i in instances]), result.masks)
    np.testing.assert_allclose([i['bbox'] for i in instances], PARTS * [451, 300, 451, 300] @ TO_XYWH, rtol=1e-5)
    assert found.loadRes(instances).getAnnIds() == [1, 2, 3]  # COCO's evaluation takes them


TO_XYWH = np.array([[1, 0, -1, 0], [0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_a_folder_with_a_broken_image(photo, tmp_path):
    detector(tmp_path, masks=False)
    shutil.copy(photo, photo.with_name('another.JPG'))
    photo.with_name('broken.jpg').write_bytes(b'no image')
    photo.with_name('notes.txt').write_text('no image either')
    done = alone(tmp_path, 'model.onnx', 'in', '--out', 'out/of/it')
    assert done.returncode == 1
    assert '2 of 3: broken.jpg\nerror: this is not an image' in done.stderr
    names = sorted(path.name for path in (tmp_path / 'out/of/it').iterdir())
    assert names == ['another.JPG', 'photo.png', 'predictions.json']
    found = json.loads((tmp_path / 'out/of/it' / 'predictions.json').read_text())
    assert [image['file_name'] for image in found['images']] == ['another.JPG', 'photo.png']
    assert [annotation['id'] for annotation in found['annotations']] == [1, 2, 3, 4, 5, 6]
    assert {annotation['image_id'] for annotation in found['annotations']} == {image['id'] for image in found['images']}


def test_a_segmented_image(photo, tmp_path):
    segmenter(tmp_path)
    done = alone(tmp_path, 'model.onnx', photo)
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'predictions'
    assert sorted(path.name for path in out.iterdir()) == ['photo.png', 'photo.png.classes.png']
    classes = cv2.imread(str(out / 'photo.png.classes.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(classes, Model(tmp_path / 'model.onnx')(photo).classes)


def test_a_video(tmp_path):
    detector(tmp_path)
    video = cv2.VideoWriter(str(tmp_path / 'film.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, (76, 50))
    for shade in (50, 100, 200):
        video.write(np.full((50, 76, 3), shade, np.uint8))
    video.release()
    done = alone(tmp_path, 'model.onnx', 'film.avi', '--score', '0.5')
    assert done.returncode == 0, done.stderr
    assert '3 of 3: film.avi:3' in done.stderr
    drawn = cv2.VideoCapture(str(tmp_path / 'predictions' / 'film.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    frames = [frame for _ in range(4) if (frame := drawn.read()[1]) is not None]
    assert [frame.shape for frame in frames] == [(50, 76, 3)] * 3
    assert np.ptp(frames[0][5:-5]) < 50 < np.ptp(frames[2][5:-5])  # the last one has boxes above the score
    found = json.loads((tmp_path / 'predictions' / 'predictions.json').read_text())
    assert [image['file_name'] for image in found['images']] == ['film.avi:1', 'film.avi:2', 'film.avi:3']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['other.onnx', 'in/photo.png'], 'error: there is no file other.onnx'),
        (['model.onnx', 'in/other.png'], "error: .*No such file.*'in/other.png'"),
        (['model.onnx', 'in/other.mp4'], 'error: in/other.mp4 is not there, or not a video'),
        (['model.onnx', 'model.onnx'], 'error: model.onnx is not an image'),
        (['model.onnx', 'empty'], r'error: empty has no images \(.bmp, .jpeg'),
        (['model.onnx', 'in', '--out', 'in'], 'error: results in in would overwrite the input'),
        (['model.onnx', 'in', '--engine', 'tensorrt'], 'invalid choice'),
    ],
)
def test_mistakes_in_the_command(arguments, message, photo, tmp_path):
    detector(tmp_path)
    (tmp_path / 'empty').mkdir()
    done = alone(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    assert 'Traceback' not in done.stderr
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_in_an_environment_without_pytorch(name, photo, tmp_path):
    python = tmp_path / 'venv' / 'bin' / 'python'
    run('uv', 'venv', '--python', sys.executable, tmp_path / 'venv')
    run('uv', 'pip', 'install', '--python', python, 'numpy', 'opencv-python-headless', name)
    shutil.copy(runtime.__file__, tmp_path / 'runtime.py')
    detector(tmp_path)
    run(python, 'runtime.py', 'model.onnx', photo, '--engine', name, cwd=tmp_path)
    found = json.loads((tmp_path / 'predictions' / 'predictions.json').read_text())['annotations']
    expected = Model(tmp_path / 'model.onnx')(photo)
    np.testing.assert_allclose([each['score'] for each in found], expected.scores, rtol=1e-5)
    masks = [coco_masks.decode(each['segmentation']) for each in found]
    np.testing.assert_array_equal(masks, expected.masks)


# The page, in a browser.

DEMO = Path('docs/demo')
NPM_PACKAGES = ('onnxruntime-web@1.30.0', 'playwright-core@1.65.1')
VISIT = """
import { chromium } from 'playwright-core';
const [executablePath, address, name] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath });
const page = await browser.newPage();
const says = (text) => page.locator('#status', { hasText: text }).waitFor({ timeout: 300000 });
await page.goto(address);
await says('Ready');
const dataTransfer = await page.evaluateHandle(async (name) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await (await fetch(name)).blob()], name));
  return transfer;
}, name);
await page.dispatchEvent('#drop', 'drop', { dataTransfer });
await says(/ in .* s\\.|Error/);
console.log(JSON.stringify(await page.evaluate(() => ({
  status: document.querySelector('#status').textContent,
  found: [...document.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent)),
  picture: document.querySelector('canvas').toDataURL(),
}))));
await browser.close();
"""


@pytest.fixture(scope='module')
def node_modules(tmp_path_factory) -> Path:
    """A folder with the page's packages from npm, and those that visit it."""
    if not (shutil.which('npm') and shutil.which('chromium')):
        pytest.skip("the page is tested with npm and Debian's chromium, which this machine lacks")
    folder = tmp_path_factory.mktemp('npm')
    run('npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefix', folder, *NPM_PACKAGES)
    (folder / 'visit.mjs').write_text(VISIT)
    return folder / 'node_modules'


@pytest.fixture
def visit(node_modules, tmp_path):
    """Serves a folder with the page, and drops a picture of it on the page: what it says, finds and draws."""
    for file in DEMO.iterdir():
        shutil.copy(file, tmp_path)
    for name in ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'):
        (tmp_path / name).symlink_to(node_modules / 'onnxruntime-web' / 'dist' / name)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    Thread(target=server.serve_forever, daemon=True).start()

    def drop(picture: str) -> dict:
        address = f'http://127.0.0.1:{server.server_port}/index.html?score=0.1'
        command = ('node', node_modules.parent / 'visit.mjs', shutil.which('chromium'), address, picture)
        return json.loads(run(*command))

    yield drop
    server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize('interpolation', ['bilinear', 'bilinear_float32', 'antialiased'])
@pytest.mark.parametrize(('size', 'mask_stride'), [((96, 64), None), ((1000, 700), None), ((96, 64), 4)])
def test_the_page_finds_what_python_finds(interpolation, size, mask_stride, visit, photo, tmp_path):
    shutil.copy(photo, tmp_path)
    rule = dict(scale=size, keep_ratio=True, rounding='mmcv', interpolation=interpolation)
    expected = Model(detector(tmp_path, resize=rule, mask_stride=mask_stride))(photo)
    found = visit('photo.png')
    assert found['status'].startswith('3 found in')
    labels, *numbers, areas = zip(*found['found'], strict=True)
    assert labels == ('cat', 'dog', 'cat')
    scores, *boxes = np.array(numbers, float)
    np.testing.assert_allclose(scores, expected.scores, atol=6e-5)  # four digits are shown
    np.testing.assert_allclose(np.stack(boxes, 1), expected.boxes, atol=1e-2)
    np.testing.assert_allclose(np.array(areas, float), expected.masks.sum((1, 2)), atol=2)


@pytest.mark.slow
def test_the_page_draws_classes(visit, photo, tmp_path):
    shutil.copy(photo, tmp_path)
    expected = Model(segmenter(tmp_path, ('classes',)))(photo)
    found = visit('photo.png')
    assert found['status'].startswith('Segmented in')
    png = np.frombuffer(base64.b64decode(found['picture'].partition(',')[2]), np.uint8)
    drawn = cv2.imdecode(png, cv2.IMREAD_COLOR).astype(int)
    assert np.abs(drawn - draw(read_image(photo), expected)).max() <= 1


@pytest.mark.slow
def test_the_page_says_what_is_no_picture(visit, tmp_path):
    detector(tmp_path)
    (tmp_path / 'notes.txt').write_text('no image')
    assert visit('notes.txt')['status'] == 'Error: this is not an image that the browser can read'
