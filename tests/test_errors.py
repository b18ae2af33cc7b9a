"""The errors of a detector: made-up ones have the right kinds in the table and in the pictures."""

import json
import sys
from collections import Counter
from pathlib import Path

import errors as tool
import numpy as np
import pytest
import torch
from commands import run_here
from hotcoco import COCO
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mmengine.config import Config
from PIL import Image
from test_predict import OPTIONS, write_model

from mmvit.predicting import Predictor
from mmvit.tide import KINDS, evaluate, find_kinds, sum_up

TOOL = Path(tool.__file__)
CLASSES = tuple('0123456789')
SIZE = (131, 97)


def item(image: int, category: int, box: list[float], score: float | None = None, corners: int = 4, **more) -> dict:
    """An object, or a detection if it has a score, whose mask has so many corners of its box."""
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h][: 2 * corners]]
    found = {} if score is None else {'score': score}
    return dict(image_id=image, category_id=category, bbox=box, segmentation=outline, **found, **more)


def labels_of(objects: list[dict], images: int) -> dict:
    width, height = SIZE
    return {
        'images': [dict(id=i, file_name=f'{i}.png', width=width, height=height) for i in range(1, images + 1)],
        'categories': [dict(id=10 + label, name=name) for label, name in enumerate(CLASSES)],
        'annotations': [dict(id=i, area=o['bbox'][2] * o['bbox'][3], iscrowd=0) | o for i, o in enumerate(objects, 1)],
    }


# An object of class 4 is missed, and those of class 1, 2 and 3 have other detections: right and twice, of class 5,
# and shifted by half of its width. There is a detection of nothing, and one of class 6 is shifted and of class 7.
OBJECTS = [
    item(1, 11, [5, 5, 20, 20]),
    item(1, 12, [40, 5, 20, 20]),
    item(1, 13, [75, 5, 20, 20]),
    item(1, 14, [5, 40, 20, 20]),
    item(2, 16, [5, 5, 20, 20]),
]
RESULTS = [
    item(1, 11, [5, 5, 20, 20], 0.9),
    item(1, 11, [6, 5, 20, 20], 0.8),
    item(1, 15, [40, 5, 20, 20], 0.7),
    item(1, 13, [85, 5, 20, 20], 0.6),
    item(1, 11, [75, 60, 20, 20], 0.95),
    item(2, 17, [15, 5, 20, 20], 0.5),
    item(2, 18, [75, 60, 20, 20], 0.2),
]
COUNTS = {'Correct': 1, 'Miss': 2, 'Bkg': 1, 'Cls': 1, 'Loc': 1, 'Both': 1, 'Dupe': 1}
TEXTS = {
    'missed: 4 ': 'Miss',
    'missed: 6 ': 'Miss',
    'background: 1 (0.95)': 'Bkg',
    'wrong class: 5 (0.70)': 'Cls',
    'misplaced: 3 (0.60)': 'Loc',
    'class and place: 7 (0.50)': 'Both',
    'duplicate: 1 (0.80)': 'Dupe',
}


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with two images of an odd size, their labels, results and a config."""
    for name in ('1.png', '2.png'):
        noise = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / 'labels.json').write_text(json.dumps(labels_of(OBJECTS, 2)))
    (tmp_path / 'results.json').write_text(json.dumps(RESULTS))
    write_config(tmp_path)
    return tmp_path


def write_config(folder: Path, scope: str = 'mmdet', ann_file: str = 'labels.json', classes=CLASSES, **more) -> None:
    dataset = dict(type='CocoDataset', data_root=f'{folder}/', ann_file=ann_file, metainfo=dict(classes=classes))
    Config(dict(default_scope=scope, test_dataloader=dict(dataset=dataset | more))).dump(folder / 'config.py')


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return figures


def rows(folder: Path) -> list[dict[str, list[str]]]:
    """The cells of each row of both tables, by the names of the kinds."""
    tables = (folder / 'errors.md').read_text().split('AP50 of')[1:]
    lines = [[line.split('|')[1:-1] for line in table.splitlines() if line.startswith('|')] for table in tables]
    return [{cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table} for table in lines]


def test_each_kind_is_counted_and_drawn(data, drawn, monkeypatch, capsys):
    out = data / 'out'
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', out)
    tables = rows(out)
    assert (out / 'errors.md').read_text() in capsys.readouterr().out
    assert len(tables) == len(drawn) == 2
    for table, figure in zip(tables, drawn, strict=True):
        for key, kind in KINDS.items():
            assert table[kind.name][1] == str(COUNTS[key])
            assert table[kind.name][2] == str(COUNTS[key] + (key == 'Bkg'))  # one has a score of 0.2
            assert table[kind.name][4] == kind.meaning
        texts = {text.get_text(): text.get_color() for axes in figure.axes for text in axes.texts}
        assert texts == {text: KINDS[key].colour for text, key in TEXTS.items()}
        assert [axes.get_title() for axes in figure.axes] == ['1.png: 5 errors', '2.png: 2 errors']
        legend = {text.get_text() for text in figure.legends[0].get_texts()}
        assert legend == {'object', *(kind.name for kind in KINDS.values())}
    boxes = [
        Counter((to_hex(patch.get_edgecolor()), patch.get_linewidth()) for patch in axes.patches)
        for axes in drawn[0].axes
    ]
    thick = {
        1: ['Miss', 'Bkg', 'Cls', 'Loc', 'Dupe'],
        2: ['Miss', 'Both'],
    }
    for number, found in enumerate(boxes, 1):
        expected = Counter((to_hex(KINDS[key].colour), tool.THICK) for key in thick[number])
        expected[to_hex('white'), tool.THIN] = sum(o['image_id'] == number for o in OBJECTS)
        expected[to_hex('lime'), tool.THIN] = number == 1
        assert found == +expected


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Objects, some of them crowds, and detections, most of them near objects."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        return [*rng.integers(0, 60, 2).tolist(), *rng.integers(8, 30, 2).tolist()]

    def place() -> tuple[int, int, list[float]]:
        return int(rng.integers(1, 9)), int(rng.integers(10, 13)), box()

    objects = [item(*place(), corners=3, iscrowd=int(i % 9 == 0)) for i in range(50)]
    results = [item(*place(), rng.random(), corners=3) for _ in range(40)]
    for one in objects[:35] * 3:
        near = (np.array(one['bbox']) + rng.integers(-4, 5, 4)).clip(1).tolist()
        category = one['category_id'] if rng.random() < 0.6 else int(rng.integers(10, 13))
        results.append(item(one['image_id'], category, near, rng.random(), corners=3))
    return labels_of(objects, 8), results


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(5))
def test_kinds_of_detections_add_up_to_the_counts_of_hotcoco(seed, iou_type):
    labels, results = random_case(seed)
    evaluation = evaluate(COCO(labels), results, iou_type)
    found = Counter(key for kinds in find_kinds(evaluation).values() for key, _ in kinds)
    assert found == sum_up(evaluation).counts
    assert min(found[key] for key in KINDS) > 0


def tied_case(seed: int) -> tuple[dict, list[dict]]:
    """Boxes on a lattice, of which many have the same IoU with an object and with a crowd."""
    rng = np.random.default_rng(seed)

    def place() -> tuple[int, int, list[float]]:
        box = [*rng.integers(0, 8, 2) * 5, *rng.integers(1, 5, 2) * 5]
        return int(rng.integers(1, 4)), int(rng.integers(10, 13)), [int(value) for value in box]

    objects = [item(*place(), iscrowd=int(rng.random() < 0.3)) for _ in range(40)]
    return labels_of(objects, 3), [item(*place(), rng.random()) for _ in range(80)]


@pytest.mark.parametrize('seed', [1, 4, 21, 50])  # orders of the objects decide these
def test_ties_are_decided_as_hotcoco_does(seed):
    labels, results = tied_case(seed)
    evaluation = evaluate(COCO(labels), results, 'bbox')
    found = Counter(key for kinds in find_kinds(evaluation).values() for key, _ in kinds)
    assert found == Counter(sum_up(evaluation).counts)


def test_no_detections(data, drawn, monkeypatch):
    (data / 'results.json').write_text('[]')
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out', '--count', 1)
    (table,) = rows(data / 'out')
    assert table['missed'][1:3] == ['5', '5']
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ['1.png: 4 errors']


def test_nothing_is_drawn_without_errors(data, drawn, monkeypatch):
    perfect = [dict(one, score=1.0) for one in OBJECTS]
    (data / 'results.json').write_text(json.dumps(perfect))
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    assert 'AP50 of boxes: 1.000' in (data / 'out' / 'errors.md').read_text()
    assert not drawn


def test_nothing_of_an_earlier_run_stays(data, monkeypatch):
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    assert (data / 'out' / 'masks.png').exists()
    (data / 'results.json').write_text(json.dumps([dict(one, score=1.0) for one in OBJECTS]))
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    names = ['errors.md', 'images.json', 'predictions.json']
    assert sorted(path.name for path in (data / 'out').iterdir()) == names


def test_the_table_is_there_before_a_broken_image_is_drawn(data, monkeypatch, capsys):
    (data / '1.png').write_bytes(b'broken')
    with pytest.raises(SystemExit, match='error: .*1.png is not an image that can be read'):
        run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    assert (data / 'out' / 'errors.md').read_text() in capsys.readouterr().out


def test_one_file_may_be_two_images(data, drawn, monkeypatch):
    labels = labels_of(OBJECTS, 2)
    labels['images'][1]['file_name'] = '1.png'
    (data / 'labels.json').write_text(json.dumps(labels))
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    assert [axes.get_title() for axes in drawn[0].axes] == ['1.png: 5 errors', '1.png: 2 errors']


@pytest.mark.parametrize('mask', [{}, {'segmentation': []}])
def test_boxes_alone(mask, data, monkeypatch):
    """hotcoco would take the boxes for masks."""
    boxes = [{key: value for key, value in one.items() if key != 'segmentation'} | mask for one in RESULTS]
    (data / 'results.json').write_text(json.dumps(boxes))
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out', '--count', 1)
    assert len(rows(data / 'out')) == 1
    assert not (data / 'out' / 'masks.png').exists()


def test_images_that_were_not_predicted_are_left_out(data, monkeypatch):
    """images.json of ``mim run mmvit predict`` names those that were."""
    content = labels_of([], 1)
    (data / 'images.json').write_text(json.dumps(content))
    (data / 'results.json').write_text(json.dumps([one for one in RESULTS if one['image_id'] == 1]))
    run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json', '--out', data / 'out')
    assert (data / 'out' / 'errors.md').read_text().startswith('1 images, 4 objects, 5 detections')
    assert rows(data / 'out')[0]['missed'][1] == '1'


@pytest.fixture(scope='module')
def detector(digits, tmp_path_factory) -> tuple[Path, Path]:
    return write_model('maskrcnn_mpvit_t_digits', digits, tmp_path_factory.mktemp('detector'), OPTIONS)


def test_command(detector, data, monkeypatch, capsys):
    """Of a checkpoint; and again, of the predictions that it wrote."""
    config = Config.fromfile(detector[0])
    config.test_dataloader.dataset.update(data_root=f'{data}/', ann_file='labels.json', data_prefix=dict(img=''))
    config.dump(data / 'config.py')
    out, again = data / 'out', data / 'again'
    options = ('--score', 0, '--count', 2, '--device', 'cpu')
    run_here(monkeypatch, TOOL, data / 'config.py', detector[1], '--out', out, *options)
    assert str(out) in capsys.readouterr().out
    names = ['boxes.png', 'errors.md', 'images.json', 'masks.png', 'predictions.json']
    assert sorted(path.name for path in out.iterdir()) == names
    results = json.loads((out / 'predictions.json').read_text())
    assert {result['image_id'] for result in results} == {1, 2}
    assert {result['category_id'] for result in results} <= set(range(10, 20))
    for table in rows(out):
        assert sum(int(cells[2]) for name, cells in table.items() if name in NAMES - {'missed'}) == len(results)
    run_here(monkeypatch, TOOL, data / 'config.py', out / 'predictions.json', '--out', again, *options)
    assert (again / 'errors.md').read_text() == (out / 'errors.md').read_text()
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, data / 'wrong.pth')
    for name, message in (('wrong.pth', 'Error.s. in loading state_dict'), ('gone.pth', '.*gone.pth')):
        with pytest.raises(SystemExit, match=f'error: {message}'):
            run_here(monkeypatch, TOOL, data / 'config.py', data / name, '--out', data / 'none')
    assert not (data / 'none').exists()


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_what_was_predicted_before_an_error_is_kept(error, detector, data, monkeypatch, capsys):
    config = Config.fromfile(detector[0])
    config.test_dataloader.dataset.update(data_root=f'{data}/', ann_file='labels.json', data_prefix=dict(img=''))
    config.dump(data / 'config.py')
    prepare = Predictor._prepare

    def breaks_off(predictor, frame):
        if frame.name == '2.png':
            raise error
        return prepare(predictor, frame)

    monkeypatch.setattr(Predictor, '_prepare', breaks_off)
    out, options = data / 'out', ('--score', 0, '--device', 'cpu')
    with pytest.raises(SystemExit):
        run_here(monkeypatch, TOOL, data / 'config.py', detector[1], '--out', out, *options)
    assert f'{out} has the predictions for 1 of 2 images' in capsys.readouterr().err
    run_here(monkeypatch, TOOL, data / 'config.py', out / 'predictions.json', '--out', out, *options)
    assert (out / 'errors.md').read_text().startswith('1 images, 4 objects, 5 detections')


NAMES = {kind.name for kind in KINDS.values()}


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (
            dict(scope='mmseg'),
            (),
            'the config is of mmseg, .* `mim test mmseg CONFIG --checkpoint CHECKPOINT` measures',
        ),
        (dict(ann_file='gone.json'), (), "no annotation file of COCO's format here .*gone.json"),
        (dict(ann_file=''), (), "no annotation file of COCO's format here .no name"),
        (dict(ann_file='images_only.json'), (), 'images_only.json has no boxes'),
        (dict(ann_file='panoptic.json'), (), 'panoptic.json has no boxes'),
        (dict(ann_file='elsewhere.json'), (), 'there is no file and no folder .*elsewhere.png'),
        (dict(classes=('0', 'cat')), (), 'labels.json lacks the classes cat of the config'),
        ({}, ('--count', 0), '--count 0: take at least one image'),
        (dict(type='Lost'), (), 'custom_imports of the config lack the module of its test data .*Lost'),
        (dict(type='RepeatDataset', dataset={}), (), 'the test data are a RepeatDataset around others'),
        ({}, ('--out', 'labels.json'), 'cannot be written into labels.json: .*labels.json is a file'),
        ({}, ('--out', 'labels.json/new/out'), 'cannot be written into labels.json/new/out: .*labels.json is a file'),
        ({}, ('text.json',), "text.json does not hold results in COCO's format"),
        ({}, ('labels.json',), "labels.json does not hold results in COCO's format"),
        ({}, ('high.json',), "high.json does not hold results in COCO's format"),
        ({}, ('no_box.json',), "no_box.json does not hold results in COCO's format"),
        ({}, ('short_box.json',), "short_box.json does not hold results in COCO's format"),
        ({}, ('many.json',), "many.json does not hold results in COCO's format"),
        ({}, ('empty/results.json',), "empty/images.json does not hold images in COCO's format"),
        ({}, ('text/results.json',), "text/images.json does not hold images in COCO's format"),
        ({}, ('other/results.json',), 'other/images.json names image 1 cat.png, .* annotation file 1.png'),
        ({}, ('others.json',), "others.json has results for images that the config's annotation file does not name"),
    ],
)
def test_errors_say_what_is_wrong(change, options, message, data, monkeypatch):
    monkeypatch.chdir(data)
    labels = labels_of(OBJECTS, 2)
    for name, content in (
        ('images_only', {key: labels[key] for key in ('images', 'categories')}),
        ('panoptic', labels | {'annotations': [{'image_id': 1, 'segments_info': []}]}),
        ('elsewhere', labels | {'images': [image | {'file_name': 'elsewhere.png'} for image in labels['images']]}),
        ('others', [item(3, 11, [5, 5, 20, 20], 0.9)]),
    ):
        Path(f'{name}.json').write_text(json.dumps(content))
    for name, change_of_item in (
        ('high', dict(score='high')),
        ('no_box', dict(bbox=None)),
        ('short_box', dict(bbox=[1, 2, 3])),
        ('many', dict(image_id=[1])),
    ):
        Path(f'{name}.json').write_text(json.dumps([RESULTS[0] | change_of_item]))
    for name, text in (
        ('empty', '{}'),
        ('text', 'no images'),
        ('other', json.dumps({'images': [dict(id=1, file_name='cat.png')]})),
    ):
        Path(name).mkdir()
        Path(name, 'images.json').write_text(text)
        Path(name, 'results.json').write_text('[]')
    Path('text.json').write_text('no results')
    write_config(data, **change)
    arguments = options if any('.json' in str(option) for option in options[:1]) else ('results.json', *options)
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run_here(monkeypatch, TOOL, 'config.py', *arguments)
    assert not Path('errors').exists()


def test_a_folder_that_is_write_protected(data, monkeypatch):
    monkeypatch.setattr('os.access', lambda *_: False)
    with pytest.raises(SystemExit, match='error: results cannot be written into .*out: .* is write-protected'):
        run_here(monkeypatch, TOOL, data / 'config.py', data / 'gone.pth', '--out', data / 'out')


def test_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, 'hotcoco', None)
    with pytest.raises(SystemExit, match=r"error: .*hotcoco.*: run `pip install 'mmvit\[project\]'`"):
        run_here(monkeypatch, TOOL, data / 'config.py', data / 'results.json')
