"""The main job as a user does it: mim's commands on files on disk, an interrupted run."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import BIN, ENV, MMDET, data_options, program, run, run_here, scalars
from mmdet.datasets import CocoDataset

pytestmark = pytest.mark.slow

COCO_CONFIG = 'configs/maskrcnn_mpvit_s.py'
LET_ALL_THROUGH = 'model.test_cfg.rcnn.score_thr=0.0'  # a few steps in, nothing scores well


@pytest.fixture(scope='session')
def coco(digits, tmp_path_factory) -> Path:
    """A few images laid out and named as COCO's; one has no boxes."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for split, count in (('train', 8), ('val', 2)):
        shutil.copytree(digits / split, root / f'{split}2017')
        content = json.loads((digits / 'annotations' / f'instances_{split}.json').read_text())
        content['images'] = content['images'][:count]
        content['annotations'] = [a for a in content['annotations'] if 1 < a['image_id'] <= count]
        content['categories'] = [{'id': i, 'name': name} for i, name in enumerate(CocoDataset.METAINFO['classes'])]
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def coco_options(coco) -> list[str]:
    scale = '(167,100)'  # neither side a multiple of a stride
    resizes = [f'{s}_dataloader.dataset.pipeline.{i}' for s, i in (('train', 2), ('val', 1), ('test', 1))]
    return [
        *data_options(coco, '2017'),
        *(f'{resize}.scale={scale}' for resize in resizes),
        'train_cfg.max_epochs=2',
        LET_ALL_THROUGH,
    ]


@pytest.fixture(scope='session')
def killed_run(coco_options, tmp_path_factory) -> Path:
    """The work dir of a training that was killed after its first epoch's checkpoint."""
    work_dir = tmp_path_factory.mktemp('coco_run')
    command = [BIN / 'mim', 'train', MMDET, COCO_CONFIG, '--work-dir', work_dir, *coco_options]
    with open(work_dir / 'output.txt', 'w') as output:
        process = subprocess.Popen(
            list(map(str, command)), env=ENV, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 600
        while not (work_dir / 'last_checkpoint').exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)  # mim and what it started
        process.wait()
    assert (work_dir / 'epoch_1.pth').exists(), (work_dir / 'output.txt').read_text()[-6000:]
    assert not (work_dir / 'epoch_2.pth').exists()
    return work_dir


@pytest.fixture(scope='session')
def trained_coco(killed_run, coco_options) -> Path:
    output = run('mim', 'train', MMDET, COCO_CONFIG, '--work-dir', killed_run, '--resume', *coco_options)
    assert 'resumed epoch: 1' in output
    assert 'Epoch(train) [1]' not in output
    return killed_run


@pytest.mark.lane
def test_coco_recipe_trains_and_resumes_after_a_kill(trained_coco):
    assert len(scalars(trained_coco, 'loss')) >= 8
    assert (trained_coco / 'epoch_2.pth').exists()


@pytest.mark.lane
def test_coco_recipe_is_tested_from_its_checkpoint(trained_coco, coco_options, tmp_path):
    checkpoint = trained_coco / 'epoch_2.pth'
    output = run('mim', 'test', MMDET, COCO_CONFIG, '--checkpoint', checkpoint, '--work-dir', tmp_path, *coco_options)
    assert 'coco/segm_mAP' in output


@pytest.mark.parametrize('config', ['configs/maskrcnn_regionvit_s.py', 'configs/maskrcnn_pyramid_tnt_s.py'])
def test_other_coco_recipes_train_and_validate(config, coco_options, tmp_path, monkeypatch):
    options = (*coco_options, *named(tmp_path), 'train_cfg.max_epochs=1')
    run_here(monkeypatch, program('mmdet', 'train.py'), config, '--work-dir', tmp_path, *options)
    losses = scalars(tmp_path, 'loss')
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert len(scalars(tmp_path, 'coco/segm_mAP')) == 1


def test_digits_detector_learns(family, digits, tmp_path, monkeypatch):
    """By the commands of README; the other families by the programs that these start."""
    config = family.digits_config
    by_mim = family.name == 'mpvit'

    def mim(command, *arguments):
        if by_mim:
            run('mim', command, 'mmdet', config, *arguments)
        else:
            run_here(monkeypatch, program('mmdet', f'{command}.py'), config, *arguments)

    options = [
        *data_options(digits),
        *named(tmp_path),
        'train_cfg.max_epochs=5',
        'train_cfg.val_interval=5',
        'param_scheduler.0.end=5',
        'train_dataloader.batch_size=4',
    ]
    mim('train', '--work-dir', tmp_path, *options)
    losses = scalars(tmp_path, 'loss')
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    mim('test', *(['--checkpoint'] if by_mim else []), checkpoint, '--work-dir', tmp_path / 'test', *options)
    sheet = tmp_path / 'sheet.png'
    mine = config_at(config, digits, tmp_path)
    run_here(monkeypatch, Path('tools/predict.py'), mine, checkpoint, '--sheet', sheet, '--count', 2)
    assert sheet.stat().st_size > 10_000
    if by_mim:
        curve = ('--keys', 'loss', '--out', tmp_path / 'loss.png')
        run('mim', 'run', 'mmdet', 'analyze_logs', 'plot_curve', *tmp_path.glob('2*/vis_data/scalars.json'), *curve)
        assert (tmp_path / 'loss.png').exists()


def named(work_dir: Path) -> list[str]:
    """--cfg-options that let a run follow another one in a process: mmengine keeps one visualizer of each name."""
    return [f'visualizer.name={work_dir}', f'experiment_name={work_dir}']


SEGMENTER = """
_base_ = '{config}'
train_dataloader = dict(batch_size=4, dataset=dict(data_root='{root}/'))
val_dataloader = dict(dataset=dict(data_root='{root}/'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(149, 117), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(dataset=dict(data_root='{root}/', pipeline=test_pipeline))
train_cfg = dict(max_iters=36, val_interval=36)
param_scheduler = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=36))
optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [
    dict(type='EMAHook', momentum=0.2),
    dict(type='mmvit.ChannelsLastHook'),
    dict(type='mmvit.FuseBackboneHook'),
]
"""


def test_segmenter_learns_with_every_option(digits, tmp_path, monkeypatch):
    """Averaged weights, accumulated gradients, channels-last; tested fused, at a size no stride divides, in windows."""
    mine = tmp_path / 'mine.py'
    mine.write_text(SEGMENTER.format(config=Path('configs/upernet_mpvit_t_digits.py').resolve(), root=digits))
    run('mim', 'train', 'mmseg', mine, '--work-dir', tmp_path)
    losses = scalars(tmp_path, 'loss')
    assert len(losses) == 36
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    checkpoint = tmp_path / 'iter_36.pth'
    assert 'ema_state_dict' in torch.load(checkpoint, weights_only=True)
    for mode in (dict(mode='whole'), dict(mode='slide', crop_size='(64,64)', stride='(40,48)')):
        pictures = tmp_path / mode['mode']
        options = [*named(pictures), *(f'model.test_cfg.{key}={value}' for key, value in mode.items())]
        where = ('--work-dir', pictures, '--show-dir', pictures)
        run_here(monkeypatch, program('mmseg', 'test.py'), mine, checkpoint, *where, '--cfg-options', *options)
        (metrics,) = pictures.glob('2*/2*.json')
        assert 'mIoU' in json.loads(metrics.read_text())
        assert len(list(pictures.rglob('*.png'))) == 4


def test_detector_starts_from_a_classifier_of_the_digits(digits, tmp_path, monkeypatch, capsys):
    weights = tmp_path / 'pretrained.pth'
    size = ('--epochs', 2, '--batch', 16, '--side', 33)
    run_here(monkeypatch, Path('tools/pretrain_digits.py'), 'mmvit_mpvit_tiny', digits, weights, *size)
    assert 'accuracy' in capsys.readouterr().out
    init_cfg = [f'model.backbone.init_cfg.{k}' for k in ('type=mmvit.OfficialWeights', f'checkpoint={weights}')]
    options = [*data_options(digits), *named(tmp_path), 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=16']
    config = 'configs/maskrcnn_mpvit_t_digits.py'
    run_here(monkeypatch, program('mmdet', 'train.py'), config, '--work-dir', tmp_path, *options, *init_cfg)
    (log,) = tmp_path.glob('2*/2*.log')
    assert re.search(r'loaded \d+ tensors of MPViT from \S+pretrained.pth', log.read_text())


def config_at(config: str, root: Path, folder: Path) -> Path:
    """A config of the user's own, outside the repository, over one of ours."""
    path = folder / 'mine.py'
    path.write_text(f"_base_ = '{Path(config).resolve()}'\ntest_dataloader = dict(dataset=dict(data_root='{root}/'))\n")
    return path


def test_analysis_commands(digits, tmp_path, monkeypatch, capsys):
    config = 'configs/maskrcnn_mpvit_t_digits.py'
    options = data_options(digits)
    assert 'mmvit.MPViT' in run('mim', 'run', 'mmdet', 'print_config', config)
    analysis = program('mmdet', 'analysis_tools')
    run_here(monkeypatch, analysis / 'get_flops.py', config, '--num-images', 1, *options)
    assert 'Params' in capsys.readouterr().out
    arguments = (config, '--output-dir', tmp_path, '--not-show', *options, *named(tmp_path))
    run_here(monkeypatch, analysis / 'browse_dataset.py', *arguments)
    assert len(list(tmp_path.rglob('*.png'))) == 32


def test_data_is_the_same_each_time_and_splits_share_nothing(digits, tmp_path):
    run(sys.executable, 'tools/make_digits.py', tmp_path / 'again', '--train', 32, '--val', 4)
    names = sorted(p.relative_to(digits) for p in digits.rglob('*.*'))
    assert len(names) == 74
    assert all((digits / n).read_bytes() == (tmp_path / 'again' / n).read_bytes() for n in names)
    used = {s: json.loads((digits / 'annotations' / f'instances_{s}.json').read_text()) for s in ('train', 'val')}
    for sources in (
        {s: {a['scan'] for a in used[s]['annotations']} for s in used},
        {s: {i['photograph'] for i in used[s]['images']} for s in used},
    ):
        assert sources['train']
        assert sources['val']
        assert not sources['train'] & sources['val']


def test_checkpoint_of_training_is_safe_to_load(trained_coco):
    assert 'state_dict' in torch.load(trained_coco / 'epoch_2.pth', weights_only=True)
