"""A config for data of one's own: formats, the check of the data, and a training."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mmcv
import new_project
import pytest
import torch
from commands import program, run_here, scalars
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from PIL import Image, ImageChops, ImageDraw, ImageOps

from mmvit.models import MPViT, RegionViT
from mmvit.models.base import Backbone
from mmvit.own_data.check import find_gaps, find_problems
from mmvit.own_data.configs import CONFIGS, MASKS, SEMANTIC
from mmvit.own_data.labels import guess_format, read_labels
from mmvit.own_data.sizes import Sizes, advise, measure
from mmvit.own_data.weights import find_use

HEAD = ('--head', 'retinanet', '--backbone', 'mpvit_t', '--size', '64x96')


@pytest.fixture
def coco(digits, tmp_path) -> tuple[Path, Path]:
    """Images and labels of six images; each object of the .json file begins a line."""
    images = tmp_path / 'images'
    images.mkdir()
    content = json.loads((digits / 'annotations' / 'instances_train.json').read_text())
    content['images'] = content['images'][:6]
    content['annotations'] = [item for item in content['annotations'] if item['image_id'] <= 6]
    for image in content['images']:
        shutil.copy(digits / 'train' / image['file_name'], images)
    write(tmp_path / 'labels.json', content)
    return images, tmp_path / 'labels.json'


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Saves a second a project, where a test is about something else."""
    for name in ('draw_boxes', 'draw_masks', 'draw_sizes'):
        monkeypatch.setattr(new_project, name, lambda *_: None)


def write(path: Path, content: dict) -> None:
    lists = [f'"{key}": [\n' + ',\n'.join(map(json.dumps, items)) + '\n]' for key, items in content.items()]
    path.write_text('{\n' + ',\n'.join(lists) + '\n}\n')


def boxes_of(content: dict) -> dict[str, list[tuple]]:
    """Image, class and corners of each object of a COCO file."""
    names = {item['id']: item['name'] for item in content['categories']}
    boxes: dict[str, list[tuple]] = {image['file_name']: [] for image in content['images']}
    files = {image['id']: image['file_name'] for image in content['images']}
    for item in content['annotations']:
        x, y, w, h = item['bbox']
        boxes[files[item['image_id']]].append((names[item['category_id']], x, y, x + w, y + h))
    return boxes


def write_voc(folder: Path, content: dict) -> Path:
    folder.mkdir()
    for name, boxes in boxes_of(content).items():
        objects = ''
        for label, *corners in boxes:
            sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True)
            box = ''.join(f'<{side}>{value + (side[1:] == "min"):g}</{side}>' for side, value in sides)
            objects += f'<object><name>{label}</name><bndbox>{box}</bndbox></object>\n'
        image = content['images'][0]
        size = f'<size><width>{image["width"]}</width><height>{image["height"]}</height><depth>3</depth></size>\n'
        text = f'<annotation>\n<filename>{name}</filename>\n{size}{objects}</annotation>\n'
        (folder / name).with_suffix('.xml').write_text(text)
    return folder


def write_yolo(folder: Path, content: dict) -> Path:
    folder.mkdir()
    names = [item['name'] for item in content['categories']]
    (folder / 'data.yaml').write_text(json.dumps({'names': names}))
    w, h = (content['images'][0][side] for side in ('width', 'height'))
    for name, boxes in boxes_of(content).items():
        lines = [
            f'{names.index(n)} {(a + c) / 2 / w} {(b + d) / 2 / h} {(c - a) / w} {(d - b) / h}'
            for n, a, b, c, d in boxes
        ]
        (folder / name).with_suffix('.txt').write_text('\n'.join([*lines, '']))
    return folder


def write_masks(folder: Path, content: dict) -> Path:
    """Each box of digit d is filled with d + 1; the rest is background, but for a corner without a label."""
    folder.mkdir()
    names = ['background', *(item['name'] for item in content['categories'])]
    (folder / 'classes.txt').write_text('\n'.join(names))
    for image in content['images']:
        mask = Image.new('L', (image['width'], image['height']))
        draw = ImageDraw.Draw(mask)
        for name, *corners in boxes_of(content)[image['file_name']]:
            draw.rectangle(corners, fill=names.index(name))
        draw.rectangle((0, 0, 5, 5), fill=255)
        mask.save((folder / image['file_name']).with_suffix('.png'))
    return folder


def start(monkeypatch, images: Path, labels: Path, out: Path, *options: str) -> Config:
    monkeypatch.setattr(
        sys, 'argv', ['new_project.py', str(images), '--labels', str(labels), '--out', str(out), *options]
    )
    new_project.main()
    return Config.fromfile(out / 'config.py')


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('kind', ['voc', 'yolo'])
def test_formats_give_the_boxes_of_coco(coco, kind, tmp_path, monkeypatch):
    pytest.importorskip('supervision')
    images, labels = coco
    content = json.loads(labels.read_text())
    folder = {'voc': write_voc, 'yolo': write_yolo}[kind](tmp_path / kind, content)
    assert guess_format(folder) == kind
    start(monkeypatch, images, folder, tmp_path / 'out', *HEAD)
    found = {}
    for part in ('train', 'val'):
        found |= boxes_of(json.loads((tmp_path / 'out' / f'{part}.json').read_text()))
    expected = boxes_of(content)
    assert found.keys() == expected.keys()
    for name, boxes in expected.items():
        assert [box[0] for box in found[name]] == [box[0] for box in boxes]
        for box, other in zip(found[name], boxes, strict=True):
            assert box[1:] == pytest.approx(other[1:], abs=1e-2)


def numbers_of_classes(model: Config) -> set[int]:
    found = {model['num_classes']} if 'num_classes' in model else set()
    parts = [part for value in model.values() for part in (value if isinstance(value, list) else [value])]
    return found.union(*(numbers_of_classes(part) for part in parts if isinstance(part, dict)))


@pytest.mark.parametrize(
    ('head', 'backbone'),
    [
        ('retinanet', 'mpvit_t'),
        ('maskrcnn', 'regionvit_s'),
        ('cascade_maskrcnn', 'pyramid_tnt_s'),
        ('atss', 'mpvit_s'),
        ('dino', 'mpvit_s'),
        ('deformable_detr', 'mpvit_s'),
    ],
)
def test_config_of_a_detector_has_the_data_and_its_classes(coco, head, backbone, tmp_path, monkeypatch):
    options = ('--head', head, '--backbone', backbone, '--size', '96x64')
    config = start(monkeypatch, *coco, tmp_path / 'out', *options)
    assert numbers_of_classes(Config(dict(config.model, rpn_head=None))) == {10}
    dataset = DATASETS.build({**config.train_dataloader.dataset, '_scope_': 'mmdet'})
    assert dataset.metainfo['classes'] == tuple('0123456789')
    assert len(dataset) == 5
    item = dataset[0]
    assert max(item['inputs'].shape[1:]) <= 96
    assert ('masks' in item['data_samples'].gt_instances) == (head in MASKS)
    recipe = Config.fromfile(CONFIGS / f'{head}_{backbone}.py')
    rate = 16 * recipe.optim_wrapper.optimizer.lr * 4 / recipe.auto_scale_lr.base_batch_size
    assert config.optim_wrapper.optimizer.lr == pytest.approx(rate, rel=1e-2)
    for picture in ('labelled.png', 'sizes.png'):
        assert Image.open(tmp_path / 'out' / picture).width > 100


@pytest.mark.parametrize('head', SEMANTIC)
def test_config_of_a_segmenter_has_the_data_and_its_classes(coco, head, tmp_path, monkeypatch):
    images, labels = coco
    masks = write_masks(tmp_path / 'masks', json.loads(labels.read_text()))
    options = ('--head', head, '--backbone', 'mpvit_s', '--size', '64x96')
    config = start(monkeypatch, images, masks, tmp_path / 'out', *options)
    assert numbers_of_classes(config.model) == {11}
    dataset = DATASETS.build({**config.train_dataloader.dataset, '_scope_': 'mmseg'})
    assert dataset.metainfo['classes'] == ('background', *'0123456789')
    assert len(dataset) == 5
    assert dataset[0]['data_samples'].gt_sem_seg.shape[0] <= 64
    (tested,) = DATASETS.build({**config.val_dataloader.dataset, '_scope_': 'mmseg'})
    assert set(tested['data_samples'].gt_sem_seg.data.unique().tolist()) <= {*range(11), 255}
    assert Image.open(tmp_path / 'out' / 'labelled.png').width > 100


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.slow
@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg'])
def test_config_trains(coco, toolbox, tmp_path, monkeypatch):
    images, labels = coco
    head = HEAD
    if toolbox == 'mmseg':
        labels = write_masks(tmp_path / 'masks', json.loads(labels.read_text()))
        head = ('--head', 'fpn', '--backbone', 'mpvit_s', '--size', '64x96')
    start(monkeypatch, images, labels, tmp_path / 'out', *head)
    length = dict(mmdet=['train_cfg.max_epochs=1'], mmseg=['train_cfg.max_iters=2', 'train_cfg.val_interval=2'])
    workers = [
        f'{split}_dataloader.{key}'
        for split in ('train', 'val')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    options = [*length[toolbox], *workers, 'default_hooks.logger.interval=1', f'visualizer.name={tmp_path}']
    command = (tmp_path / 'out' / 'config.py', '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    run_here(monkeypatch, program(toolbox, 'train.py'), *command)
    assert len(scalars(tmp_path / 'work', 'loss')) == 2
    trained = tmp_path / 'work' / dict(mmdet='epoch_1.pth', mmseg='iter_2.pth')[toolbox]
    assert find_use(trained, CONFIGS / f'{head[1]}_{head[3]}.py') == 'model'


def test_problems_of_coco_have_file_and_line(coco):
    images, labels = coco
    content = json.loads(labels.read_text())
    first, *others = content['annotations']
    content['annotations'] = [
        first | {'bbox': [100, 100, 500, 20]},
        first | {'id': 901, 'bbox': [5, 5, 0, 9]},
        first | {'id': 902, 'category_id': 77},
        first | {'id': 903, 'image_id': 99},
        first | {'id': 903},
        *others,
    ]
    content['images'][1]['width'] += 1
    content['categories'].append({'id': 10, 'name': 'ten'})
    (images / content['images'][2]['file_name']).unlink()
    rotated = Image.open(images / content['images'][3]['file_name'])
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(images / content['images'][3]['file_name'], exif=exif)
    write(labels, content)
    read = read_labels(images, labels, 'coco')
    problems = find_problems(images, read)
    lines = labels.read_text().splitlines()
    begins = 1 + lines.index('"annotations": [')
    expected = {
        f'{labels}:{begins + 1}: box outside',
        f'{labels}:{begins + 2}: zero area',
        f'{labels}:{begins + 3}: unknown class',
        f'{labels}:{begins + 4}: missing image',
        f'{labels}:{begins + 5}: duplicate id',
        f'{labels}:{2 + lines.index(chr(34) + "images" + chr(34) + ": [") + 1}: wrong image size',
        f'{labels}:{2 + lines.index(chr(34) + "images" + chr(34) + ": [") + 2}: missing image',
        f'{images / content["images"][3]["file_name"]}: EXIF rotation',
    }
    assert {': '.join(problem.split(': ')[:2]) for problem in problems} == expected
    assert 'empty class: ten occurs nowhere' in find_gaps(images, read)


def test_problems_of_yolo_have_file_and_line(coco, tmp_path):
    images, labels = coco
    folder = write_yolo(tmp_path / 'yolo', json.loads(labels.read_text()))
    (folder / '000001.txt').write_text('3 0.5 0.5 0.1 0.1\n\n12 0.5 0.5 0.1 0.1\n3 0.9 0.5 0.5 0.1\n3 0.5 0.5 0 0.1\n')
    (folder / 'nowhere.txt').write_text('')
    problems = find_problems(images, read_labels(images, folder, 'yolo'))
    kinds = [problem.split(': ')[:2] for problem in problems]
    file = folder / '000001.txt'
    expected = [[f'{file}:3', 'unknown class'], [f'{file}:4', 'box outside'], [f'{file}:5', 'zero area']]
    assert sorted(kinds) == sorted([*expected, [f'{folder / "nowhere.txt"}', 'missing image']])


def test_problems_of_voc_have_file_and_line(coco, tmp_path):
    pytest.importorskip('defusedxml')
    images, labels = coco
    folder = write_voc(tmp_path / 'voc', json.loads(labels.read_text()))
    file = folder / '000001.xml'
    text = file.read_text().replace('<width>', '<width>9', 1)
    file.write_text(text.replace('<xmax>', '<xmax>9', 1))
    kinds = [problem.split(': ')[:2] for problem in find_problems(images, read_labels(images, folder, 'voc'))]
    assert kinds == [[f'{file}:3', 'wrong image size'], [f'{file}:4', 'box outside']]
    (folder / 'classes.txt').write_text('0\n1\n')
    assert any(': unknown class: ' in problem for problem in find_problems(images, read_labels(images, folder, 'voc')))
    file.write_text('<annotation><size><width>3</width><height>3</height></size></annotation>')
    with pytest.raises(ValueError, match='not in the format of Pascal VOC: it names no image'):
        read_labels(images, folder, 'voc')


def test_problems_of_masks_name_the_file(coco, tmp_path):
    images, labels = coco
    folder = write_masks(tmp_path / 'masks', json.loads(labels.read_text()))
    first, second, third = sorted(folder.glob('*.png'))[:3]
    Image.new('L', (3, 4), 200).save(first)
    second.rename(folder / 'nowhere.png')
    shutil.copy(images / third.name, images / f'{third.stem}.bmp')
    read = read_labels(images, folder, 'masks')
    kinds = [problem.split(': ')[:2] for problem in find_problems(images, read)]
    assert sorted(kinds) == sorted(
        [
            [str(first), 'unknown class'],
            [str(first), 'wrong image size'],
            [str(third), 'two images'],
            [str(folder / 'nowhere.png'), 'missing image'],
        ]
    )
    Image.new('RGB', (3, 4)).save(first)
    with pytest.raises(ValueError, match='a pixel must be one number, and these are RGB'):
        read_labels(images, folder, 'masks')


def test_classes_that_occur_nowhere_and_broken_images_are_named(coco, tmp_path):
    images, labels = coco
    folder = write_masks(tmp_path / 'masks', json.loads(labels.read_text()))
    (folder / 'classes.txt').write_text((folder / 'classes.txt').read_text() + '\nten\n')
    read = read_labels(images, folder, 'masks')
    (images / 'unlabelled.png').write_bytes(b'')
    assert find_gaps(images, read) == [
        *(f'empty class: {name} occurs nowhere' for name in read.classes if not read.counts[name]),
        'images without labels: 1, the first is unlabelled.png',
    ]
    assert read.counts['background'] == 6
    assert read.counts['ten'] == 0
    broken = images / read.entries[0].image
    broken.write_bytes(broken.read_bytes()[:200])
    (problem,) = find_problems(images, read)
    assert problem.startswith(f'{broken}: broken image: ')


def photograph(path: Path, mark: int = 1) -> Path:
    """60 pixels wide, 40 high, and an EXIF mark of how it is to be turned."""
    image = Image.effect_noise((60, 40), 50).convert('RGB')
    exif = image.getexif()
    exif[0x0112] = mark
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize('kind', ['coco', 'yolo'])
def test_broken_images_are_problems_before_anything_is_written(coco, kind, tmp_path, monkeypatch):
    images, labels = coco
    content = json.loads(labels.read_text())
    cut, jpeg, empty, text = [images / item['file_name'] for item in content['images'][:4]]
    if kind == 'yolo':
        labels = write_yolo(tmp_path / 'yolo', content)
    cut.write_bytes(cut.read_bytes()[:-500])
    photograph(tmp_path / 'whole.jpg')
    jpeg.write_bytes((tmp_path / 'whole.jpg').read_bytes()[:-200])
    empty.write_bytes(b'')
    text.write_text('<html>not found</html>')
    mend = 'copy it again, or delete it and its labels'
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, images, labels, tmp_path / 'out', *HEAD)
    first, *problems = str(ended.value).splitlines()
    assert first == 'nothing written: mend 4 problems of the data first'
    for problem, path in zip(sorted(problems), (cut, jpeg), strict=False):
        assert problem.startswith(f'{path}: broken image: it is damaged, or its end is missing (image file is trunc')
    assert f'{empty}: broken image: it has 0 bytes: {mend}' in problems
    assert f'{text}: broken image: it is no image: {mend}' in problems
    assert not (tmp_path / 'out').exists()


def test_images_without_labels_are_read_where_they_are_trained_on(coco, tmp_path):
    images, labels = coco
    content = json.loads(labels.read_text())
    (images / 'unlabelled.jpg').write_bytes(b'')
    assert find_problems(images, read_labels(images, labels, 'coco')) == []
    for kind, folder in (('yolo', write_yolo(tmp_path / 'y', content)), ('voc', write_voc(tmp_path / 'v', content))):
        (problem,) = find_problems(images, read_labels(images, folder, kind))
        assert problem.startswith(f'{images / "unlabelled.jpg"}: broken image: it has 0 bytes')


def test_broken_masks_are_problems(coco, tmp_path):
    images, labels = coco
    folder = write_masks(tmp_path / 'masks', json.loads(labels.read_text()))
    broken = min(folder.glob('*.png'))
    broken.write_bytes(broken.read_bytes()[:-30])
    (problem,) = find_problems(images, read_labels(images, folder, 'masks'))
    assert problem.startswith(f'{broken}: broken mask: it is damaged, or its end is missing')


@pytest.mark.parametrize(
    ('labelled', 'advice'),
    [
        ((40, 60), 'its labels are for the upright image: save it upright, without the mark'),
        ((60, 40), 'training turns it upright, and its labels are for the image as it is stored: remove the mark and'),
    ],
)
def test_rotation_is_mended_as_the_labels_need_it(labelled, advice, tmp_path):
    path = photograph(tmp_path / '1.jpg', mark=6)
    for backend in ('cv2', 'pillow'):
        assert mmcv.imread(path, backend=backend).shape[:2] == (60, 40)  # what training sees
    item = {'id': 1, 'image_id': 1, 'category_id': 0, 'bbox': [5, 5, *(side - 10 for side in labelled)]}
    image = {'id': 1, 'file_name': '1.jpg', 'width': labelled[0], 'height': labelled[1]}
    content = {'images': [image], 'annotations': [item], 'categories': [{'id': 0, 'name': 'noise'}]}
    write(tmp_path / 'labels.json', content)
    (problem,) = find_problems(tmp_path, read_labels(tmp_path, tmp_path / 'labels.json', 'coco'))
    assert problem.startswith(f'{path}: EXIF rotation: {advice}')
    folder = tmp_path / 'yolo'
    folder.mkdir()
    (folder / '1.txt').write_text('0 0.5 0.5 0.5 0.5\n')
    (folder / 'classes.txt').write_text('noise\n')
    (problem,) = find_problems(tmp_path, read_labels(tmp_path, folder, 'yolo'))  # does not tell which it is
    assert problem.startswith(f'{path}: EXIF rotation: training turns it upright. If its labels fit it so, save it')


def official(backbone: Backbone, path: Path) -> Path:
    torch.save({'model': type(backbone).to_official(backbone.state_dict())}, path)
    return path


def classifier(path: Path) -> Path:
    """As timm's training writes it."""
    timm = pytest.importorskip('timm')
    model = timm.create_model('mmvit_mpvit_tiny')
    torch.save({'arch': 'mmvit_mpvit_tiny', 'state_dict': model.state_dict()}, path)
    return path


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('kind', ['official', 'timm'])
def test_weights_of_a_classifier_are_the_backbones(coco, kind, tmp_path, monkeypatch, capsys):
    file = tmp_path / 'weights.pth'
    file = official(MPViT('tiny'), file) if kind == 'official' else classifier(file)
    config = start(monkeypatch, *coco, tmp_path / 'out', *HEAD, '--weights', str(file))
    assert config.model.backbone.init_cfg == dict(type='mmvit.OfficialWeights', checkpoint=str(file))
    assert config.get('load_from') is None
    assert f'the backbone begins with {file}, the head with random weights' in capsys.readouterr().out
    model = MODELS.build(config.model)
    model.backbone.init_weights()
    stored = torch.load(file, weights_only=True).popitem()[1]
    assert any(value.equal(model.backbone.stem[0][0].weight) for value in stored.values())


@pytest.mark.usefixtures('no_pictures')
def test_weights_of_a_trained_detector_are_loaded_whole(coco, tmp_path, monkeypatch, capsys):
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(CONFIGS / 'retinanet_mpvit_t.py').model)  # of COCO's 80 classes
    file = tmp_path / 'trained.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, file)
    config = start(monkeypatch, *coco, tmp_path / 'out', *HEAD, '--weights', str(file))
    assert config.load_from == str(file)
    assert 'init_cfg' not in config.model.backbone
    assert f'all weights begin with {file}, but for layers of another number of classes' in capsys.readouterr().out
    new = MODELS.build(config.model)
    load_checkpoint(new, str(file), map_location='cpu')
    for name in (next(iter(new.state_dict())), 'bbox_head.retina_reg.weight'):
        assert new.state_dict()[name].equal(model.state_dict()[name])
    torch.save({'state_dict': {**model.state_dict(), 'mask_head.weight': torch.ones(1)}}, file)
    assert find_use(file, CONFIGS / 'retinanet_mpvit_t.py') == 'backbone'  # the heads are of another detector


def test_weights_that_do_not_fit_are_an_error(coco, tmp_path, monkeypatch):
    missing, text = tmp_path / 'missing.pth', tmp_path / 'text.pth'
    text.write_text('weights')
    other = official(RegionViT('tiny'), tmp_path / 'other.pth')
    arch = official(MPViT('xsmall'), tmp_path / 'arch.pth')
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(arch.read_bytes()[:-1000])
    own = 'does not fit --backbone, which is MPViT .tiny.: the file holds'
    for file, message in [
        (missing, 'no checkpoint at .*missing.pth .nothing is there.'),
        (text, 'is a text file and not a checkpoint'),
        (cut, 'is not a whole checkpoint'),
        (other, f"{own} RegionViT 'tiny'"),
        (arch, f"{own} MPViT 'xsmall'"),
    ]:
        with pytest.raises(SystemExit, match=message):
            start(monkeypatch, *coco, tmp_path / 'out', *HEAD, '--weights', str(file))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size', ['big', '800xbig', '16', '1x2x3', '', '-800', '800.5'])
def test_bad_size_is_an_error(coco, size, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        start(monkeypatch, *coco, tmp_path / 'out', f'--size={size}')
    expected = f"argument --size: '{size}' is neither S nor SHORTxLONG of 32 pixels or more, such as 800x1333\n"
    assert capsys.readouterr().err.endswith(expected)


def test_wrong_folders_are_errors(coco, tmp_path, monkeypatch):
    images, labels = coco
    (empty := tmp_path / 'empty').mkdir()
    folder = write_yolo(tmp_path / 'yolo', json.loads(labels.read_text()))
    for arguments, message in [
        ((tmp_path / 'no', labels, tmp_path / 'out'), 'no is not there: give the folder of images'),
        ((labels, labels, tmp_path / 'out'), 'labels.json is a file: give the folder of images'),
        ((images, tmp_path / 'no', tmp_path / 'out'), 'no is not there: mend --labels'),
        ((images, empty, tmp_path / 'out'), 'no .json file and no folder'),
        ((empty, folder, tmp_path / 'out'), 'empty has no images .*: give the folder that they lie in'),
        ((images, labels, labels), 'cannot be written into .*: .*labels.json is a file'),
        ((images, labels, labels / 'out'), 'cannot be written into .*: .*labels.json is a file'),
        ((images, labels, tmp_path / 'out', '--format', 'yolo'), '--format yolo needs --labels to be a folder'),
        ((images, folder, tmp_path / 'out', '--format', 'coco'), '--format coco needs --labels to be a file'),
        ((images, folder, tmp_path / 'out', '--format', 'voc'), '--format voc: .*yolo has no .xml file'),
    ]:
        with pytest.raises(SystemExit, match=message):
            start(monkeypatch, *arguments)
    labels.write_bytes('{"categories": "é"}'.encode('latin-1'))
    with pytest.raises(SystemExit, match='labels.json is no text in UTF-8: save it in that encoding'):
        start(monkeypatch, images, labels, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [('names: {1: a, 2: b}', 'needs names: a list'), ('nc: 2', 'needs names'), ('names: [a, b]', '')],
)
def test_names_of_data_yaml(coco, text, message, tmp_path):
    images, labels = coco
    folder = write_yolo(tmp_path / 'yolo', json.loads(labels.read_text()))
    (folder / 'data.yaml').write_text(text)
    if message:
        with pytest.raises(ValueError, match=message):
            read_labels(images, folder, 'yolo')
    else:
        assert read_labels(images, folder, 'yolo').classes == ['a', 'b']


@pytest.mark.usefixtures('no_pictures')
def test_polygons_of_yolo_become_masks(coco, tmp_path, monkeypatch):
    pytest.importorskip('supervision')
    images, labels = coco
    folder = write_yolo(tmp_path / 'yolo', json.loads(labels.read_text()))
    for path in folder.glob('0*.txt'):
        path.write_text('3 0.2 0.2 0.6 0.2 0.6 0.7 0.2 0.7\n')
    config = start(monkeypatch, images, folder, tmp_path / 'out', '--head', 'maskrcnn', '--backbone', 'mpvit_t')
    content = json.loads(Path(config.val_dataloader.dataset.ann_file).read_text())
    (item,) = content['annotations']
    width = content['images'][0]['width']
    assert item['bbox'][0] == pytest.approx(0.2 * width, abs=1.5)
    assert item['area'] == pytest.approx(0.4 * 0.5 * width * content['images'][0]['height'], rel=0.05)


Drawn = tuple[Image.Image, list[tuple[int, int, int, int]]]  # an image, and the corners of its objects


def galaxies() -> Iterator[Drawn]:
    """Six images of 640x640 pixels, each with eight galaxies of 6 to 12 pixels."""
    data = pytest.importorskip('skimage.data')
    sky = Image.fromarray(data.hubble_deep_field())
    cut = [(105, 382, 38), (705, 451, 44), (469, 49, 32), (387, 58, 34), (406, 388, 28), (405, 698, 36)]
    for number in range(6):
        ground = Image.fromarray((data.gravel, data.grass)[number % 2]()).resize((640, 640))
        image, corners = ground.point(lambda value: value // 3).convert('RGB'), []
        for place in range(8):
            left, top, side = cut[(number + place) % len(cut)]
            size, x, y = 6 + (number + place) % 7, 40 + 70 * place, 60 + (97 * place + 50 * number) % 520
            galaxy = sky.crop((left, top, left + side, top + side)).resize((size, size))
            box = (x, y, x + size, y + size)
            image.paste(ImageChops.lighter(image.crop(box), galaxy), box)
            corners.append(box)
        yield image, corners


def portraits() -> Iterator[Drawn]:
    """Eight images, each with one object in 60 to 95 % of it: a cat, an astronaut, a cup and a rocket, and mirrored."""
    data = pytest.importorskip('skimage.data')
    for name, part, (left, top, right, bottom) in [
        ('chelsea', (0, 0, 451, 300), (0, 0, 380, 300)),
        ('astronaut', (0, 0, 512, 512), (17, 12, 392, 512)),
        ('coffee', (60, 8, 500, 396), (17, 10, 420, 380)),
        ('rocket', (303, 120, 341, 412), (4, 8, 33, 285)),
    ]:
        image = Image.fromarray(getattr(data, name)()).crop(part)
        yield image, [(left, top, right, bottom)]
        yield ImageOps.mirror(image), [(image.width - right, top, image.width - left, bottom)]


def save_yolo(drawn: Iterator[Drawn], folder: Path) -> tuple[Path, Path]:
    """Images, and YOLO's labels of them, of one class."""
    images, labels = folder / 'drawn', folder / 'drawn_labels'
    images.mkdir(), labels.mkdir()
    (labels / 'classes.txt').write_text('thing\n')
    for number, (image, corners) in enumerate(drawn):
        image.save(images / f'{number}.png')
        w, h = image.size
        lines = [f'0 {(a + c) / 2 / w} {(b + d) / 2 / h} {(c - a) / w} {(d - b) / h}\n' for a, b, c, d in corners]
        (labels / f'{number}.txt').write_text(''.join(lines))
    return images, labels


@pytest.mark.parametrize(
    ('drawn', 'size', 'smallest', 'largest', 'advice'),
    [
        (galaxies, '640', 6, 12, '48 of 48 objects (100%) are smaller than the smallest anchor, 32 pixels'),
        (portraits, '800x1333', 400, 910, '2 of 8 objects (25%) are larger than the largest anchor, 812.7 pixels'),
    ],
)
def test_tiny_and_very_large_objects(drawn, size, smallest, largest, advice, tmp_path, monkeypatch, capsys):
    """Two small sets, made of photographs inside scikit-image, in YOLO's format, are checked, plotted and trained on.

    The step of training sees smaller images, to be quick.

    Tiny objects: galaxies are cut out of ``hubble_deep_field`` (NASA, public domain), shrunk and laid on darkened
    ``gravel`` and ``grass`` (CC0). Very large ones: ``chelsea`` and ``coffee`` (CC0), ``astronaut`` and ``rocket``
    (NASA and SpaceX, public domain), cut around one object, whose box was drawn by hand.
    """
    pytest.importorskip('supervision')
    images, labels = save_yolo(drawn(), tmp_path)
    options = ('--head', 'retinanet', '--backbone', 'mpvit_t', '--size', size)
    config = start(monkeypatch, images, labels, tmp_path / 'out', *options)
    printed = capsys.readouterr().out
    assert f'warning: {advice}' in printed
    assert f'warning: {advice}' in (tmp_path / 'out' / 'check.txt').read_text()
    assert Image.open(tmp_path / 'out' / 'sizes.png').width > 100
    sizes = measure(all_labels(tmp_path / 'out'), config)
    assert smallest <= min(sizes.objects) <= max(sizes.objects) <= largest
    init_default_scope('mmdet')
    assert all(number > 0 for number in matched_anchors(config))
    config.train_dataloader.dataset.pipeline[2].scale = (96, 96)
    train_once(config)
    short, long = map(int, re.search(r'take --size (\d+)x(\d+)', printed).groups())
    config.scale = (long, short)
    assert advise(measure(all_labels(tmp_path / 'out'), config), (short, long)) == []


def all_labels(out: Path) -> dict:
    parts = [json.loads((out / f'{part}.json').read_text()) for part in ('train', 'val')]
    return {key: [item for part in parts for item in part[key]] for key in ('images', 'annotations')}


def matched_anchors(config: Config) -> list[int]:
    """With how many anchors the config's assigner matches each object of an image."""
    item = DATASETS.build(config.train_dataloader.dataset)[0]
    head = MODELS.build({**config.model.bbox_head, 'train_cfg': config.model.train_cfg})
    height, width = item['inputs'].shape[1:]
    maps = [(math.ceil(height / stride), math.ceil(width / stride)) for stride, _ in head.prior_generator.strides]
    anchors = torch.cat(head.prior_generator.grid_priors(maps, device='cpu'))
    objects = item['data_samples'].gt_instances
    labelled = InstanceData(bboxes=objects.bboxes.tensor, labels=objects.labels)
    matched = head.assigner.assign(InstanceData(priors=anchors), labelled).gt_inds
    return [int((matched == number).sum()) for number in range(1, len(objects) + 1)]


def train_once(config: Config) -> None:
    """Train one step, whose losses are finite."""
    model = revert_sync_batchnorm(MODELS.build(config.model)).train()
    batch = pseudo_collate([DATASETS.build(config.train_dataloader.dataset)[0]])
    losses = model.train_step(batch, build_optim_wrapper(model, config.optim_wrapper))
    assert all(loss.detach().isfinite() for loss in losses.values())


@pytest.mark.usefixtures('no_pictures')
def test_digits_need_no_advice(coco, tmp_path, monkeypatch, capsys):
    start(monkeypatch, *coco, tmp_path / 'out', '--head', 'retinanet', '--backbone', 'mpvit_t')
    assert 'warning' not in capsys.readouterr().out


def test_advice_follows_how_a_detector_matches():
    objects, strides, anchors = [10.0] * 8 + [900.0] * 2, [8, 16], [32.0, 512.0]
    (both,) = advise(Sizes(objects, strides, anchors, True), (400, 600))
    assert '8 of 10 objects (80%) are smaller than the smallest anchor, 32 pixels, and 2 of 10' in both
    assert both.endswith('at --size 400x600: no size fits both. --head atss needs no such anchors')
    (small,) = advise(Sizes(objects[:8], strides, anchors, True), (400, 600))
    assert small.endswith('at --size 400x600: take --size 1280x1920, or cut the images into parts and label these')
    (large,) = advise(Sizes(objects[8:], strides, anchors, True), (400, 600))
    assert large.endswith('larger than the largest anchor, 512 pixels, at --size 400x600: take --size 224x320')
    assert advise(Sizes(objects, strides, anchors, False), (400, 600)) == []
    (small,) = advise(Sizes([4.0], strides, [], False), (2000, 3000))
    assert 'smaller than the smallest stride, 8 pixels' in small
    assert small.endswith(': cut the images into parts and label these')
    assert advise(Sizes([], strides, anchors, True), (400, 600)) == []


def test_masks_are_asked_for_before_anything_is_written(coco, tmp_path, monkeypatch):
    images, labels = coco
    content = json.loads(labels.read_text())
    for item in content['annotations']:
        item['segmentation'] = []
    write(labels, content)
    with pytest.raises(SystemExit, match='maskrcnn learns masks.*take --head retinanet'):
        start(monkeypatch, images, labels, tmp_path / 'out', '--head', 'maskrcnn')
    assert not (tmp_path / 'out').exists()


def test_bad_input_is_an_error(coco, tmp_path, monkeypatch):
    images, labels = coco
    with pytest.raises(SystemExit, match='mmvit has no config retinanet_resnet.py'):
        start(monkeypatch, images, labels, tmp_path / 'out', '--backbone', 'resnet')
    with pytest.raises(SystemExit, match='--val 1.5 is not between 0 and 1'):
        start(monkeypatch, images, labels, tmp_path / 'out', '--val', '1.5')
    with pytest.raises(SystemExit, match='fpn does not learn from such labels'):
        start(monkeypatch, images, labels, tmp_path / 'out', '--head', 'fpn')
    with pytest.raises(SystemExit, match='no .json file and no folder'):
        start(monkeypatch, images, tmp_path, tmp_path / 'out')
    labels.write_text('{"categories": []}')
    with pytest.raises(SystemExit, match='not in the format of COCO'):
        start(monkeypatch, images, labels, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
