"""Predictions: every kind of input, what is written, and what is refused."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import run_here
from hostile import Asks
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from pycocotools.coco import COCO
from pycocotools.mask import decode

from mmvit import predict
from mmvit.checkpoints.trained import load_trained
from mmvit.predicting import Predictor

OPTIONS = {
    'model.test_cfg.rcnn.score_thr': 0.0,
    'model.test_cfg.rcnn.max_per_img': 5,
    'model.backbone.arch': 'tiny',
}


def write_model(name: str, digits: Path, folder: Path, options: dict) -> tuple[Path, Path]:
    """A config of the digits and a checkpoint of random weights."""
    config = Config.fromfile(f'configs/{name}.py')
    config.merge_from_dict({**options, 'test_dataloader.dataset.data_root': f'{digits}/'})
    config.dump(folder / 'config.py')
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(config.model).state_dict()}, folder / 'model.pth')
    return folder / 'config.py', folder / 'model.pth'


@pytest.fixture(scope='module')
def detector(digits, tmp_path_factory) -> tuple[Path, Path]:
    return write_model('maskrcnn_mpvit_t_digits', digits, tmp_path_factory.mktemp('detector'), OPTIONS)


@pytest.fixture(scope='module')
def segmenter(digits, tmp_path_factory) -> tuple[Path, Path]:
    return write_model('upernet_mpvit_t_digits', digits, tmp_path_factory.mktemp('segmenter'), {})


@pytest.fixture(scope='module')
def predictor(detector) -> Predictor:
    return Predictor(*detector, device='cpu')


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Two images of odd sizes, of which one has an ending in capitals."""
    (tmp_path / 'pictures').mkdir()
    paths = [tmp_path / 'pictures' / name for name in ('a.png', 'b.JPG')]
    for path, shape in zip(paths, ((67, 131, 3), (101, 33, 3)), strict=True):
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    return paths


def assert_same(one, other):
    first, second = one.pred_instances, other.pred_instances
    assert len(first) == len(second) > 0
    for key in ('bboxes', 'scores', 'labels', 'masks'):
        torch.testing.assert_close(torch.as_tensor(first[key]), torch.as_tensor(second[key]), rtol=0, atol=0)


def test_what_mmdet_finds(detector, pictures):
    """In a list, in a folder and in arrays, alone and in batches: what ``inference_detector`` finds in each image."""
    model = load_trained(Config.fromfile(detector[0]), str(detector[1]))[0]
    expected = [inference_detector(model, str(path)) for path in pictures]
    arrays = [cv2.imread(str(path)) for path in pictures]
    for inputs in (pictures, pictures[0].parent, arrays, [str(pictures[0]), arrays[1]]):
        found = predict(*detector, inputs, device='cpu', batch_size=2, progress=False)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_three_lines(detector, pictures, tmp_path, monkeypatch):
    """All defaults, and a folder beside a file."""
    monkeypatch.chdir(tmp_path)
    samples = predict(*map(str, detector), ['pictures', str(pictures[0])], out='predictions')
    assert len(samples) == 3
    assert len(samples[0].pred_instances.bboxes) > 0
    assert {'predictions.json', '000001_a.png', '000003_a.png'} <= {p.name for p in Path('predictions').iterdir()}


def test_files_of_a_detector(predictor, detector, pictures, tmp_path):
    out = tmp_path / 'out'
    samples = list(predictor.predict(pictures, out, score=0, progress=False))
    for path in pictures:
        drawn = cv2.imread(str(out / path.name))
        assert drawn.shape == cv2.imread(str(path)).shape
        assert (drawn != cv2.imread(str(path))).any()
    results = COCO(out / 'images.json').loadRes(str(out / 'predictions.json'))
    classes = predictor.inferencer.model.dataset_meta['classes']
    content = json.loads(annotations(detector).read_text())
    ids = {category['name']: category['id'] for category in content['categories']}
    numbers = results.getImgIds()
    for number, sample in zip(numbers, samples, strict=True):
        found = sample.pred_instances
        items = results.loadAnns(results.getAnnIds(imgIds=[number]))
        assert len(items) == len(found) > 0
        assert [item['category_id'] for item in items] == [ids[classes[label]] for label in found.labels]
        for item, mask, box in zip(items, found.masks.numpy(), found.bboxes.numpy(), strict=True):
            assert np.array_equal(decode(item['segmentation']), mask)
            left, top, width, height = item['bbox']
            assert [left, top, left + width, top + height] == pytest.approx(box.tolist(), abs=1e-4)


def test_inferencer_of_mmdet_can_be_called(predictor, pictures, tmp_path):
    found = predictor.inferencer(str(pictures[0]), out_dir=str(tmp_path / 'out'), return_datasamples=True)
    assert_same(found['predictions'][0], next(predictor.predict(pictures[0], progress=False)))
    assert (tmp_path / 'out' / 'vis' / 'a.png').exists()


def annotations(detector) -> Path:
    dataset = Config.fromfile(detector[0]).test_dataloader.dataset
    return Path(dataset.data_root) / dataset.ann_file


def test_images_of_the_annotation_file_keep_their_ids(predictor, detector, digits, pictures, tmp_path):
    """Others, and one that comes again, get the numbers after these."""
    content = json.loads(annotations(detector).read_text())
    last = content['images'][-1]
    known = digits / 'val' / last['file_name']
    list(predictor.predict([known, pictures[0], known], tmp_path / 'out', progress=False))
    highest = max(image['id'] for image in content['images'])
    results = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert list(dict.fromkeys(result['image_id'] for result in results)) == [last['id'], highest + 1, highest + 2]
    written = json.loads((tmp_path / 'out' / 'images.json').read_text())
    assert [image['id'] for image in written['images']] == [last['id'], highest + 1, highest + 2]
    assert written['categories'] == [{'id': c['id'], 'name': c['name']} for c in content['categories']]


@pytest.mark.parametrize('least', [0.0, 2.0])
def test_an_enlarged_picture_leaves_the_sample_alone(predictor, pictures, least):
    """With instances and without any."""
    image = cv2.imread(str(pictures[0]))
    sample = next(predictor.predict(image, progress=False))
    sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= least]
    before = sample.pred_instances.to_dict()
    small, large = (predictor.draw(image, sample, 0.0, side) for side in (None, 262))
    assert (small.shape, large.shape) == ((67, 131, 3), (134, 262, 3))
    for key, value in before.items():
        assert torch.equal(sample.pred_instances[key], value)


def test_video(predictor, tmp_path):
    path = tmp_path / 'clip.avi'
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 7, (64, 48))
    for shade in (0, 100, 200):
        video.write(np.full((48, 64, 3), shade, np.uint8))
    video.release()
    out = tmp_path / 'out'
    samples = list(predictor.predict(path, out, score=0, progress=False))
    assert [sample.img_path for sample in samples] == [f'frame {i} of {path}' for i in (1, 2, 3)]
    drawn = cv2.VideoCapture(str(out / 'clip.avi.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 7
    assert [drawn.read()[0] for _ in range(4)] == [True, True, True, False]
    names = [image['file_name'] for image in json.loads((out / 'images.json').read_text())['images']]
    assert names == [f'clip.avi_{i:06}' for i in (1, 2, 3)]


def test_video_that_breaks_off(predictor, tmp_path):
    path = tmp_path / 'clip.avi'
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 7, (64, 48))
    for _ in range(9):
        video.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    video.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r'clip.avi breaks off: it has [34] of 9 frames'):
        samples = list(predictor.predict(path, progress=False))
    assert len(samples) in (3, 4)


@pytest.fixture
def address(pictures):
    """Of the folder of the pictures."""
    handler = partial(SimpleHTTPRequestHandler, directory=pictures[0].parent)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_address(predictor, pictures, address, tmp_path):
    local, remote = predictor.predict([pictures[0], f'{address}/a.png?size=1'], tmp_path / 'out', progress=False)
    assert_same(local, remote)
    assert remote.img_path == f'{address}/a.png?size=1'
    assert (tmp_path / 'out' / '000002_a.png').exists()  # beside the other a.png
    with pytest.raises(RuntimeError, match='nothing.png is not an image that can be read .HTTP Error 404'):
        list(predictor.predict(f'{address}/nothing.png', progress=False))


def test_segmenter(segmenter, pictures, tmp_path):
    out = tmp_path / 'out'
    samples = predict(*segmenter, pictures, out, device='cpu', batch_size=2, progress=False)
    for path, sample in zip(pictures, samples, strict=True):
        image = cv2.imread(str(path))
        classes = cv2.imread(str(out / 'classes' / f'{path.name}.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(classes, sample.pred_sem_seg.data[0])
        assert classes.shape == image.shape[:2]
        assert (cv2.imread(str(out / path.name)) != image).any()
    assert not (out / 'predictions.json').exists()
    predictor = Predictor(*segmenter, device='cpu')
    assert predictor.draw(cv2.imread(str(pictures[0])), samples[0], side=262).shape == (134, 262, 3)


def test_panoptic_detector(digits, pictures, tmp_path):
    """It writes instances and a map of classes; ``digits`` are not its data."""
    options = {
        'test_dataloader.dataset.pipeline.1.scale': (160, 96),
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.panoptic.stuff_area_limit': 1,
    }
    predictor = Predictor(*write_model('panoptic_fpn_mpvit_s', digits, tmp_path, options), device='cpu')
    (sample,) = predictor.predict(pictures[0], tmp_path / 'out', progress=False)
    classes = cv2.imread(str(tmp_path / 'out' / 'classes' / 'a.png.png'), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(classes, sample.pred_panoptic_seg.sem_seg[0] % 1000)
    assert (cv2.imread(str(tmp_path / 'out' / 'a.png')) != cv2.imread(str(pictures[0]))).any()
    assert predictor.draw(cv2.imread(str(pictures[0])), sample, side=262).shape == (134, 262, 3)


def test_broken_image_leaves_what_was_written(predictor, pictures, tmp_path):
    broken, out = tmp_path / 'broken.png', tmp_path / 'out'
    broken.write_bytes(pictures[0].read_bytes()[:40])
    with pytest.raises(RuntimeError, match=f'{broken} is not an image .*Predictions before it: 1, written into {out}'):
        list(predictor.predict([pictures[0], broken, pictures[1]], out, progress=False))
    assert len(json.loads((out / 'predictions.json').read_text())) > 0
    assert len(json.loads((out / 'images.json').read_text())['images']) == 1


def test_interrupt_leaves_what_was_written(predictor, pictures, tmp_path, monkeypatch):
    """As Ctrl-C comes while the second image is computed."""
    forward, calls = predictor.inferencer.forward, iter((False, True))

    def interrupted(data):
        if next(calls):
            raise KeyboardInterrupt
        return forward(data)

    monkeypatch.setattr(predictor.inferencer, 'forward', interrupted)
    with pytest.raises(KeyboardInterrupt, match='stopped. Predictions before it: 1, written into'):
        list(predictor.predict(pictures, tmp_path / 'out', progress=False))
    assert len(json.loads((tmp_path / 'out' / 'predictions.json').read_text())) > 0


def test_bad_inputs_are_refused_before_the_model_is_loaded(tmp_path, pictures):
    empty, video = tmp_path / 'empty', tmp_path / 'clip.mp4'
    empty.mkdir()
    video.write_bytes(b'no video')
    image = np.zeros((40, 40, 3), np.uint8)
    for inputs, error, message in (
        (tmp_path / 'nothing.png', FileNotFoundError, 'there is no file and no folder .*nothing.png'),
        (empty, FileNotFoundError, 'empty has no images'),
        (video, OSError, 'clip.mp4 is not a video'),
        (image.astype(np.float32), ValueError, 'not float32'),
        (image[..., 0], ValueError, r'not uint8 \(40, 40\)'),
        ([], ValueError, 'there are no inputs'),
        ([pictures[0], 3], TypeError, 'not int'),
    ):
        with pytest.raises(error, match=message):
            predict('no_config.py', 'no_checkpoint.pth', inputs)
    with pytest.raises(ValueError, match='would overwrite the inputs'):
        predict('no_config.py', 'no_checkpoint.pth', pictures, out=pictures[0].parent)


@pytest.mark.parametrize('device', ['meta', 'gpu7', 'cuda:99'])
def test_device_that_cannot_compute_is_refused(detector, device):
    with pytest.raises(ValueError, match=f'the device {device} cannot compute here'):
        Predictor(*detector, device=device)


def test_batch_has_an_image(predictor, pictures):
    with pytest.raises(ValueError, match='a batch has at least one image, and not 0'):
        next(predictor.predict(pictures, batch_size=0))


def test_test_data_without_classes(detector, pictures, tmp_path):
    """The checkpoint has to name them; images are counted from 1."""
    config = Config.fromfile(detector[0])
    config.test_dataloader.dataset.update(type='BaseDetDataset', ann_file='')
    del config.test_dataloader.dataset['metainfo']
    with pytest.raises(ValueError, match="neither the checkpoint nor the config's test data name the classes"):
        Predictor(config, detector[1], device='cpu')
    weights = torch.load(detector[1], weights_only=True)
    meta = {'dataset_meta': {'classes': tuple('abcdefghij')}}
    torch.save({**weights, 'meta': meta}, tmp_path / 'named.pth')
    list(Predictor(config, tmp_path / 'named.pth', 'cpu').predict(pictures[0], tmp_path / 'out', progress=False))
    written = json.loads((tmp_path / 'out' / 'images.json').read_text())
    assert written['categories'][1] == {'id': 1, 'name': 'b'}
    assert written['images'][0]['id'] == 1
    config.test_dataloader = None
    with pytest.raises(ValueError, match='the config has no test_dataloader'):
        Predictor(config, tmp_path / 'named.pth')


def test_config_of_another_toolbox_is_refused(detector):
    with pytest.raises(ValueError, match="default_scope of the config is 'mmpose'"):
        Predictor(Config({'default_scope': 'mmpose'}), detector[1])


def test_nothing_in_a_checkpoint_is_run(detector, tmp_path):
    evil, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    torch.save({'state_dict': Asks(os.mkdir, str(trace))}, evil)
    with pytest.raises(RuntimeError, match='evil.pth'):
        Predictor(detector[0], evil)
    assert not trace.exists()
    torch.load(evil, weights_only=False)
    assert trace.exists()


def test_checkpoint_that_does_not_fit_is_refused(detector, segmenter):
    with pytest.raises(RuntimeError, match='Missing key|are not of this|size mismatch'):
        Predictor(detector[0], segmenter[1])


def test_command(detector, pictures, tmp_path, monkeypatch, capsys):
    out, sheet = tmp_path / 'out', tmp_path / 'sheet.png'
    program = Path('tools/predict.py')
    run_here(monkeypatch, program, *detector, pictures[0].parent, '--out', out, '--device', 'cpu')
    assert sorted(path.name for path in out.iterdir()) == ['a.png', 'b.JPG', 'images.json', 'predictions.json']
    assert str(out) in capsys.readouterr().out
    run_here(monkeypatch, program, *detector, '--sheet', sheet, '--score', 0, '--count', 2, '--device', 'cpu')
    assert cv2.imread(str(sheet)).shape == (384 + 8, 2 * 384 + 12, 3)
    for options, message in (
        (('nothing.jpg',), 'there is no file and no folder nothing.jpg'),
        (('--sheet', tmp_path / 'sheet.pdf'), 'sheet.pdf is no name of an image'),
        (('--count', 0), '--count 0: take at least one image'),
    ):
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            run_here(monkeypatch, program, *detector, *options)


def test_importing_mmvit_brings_no_inferencer():
    code = "import mmvit, sys; print({'mmdet', 'mmseg', 'mmvit.predicting'} & set(sys.modules))"
    lines = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split('\n')
    assert lines[0] == 'set()'
