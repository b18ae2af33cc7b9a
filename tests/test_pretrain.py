"""tools/pretrain.py: a backbone learns from images without labels, and a detector begins with it."""

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pretrain
import pytest
import timm
import torch
from commands import ENV, run, run_here
from mmengine.registry import MODELS, init_default_scope
from skimage.data import coffee
from skimage.io import imsave

from mmvit.own_data.weights import find_use

TOOL = Path('tools/pretrain.py')
MODEL = 'mmvit_pyramid_tnt_tiny'


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Nine parts of a photograph, in two folders."""
    for i in range(9):
        file = tmp_path / 'photographs' / str(i % 2) / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        imsave(file, coffee()[40 * i : 40 * i + 75, 50 * i : 50 * i + 97])
    return tmp_path / 'photographs'


@pytest.mark.parametrize(
    ('model', 'mean', 'std'),
    [
        ('mmvit_mpvit_tiny', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ('mmvit_regionvit_tiny', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ('mmvit_pyramid_tnt_tiny', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_views_are_normalised_as_the_model_asks(model, mean, std):
    assert pretrain.views(model, 64, flip=True) == {'image_size': (64, 64), 'normalize': {'mean': mean, 'std': std}}
    assert pretrain.views(model, 64, flip=False)['random_flip'] is None


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('nowhere', '--out', 'run'), 'error: nowhere is no folder'),
        (('empty', '--out', 'run'), r'error: empty has no images \(.*\.png'),
        (('photographs', '--out', 'run', '--model', 'resnet18'), 'error: --model resnet18: take one of mmvit_mpvit_'),
        (('photographs', '--out', 'run', '--epochs', '0'), 'error: --epochs 0 would leave the weights random'),
        (('photographs', '--out', '.'), r'error: --out . is not empty: name another folder, or go on'),
        (('photographs', '--out', 'run', '--resume'), r'error: run/checkpoints/last.ckpt is missing'),
    ],
)
def test_wrong_options(photographs, options, message, monkeypatch):
    tool = TOOL.resolve()
    monkeypatch.chdir(photographs.parent)
    Path('empty').mkdir()
    with pytest.raises(SystemExit, match=f'^{message}'):
        run_here(monkeypatch, tool, *options)
    assert not Path('run').exists()


def test_without_lightly_train(photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightly_train', None)
    with pytest.raises(SystemExit, match=r"AGPL-3.0: pip install 'mmvit\[pretrain\]'"):
        run_here(monkeypatch, TOOL, photographs, '--out', tmp_path / 'run')


def test_wrong_method(photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightly_train', SimpleNamespace(list_methods=lambda: ['dino', 'simclr']))
    with pytest.raises(SystemExit, match='^error: --method densenet: take one of dino, simclr$'):
        run_here(monkeypatch, TOOL, photographs, '--out', tmp_path / 'run', '--method', 'densenet')
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def interrupts():
    """A shell lets its background jobs ignore Ctrl-C, and they hand this on to what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.lane
@pytest.mark.usefixtures('interrupts')
@pytest.mark.skipif(not importlib.util.find_spec('lightly_train'), reason='needs the extra pretrain, see lane newest')
def test_detector_begins_with_what_a_stopped_run_learned(photographs, tmp_path):
    """Ctrl-C after an epoch, and --resume."""
    out = tmp_path / 'run'
    command = (TOOL, photographs, '--model', MODEL, '--out', out, '--batch-size', 4, '--size', 64, '--epochs', 6)
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output = ''
        while 'Epoch 1:' not in output:
            read = process.stdout.read(40)
            assert read, output
            output += read
        process.send_signal(signal.SIGINT)
        output += process.stdout.read()
    assert process.returncode == 130, output
    assert 'the same command with --resume goes on after the last whole epoch' in output
    assert f'--weights {out / pretrain.EXPORTED}' in run(sys.executable, *command, '--resume')
    log = (out / 'train.log').read_text()
    assert re.search(r'"mean": \[\s*0.5,\s*0.5,\s*0.5\s*\]', log)

    file = out / pretrain.EXPORTED
    assert find_use(file, Path('configs/maskrcnn_pyramid_tnt_t_digits.py')) == 'backbone'
    init_default_scope('mmdet')
    init_cfg = dict(type='mmvit.OfficialWeights', checkpoint=str(file))
    backbone = MODELS.build(dict(type='mmvit.PyramidTNT', arch='tiny', init_cfg=init_cfg))
    backbone.init_weights()
    classifier = timm.create_model(MODEL, checkpoint_path=str(file)).eval()
    image = torch.rand(1, 3, 75, 97)
    maps = backbone.eval()(image)
    _, expected = classifier.forward_intermediates(image)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
