"""Published models: every loader takes the folder, and the card says what is known and nothing else."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import mmengine
import numpy as np
import publish_model as tool
import pytest
import timm
import torch
from commands import run_here
from families import FAMILIES
from hostile import Asks
from huggingface_hub import ModelCard, snapshot_download
from mim.commands.download import download
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from modelindex.load_model_index import load as load_index
from packaging.version import Version
from pooch import file_hash

from mmvit import predict
from mmvit.checkpoints.trained import build_model, load_trained
from mmvit.environment import installed_version
from mmvit.models import MPViT
from mmvit.publishing import publish
from mmvit.publishing.card import READING_FOLDERS
from mmvit.publishing.licences import check_licence, hub_fields
from mmvit.publishing.records import dataset_of, logged_metrics, run_folder, schedule_of, training_versions
from mmvit.publishing.settings import for_others, initial_weights
from mmvit.training import AtomicCheckpointHook

TOOL = Path(tool.__file__)
READS_FOLDERS = Version(timm.__version__) >= Version(READING_FOLDERS)
RUN = '20260101_000000'
META = dict(
    epoch=2,
    iter=8,
    mmengine_version='0.10.7',
    versions=dict(torch='2.9.0', setuptools='80'),
    experiment_name=f'maskrcnn_{RUN}',
    dataset_meta=dict(classes=tuple('0123456789'), palette=[(1, 2, 3)] * 10),
)
SCALARS = [
    {'lr': 0.1, 'loss': 4.0, 'time': 1.0, 'epoch': 1, 'iter': 4, 'step': 4},
    {'coco/bbox_mAP': 0.1, 'coco/segm_mAP': 0.2, 'data_time': 0.1, 'time': 1.0, 'step': 1},
    {'lr': 0.1, 'loss': 3.0, 'time': 1.0, 'epoch': 2, 'iter': 8, 'step': 8},
    {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP': 0.4, 'data_time': 0.1, 'time': 1.0, 'step': 2},
]
LOG = '\n'.join([*map(json.dumps, SCALARS), '{"lr": 0.1, "lo'])  # killed while it wrote
OPTIONS = {'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 5}


@pytest.fixture(scope='module', autouse=True)
def _quick_dumps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))
        yield


def write_trained(name: str, digits: Path, folder: Path, options: dict, **others) -> tuple[Path, Path]:
    """A config of the digits, and what a training leaves: random weights, and the log of two epochs."""
    config = Config.fromfile(f'configs/{name}.py')
    data = {f'{part}_dataloader.dataset.data_root': f'{digits}/' for part in ('train', 'test')}
    config.merge_from_dict({**data, **options})
    config.dump(folder / f'{name}.py')
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    weights = MODELS.build(config.model).state_dict()
    weights.update({key: value + 0.1 for key, value in weights.items() if key.endswith('running_mean')})
    torch.save({'state_dict': weights, 'meta': META, 'optimizer': {}, **others}, folder / 'epoch_2.pth')
    (folder / RUN / 'vis_data').mkdir(parents=True)
    (folder / RUN / 'vis_data/scalars.json').write_text(LOG)
    return folder / f'{name}.py', folder / 'epoch_2.pth'


@pytest.fixture(scope='module', params=FAMILIES, ids=lambda family: family.key)
def published(request, digits, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A detector of a family: config, checkpoint and published folder. All paths of its data are absolute."""
    folder = tmp_path_factory.mktemp('trained')
    name = Path(request.param.digits_config).stem
    options = {'test_evaluator.ann_file': f'{digits}/annotations/instances_val.json'}
    for loader, part in (('train', 'train'), ('test', 'val')):
        options[f'{loader}_dataloader.dataset.ann_file'] = f'{digits}/annotations/instances_{part}.json'
        options[f'{loader}_dataloader.dataset.data_prefix.img'] = f'{digits}/{part}/'
    trained = write_trained(name, digits, folder, {**OPTIONS, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HOME', str(folder))
        out = publish(trained[0], '~/epoch_2.pth', folder / 'zoo' / 'digits', 'cc-by-4.0', 'http://localhost/models/')
    return *trained, out


first_family = pytest.mark.parametrize('published', FAMILIES[:1], indirect=True, ids=lambda family: family.key)


def card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / 'README.md')


def cells(folder: Path, first: str) -> list[str]:
    """The other cells of the row that begins with a word."""
    (row,) = (line for line in card(folder).text.splitlines() if line.startswith(f'| {first} |'))
    return row.strip('| ').split(' | ')[1:]


def entry(folder: Path) -> dict:
    (model,) = mmengine.load(folder / 'metafile.yml')['Models']
    return model


def test_folder_is_complete_and_readable(published, digits):
    folder = published[2]
    (weights,) = folder.glob('digits-*.pth')
    assert {path.name for path in folder.iterdir()} == {
        *('README.md', 'config.json', 'config.py', 'metafile.yml', 'model.safetensors', weights.name)
    }
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    for path in folder.iterdir():
        if path.name != 'README.md':
            assert cells(folder, f'`{path.name}`') == [file_hash(str(path))]
        assert str(digits).encode() not in path.read_bytes()
    kept = torch.load(weights, weights_only=True)
    assert kept.keys() == {'meta', 'state_dict'}
    assert kept['meta']['dataset_meta'] == META['dataset_meta']


def test_timm_gives_the_maps_of_the_detector(published, tmp_path, monkeypatch):
    config, checkpoint, folder = published
    detector = load_trained(Config.fromfile(config), str(checkpoint))[0]
    images = torch.rand(2, 3, 97, 130)
    with torch.no_grad():
        expected = detector.backbone(images)
    fill_cache(tmp_path, folder)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    local = [f'local-dir:{folder}'] if READS_FOLDERS else []
    for source in ('hf-hub:someone/digits', *local):
        backbone = timm.create_model(source, pretrained=True, features_only=True, cache_dir=tmp_path).eval()
        with torch.no_grad():
            maps = backbone(images)
        assert tuple(backbone.feature_info.reduction()) == detector.backbone.out_strides
        for one, other in zip(maps, expected, strict=True):
            assert torch.equal(one, other)
    whole = timm.create_model('hf-hub:someone/digits', pretrained=True, cache_dir=tmp_path)
    assert (whole.num_classes, whole.pretrained_cfg['num_classes']) == (0, 0)
    mean, std = (np.array(whole.pretrained_cfg[name]) * 255 for name in ('mean', 'std'))
    preprocessor = Config.fromfile(config).model.data_preprocessor
    np.testing.assert_allclose(mean, preprocessor.mean, atol=1e-3)
    np.testing.assert_allclose(std, preprocessor.std, atol=1e-3)


def fill_cache(cache: Path, folder: Path) -> None:
    """What huggingface_hub keeps of a model that it has downloaded."""
    model, commit = cache / 'models--someone--digits', '0' * 40
    (model / 'refs').mkdir(parents=True)
    (model / 'refs/main').write_text(commit)
    (model / 'snapshots').mkdir()
    (model / 'snapshots' / commit).symlink_to(folder)


@first_family
def test_boxes_are_those_of_the_original(published, tmp_path, monkeypatch):
    """With the project's own function from a hub's folder, and with mmdet's."""
    config, checkpoint, folder = published
    image = np.random.default_rng(0).integers(0, 255, (67, 131, 3), np.uint8)
    fill_cache(tmp_path, folder)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    local = Path(snapshot_download('someone/digits', cache_dir=tmp_path))
    (weights,) = local.glob('*.pth')
    original, one = (
        predict(*files, image, device='cpu', progress=False)[0].pred_instances
        for files in ((config, checkpoint), (local / 'config.py', weights))
    )
    assert len(original) == 5
    for key in ('bboxes', 'scores', 'labels', 'masks'):
        assert torch.equal(original[key], one[key])
    model = init_detector(str(folder / 'config.py'), str(weights), device='cpu')
    assert model.dataset_meta['classes'] == META['dataset_meta']['classes']
    expected = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.equal(weight, expected[key]) for key, weight in model.state_dict().items())


@first_family
def test_card_of_a_detector(published):
    folder = published[2]
    data = card(folder).data
    assert (data.license, data.library_name, data.pipeline_tag) == ('cc-by-4.0', 'mmvit', 'image-segmentation')
    assert {'mmvit', 'mmdetection', 'timm', 'instance-segmentation'} == set(data.tags)
    results = {result.metric_type: (result.metric_value, result.task_type) for result in data.eval_results}
    assert results == {
        'coco/bbox_mAP': (0.3, 'object-detection'),
        'coco/segm_mAP': (0.4, 'image-segmentation'),
    }
    assert cells(folder, 'coco/bbox_mAP') == ['0.3']
    assert cells(folder, 'training') == ['CocoDataset', 'instances_train.json', '32']
    assert cells(folder, 'torch') == ['2.9.0']
    assert cells(folder, 'of this checkpoint') == ['epoch 2, iter 8']
    assert '10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.' in card(folder).text
    assert 'Weights: CC-BY-4.0.' in card(folder).text


@pytest.fixture
def address(published):
    """Of a server that has the folder's parent under /models."""
    handler = partial(SimpleHTTPRequestHandler, directory=published[2].parent)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@first_family
def test_weights_come_from_a_private_server(published, address, tmp_path, monkeypatch):
    """With mmvit's loader, which compares the hash, and with `mim download` out of a package of one's own."""
    folder = published[2]
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    url = entry(folder)['Weights'].replace('http://localhost/models', address)
    config = Config.fromfile(folder / 'config.py')
    assert load_trained(config, url)[1]['classes'] == META['dataset_meta']['classes']

    package = make_package(tmp_path / 'site', folder, address)
    monkeypatch.syspath_prepend(str(package.parent))
    download('private_zoo', ['digits'], dest_root=str(tmp_path / 'got'))
    (weights,) = folder.glob('*.pth')
    assert (tmp_path / 'got' / weights.name).read_bytes() == weights.read_bytes()
    assert Config.fromfile(tmp_path / 'got/digits.py').model == config.model

    damaged = folder.parent / 'digits' / weights.name.replace('.pth', '.copy')
    weights.rename(damaged)
    weights.write_bytes(damaged.read_bytes()[:-1] + b'x')
    (tmp_path / 'hub').rename(tmp_path / 'before')
    try:
        with pytest.raises(RuntimeError, match='its sha256 is'):
            load_trained(config, url)
    finally:
        damaged.replace(weights)


def make_package(site: Path, folder: Path, address: str) -> Path:
    """An installed package as docs/publish.md shows it, with the published folder without its weights."""
    models = site / 'private_zoo' / '.mim'
    (models / 'digits').mkdir(parents=True)
    (site / 'private_zoo/__init__.py').touch()
    (models / 'model-index.yml').write_text('Import: [digits/metafile.yml]')
    (models / 'digits/config.py').write_text((folder / 'config.py').read_text())
    metafile = (folder / 'metafile.yml').read_text().replace('http://localhost/models', address)
    (models / 'digits/metafile.yml').write_text(metafile)
    load_index(str(models / 'model-index.yml')).check()
    metadata = site / 'private_zoo-1.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: private_zoo\nVersion: 1\n')
    (metadata / 'top_level.txt').write_text('private_zoo\n')
    return site / 'private_zoo'


@pytest.fixture(scope='module')
def segmenter(digits, tmp_path_factory) -> tuple[Path, Path]:
    """Of iterations, with averaged weights, from several GPUs."""
    folder = tmp_path_factory.mktemp('segmenter')
    options = {'model.backbone.norm_cfg.type': 'SyncBN'}
    return write_trained('upernet_mpvit_t_digits', digits, folder, options, ema_state_dict={'steps': torch.tensor(8)})


def test_card_of_a_segmenter(segmenter, tmp_path, monkeypatch, capsys):
    """The command, with results of its own; the log's are of epochs, and the config's of iterations."""
    results = tmp_path / 'results.json'
    results.write_text('{"mIoU": 51.5, "data_time": 0.1, "time": 0.2}')
    folder = tmp_path / 'segmenter'
    monkeypatch.setenv('HOME', str(tmp_path))
    words = ['--out', folder, '--results', '~/results.json', '--license', 'LicenseRef-Mine', '--url', 'https://a.org/b']
    run_here(monkeypatch, TOOL, *segmenter, *words)
    assert str(folder / 'README.md') in capsys.readouterr().out
    with pytest.raises(SystemExit, match='nothing written: there is something in'):
        run_here(monkeypatch, TOOL, *segmenter, *words)
    data = card(folder).data
    assert (data.license, data['license_name'], data.pipeline_tag) == ('other', 'mine', 'image-segmentation')
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [('mIoU', 51.5)]
    assert cells(folder, 'testing') == ['BaseSegDataset', 'semantic/val', '4']
    assert cells(folder, 'weights') == ["averaged (mmengine's EMAHook)"]
    model = entry(folder)
    assert model['Weights'] == f'https://a.org/b/segmenter/{next(folder.glob("*.pth")).name}'
    assert model['Results'][0]['Task'] == 'Semantic Segmentation'
    assert model['Metadata']['Weights License'] == 'LicenseRef-Mine'
    assert mmengine.load(folder / 'config.json')['model_args']['norm_cfg']['type'] == 'BN'


def test_what_is_not_known_is_not_recorded(segmenter, tmp_path):
    """A bare state dict, of data that are elsewhere. No file names a folder of the machine."""
    config = Config.fromfile(segmenter[0])
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[name].dataset.update(data_root='/home/me/nowhere/', ann_file='/home/me/data/val.txt')
        config[name].dataset.data_prefix.seg_map_path = '/home/me/data/masks/'
    config.update(data_root='/home/me/nowhere/', dataset=None, load_from='/home/me/all.pth')
    config.test_evaluator = [dict(config.test_evaluator, seg_prefix='/home/me/data/masks')]
    config.model.init_cfg = dict(type='Pretrained', checkpoint='/home/me/whole.pth')
    config.model.backbone.init_cfg = dict(type='mmvit.OfficialWeights', checkpoint='/home/me/mpvit_tiny.pth')
    config.model.backbone.arch = {**MPViT.arch_zoo['tiny'], 'num_paths': (2, 3, 3, 2)}
    config.dump(tmp_path / 'c.py')
    torch.save(build_model(config).state_dict(), tmp_path / 'm.pth')
    folder = publish(tmp_path / 'c.py', tmp_path / 'm.pth', tmp_path / 'out')
    text = card(folder).text
    assert '## Metrics\n\nNot recorded.' in text
    assert 'Weights: not stated.' in text
    assert 'timm cannot load the backbone: its arch has no name.' in text
    assert card(folder).data.license is None
    assert '## Versions\n\nNot recorded.' in text
    assert cells(folder, 'training')[1:] == ['val.txt', 'not recorded']
    assert set(cells(folder, 'began with')[0].split(', ')) == {'all.pth', 'mpvit_tiny.pth', 'whole.pth'}
    assert not (folder / 'config.json').exists()
    (weights,) = folder.glob('*.pth')
    assert entry(folder)['Weights'] == f'out/{weights.name}'
    assert not any(b'/home/me' in path.read_bytes() for path in folder.iterdir())
    assert not list(initial_weights(Config.fromfile(folder / 'config.py').model))
    image = np.zeros((64, 96, 3), np.uint8)
    (sample,) = predict(folder / 'config.py', weights, image, device='cpu', progress=False)
    assert sample.pred_sem_seg.data.shape == (1, 64, 96)


def test_initial_weights_are_left_out():
    """Those of a list of initialisers, and in the older setting of a model."""
    inits = [dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='a.pth')]
    head = dict(init_cfg=dict(type='Normal', layer='Conv2d'))
    model = dict(pretrained='b.pth', backbone=dict(init_cfg=inits), neck=None, heads=[dict(init_cfg=inits[1]), head])
    written = for_others(Config(dict(model=model))).model
    assert (written.pretrained, written.backbone.init_cfg, written.heads[0].init_cfg) == (None, None, None)
    assert written.heads[1] == head


def test_config_of_classes(tmp_path):
    """mmengine's newer configs import what they name."""
    (tmp_path / 'c.py').write_text(
        'from mmengine.model import PretrainedInit\nfrom mmdet.datasets import CocoDataset\n'
        "model = dict(type='RetinaNet', init_cfg=dict(type=PretrainedInit, checkpoint='/home/me/a.pth'))\n"
        "train_dataloader = dict(dataset=dict(type=CocoDataset, ann_file='/home/me/x.json'))\n"
    )
    for_others(Config.fromfile(tmp_path / 'c.py')).dump(tmp_path / 'written.py')
    written = Config.fromfile(tmp_path / 'written.py')
    assert written.train_dataloader.dataset == dict(type='mmdet.datasets.CocoDataset', ann_file='x.json')
    assert written.model.init_cfg is None


@first_family
@pytest.mark.parametrize('text', ['{"images": [', '{}'])
def test_broken_annotations_cost_the_number_of_images(published, tmp_path, text):
    config = Config.fromfile(published[0])
    init_default_scope(config.default_scope)
    (tmp_path / 'broken.json').write_text(text)
    config.train_dataloader.dataset.ann_file = str(tmp_path / 'broken.json')
    data = dataset_of(config, 'train_dataloader')
    assert (data.annotations, data.images) == ('broken.json', None)


@pytest.mark.parametrize(
    ('licence', 'name', 'own'),
    [
        ('apache-2.0', 'apache-2.0', None),
        ('AGPL-3.0', 'agpl-3.0', None),
        ('AGPL-3.0-only', 'other', 'agpl-3.0-only'),  # the hub does not know it
        ('MIT OR Apache-2.0', 'other', 'mit-or-apache-2.0'),
        ('LicenseRef-MIT', 'other', 'mit'),
    ],
)
def test_licences_of_the_hub(licence, name, own):
    fields = hub_fields(check_licence(licence))
    assert (fields['license'], fields.get('license_name')) == (name, own)


OF_EPOCHS = dict(train_cfg=dict(max_epochs=2), model={})
OF_ITERATIONS = dict(train_cfg=dict(max_iters=8), model={})
LOGS_ITERATIONS = dict(default_hooks=dict(logger=dict(log_metric_by_epoch=False)))


@pytest.mark.parametrize(
    ('settings', 'change', 'found'),
    [
        (OF_EPOCHS, {}, 0.3),
        (OF_EPOCHS, {'epoch': 1}, 0.1),
        (OF_EPOCHS, {'epoch': 3}, None),  # validated later, or never
        (OF_EPOCHS, {'experiment_name': 'another_20250101_000000'}, None),
        (OF_EPOCHS, {'mmengine_version': None}, None),
        (OF_ITERATIONS | LOGS_ITERATIONS, {'epoch': 0, 'iter': 1}, 0.1),
        (OF_ITERATIONS, {}, None),
    ],
)
def test_metrics_are_of_the_checkpoint(tmp_path, settings, change, found):
    """Those of another epoch or run, or of an interrupted epoch, are not taken."""
    meta = {key: value for key, value in {**META, **change}.items() if value is not None}
    (tmp_path / RUN / 'vis_data').mkdir(parents=True)
    (tmp_path / RUN / 'vis_data/scalars.json').write_text(LOG)
    config = Config(settings)
    for name, expected in (('epoch_2.pth', found), ('interrupted.pth', None)):
        path = tmp_path / name
        metrics = logged_metrics(config, path, meta, run_folder(path, meta))
        assert metrics.get('coco/bbox_mAP') == expected
        assert not metrics.keys() & {'time', 'step', 'coco/bbox_mAP_l'}
        is_dated = name == 'epoch_2.pth' and 'mmengine_version' in meta
        assert ('of this checkpoint' in schedule_of(config, meta, path, False)) == is_dated


@first_family
def test_what_cannot_be_published_leaves_nothing(segmenter, published, tmp_path):
    config, checkpoint = segmenter
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').touch()
    (tmp_path / 'broken.pth').write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / 'text.json').write_text('[1]')
    torch.save({'state_dict': Asks(print, 'code has run')}, tmp_path / 'hostile.pth')
    out = tmp_path / 'out'
    for name, part in (('model.py', 'model'), ('data.py', 'train_dataloader.dataset')):
        changed = Config.fromfile(config)
        changed.merge_from_dict({f'{part}.type': 'Mine'})
        changed.dump(tmp_path / name)
    unregistered = 'Mine is not in the .* registry.*custom_imports'
    for arguments, error, words in (
        ((config, checkpoint, tmp_path / 'full'), FileExistsError, 'something in .*full already'),
        ((config, checkpoint, out, 'cc-by'), ValueError, 'CC-BY-4.0'),
        ((config, checkpoint, out, None, 'server/models'), ValueError, 'no address'),
        ((config, tmp_path / 'broken.pth', out), RuntimeError, 'fetch it again'),
        ((config, tmp_path / 'hostile.pth', out), RuntimeError, 'is refused'),
        ((config, published[1], out), RuntimeError, 'does not fit .*upernet.*missing'),
        ((config, checkpoint, out, None, None, tmp_path / 'text.json'), ValueError, 'has no metrics'),
        ((tmp_path / 'model.py', checkpoint, out), ValueError, f'model.py: {unregistered}'),
        ((tmp_path / 'data.py', checkpoint, out), ValueError, f'data.py: {unregistered}'),
        ((config, tmp_path / 'none.pth', out), FileNotFoundError, 'no checkpoint'),
    ):
        with pytest.raises(error, match=words):
            publish(*arguments)
    written = {'broken.pth', 'data.py', 'full', 'hostile.pth', 'model.py', 'text.json'}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_checkpoints_name_the_versions_that_trained_them():
    checkpoint = {'meta': {}}
    AtomicCheckpointHook().before_save_checkpoint(None, checkpoint)
    assert training_versions(checkpoint['meta'])['torch'] == installed_version('torch')
