"""A run whose files or settings cannot be right ends with one sentence before it begins."""

import json
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from commands import ENV, data_options, program, run, run_here
from families import FAMILIES
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from toy_training import HOOKS, Toy, settings

from mmvit.training.setup import find_faults

DETECTOR = 'configs/maskrcnn_mpvit_t_digits.py'
SEGMENTER = 'configs/upernet_mpvit_t_digits.py'


def train(work_dir, **changes):
    Runner.from_cfg(Config(settings(work_dir, **changes))).train()


def ends(capsys, work_dir, **changes):
    """What a training prints that ends before it begins."""
    with pytest.raises(SystemExit):
        train(work_dir, **changes)
    return capsys.readouterr().out.strip().splitlines()[-1]


BROKEN = {
    'is empty': lambda path, whole: path.touch(),
    "is a text file and not a checkpoint, and begins with 'hello'": lambda path, whole: path.write_text('hello\n'),
    'is not whole: its end is missing': lambda path, whole: path.write_bytes(whole[:-99]),
    'is not whole: its end is missing, or a part is damaged': lambda path, whole: path.write_bytes(damaged(whole)),
    'is a file of NumPy arrays': lambda path, whole: np.savez(path.open('wb'), weight=np.ones(3)),
    'is a folder': lambda path, whole: path.mkdir(),
    'is not there': lambda path, whole: None,
}


def damaged(whole):
    middle = len(whole) // 2
    return whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 9]) + whole[middle + 9 :]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('whole')
    train(work_dir, epochs=1)
    return work_dir / 'epoch_1.pth'


@pytest.mark.parametrize('what', BROKEN)
@pytest.mark.parametrize('resume', [False, True])
def test_a_file_that_is_no_checkpoint(what, resume, whole, tmp_path, capsys):
    path = tmp_path / 'mine.pth'
    BROKEN[what](path, whole.read_bytes())
    said = ends(capsys, tmp_path, load_from=str(path), resume=resume)
    assert said.startswith(f'Cannot load {path}: it {what}')
    assert ('--resume alone takes the newest whole checkpoint' in said) is resume


@pytest.mark.parametrize('resume', [False, True])
def test_a_whole_file_is_loaded(resume, whole, tmp_path):
    train(tmp_path, load_from=str(whole), resume=resume, epochs=2)
    assert (tmp_path / 'epoch_2.pth').exists()


@pytest.mark.parametrize('parts', [('state_dict',), ('state_dict', 'meta', 'message_hub')])
def test_weights_are_loaded_but_not_resumed(parts, whole, tmp_path, capsys):
    saved = torch.load(whole, weights_only=False)
    path = tmp_path / 'weights.pth'
    torch.save({part: saved[part] for part in parts}, path)
    said = ends(capsys, tmp_path, load_from=str(path), resume=True)
    missing = 'no optimizer' if 'meta' in parts else 'no meta and no message_hub and no optimizer'
    assert said.startswith(f'Cannot resume from {path}: it has {missing}.')
    assert said.endswith('--cfg-options load_from=FILE')
    train(tmp_path, load_from=str(path), epochs=1)
    assert (tmp_path / 'epoch_1.pth').exists()


@MODELS.register_module()
class ToyWithABackbone(Toy):
    """The toy, and a backbone that it does not ask."""

    def __init__(self):
        super().__init__()
        self.backbone = FAMILIES[0].build()


@pytest.mark.parametrize('resume', [False, True])
def test_weights_of_which_a_part_is_missing(resume, tmp_path):
    options = dict(model=dict(type='ToyWithABackbone'), epochs=1)
    train(tmp_path, **options)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for key in [key for key in saved['state_dict'] if '.stages.3.' in key]:
        del saved['state_dict'][key]
    torch.save(saved, tmp_path / 'part.pth')
    options.update(load_from=str(tmp_path / 'part.pth'), resume=resume, custom_hooks=[])
    with pytest.raises(RuntimeError, match=r'do not fill this .*partial_weights=True'):
        train(tmp_path / 'refused', **options)
    hooks = dict(HOOKS, check_setup=dict(type='mmvit.CheckSetupHook', partial_weights=True))
    train(tmp_path / 'taken', **options, hooks=hooks)


@cache
def model(config):
    return Config.fromfile(config).model


def test_maps_that_do_not_fit_the_neck(tmp_path, capsys):
    config = Config(dict(model=model(DETECTOR)))
    config.model.backbone.out_indices = (1, 2, 3)
    said = ends(capsys, tmp_path, model=config.model, default_scope='mmdet')
    assert said == (
        'model.backbone.out_indices gives 3 maps, of [176, 216, 216] channels, but model.neck.in_channels is '
        '[96, 176, 216, 216]. The two must be equal.'
    )


def test_maps_that_do_not_fit_the_heads():
    segmenter = model(SEGMENTER)
    assert list(find_faults(segmenter, (96, 176, 216, 216))) == []
    decoder, auxiliary = find_faults(segmenter, (96, 176))
    assert 'gives 2 maps, of [96, 176] channels, but model.decode_head.in_index [0, 1, 2, 3] takes maps of ' in decoder
    assert decoder.endswith('in_channels [96, 176, 216, 216]: there, the backbone has [96, 176, None, None].')
    assert 'model.auxiliary_head.in_index [2] takes maps of model.auxiliary_head.in_channels [216]' in auxiliary


@pytest.mark.slow
def test_annotations_that_are_cut_short(digits, tmp_path):
    shutil.copytree(digits, tmp_path / 'digits')
    file = tmp_path / 'digits/annotations/instances_train.json'
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1)[:-40])
    lines = len(file.read_text().splitlines())
    command = [sys.executable, 'tools/train.py', DETECTOR, '--work-dir', tmp_path, *data_options(tmp_path / 'digits')]
    with pytest.raises(AssertionError) as error:
        run(*command)
    last = str(error.value).strip().splitlines()[-1]
    assert last.startswith(f'{file}, line {lines}, column ')
    assert last.endswith('The annotation file is cut short or damaged: make it or fetch it again.')


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').touch()
    command = [sys.executable, 'tools/make_digits.py', tmp_path / 'file' / 'digits', '--train', '1', '--val', '1']
    result = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f'{tmp_path}/file/digits has no whole data set: [Errno 20] Not a directory')


@pytest.mark.slow
def test_mim_test_with_the_file_of_another_backbone(digits, tmp_path, monkeypatch):
    """By the program that mim starts."""
    init_default_scope('mmdet')
    other = MODELS.build(model('configs/maskrcnn_regionvit_t_digits.py'))
    torch.save(dict(meta={}, state_dict=other.state_dict()), tmp_path / 'other.pth')
    options = ['--work-dir', tmp_path, *data_options(digits), f'visualizer.name={tmp_path}']
    with pytest.raises(RuntimeError, match=r"'backbone\.' are not of this MPViT: they are those of RegionViT 'tiny'\."):
        run_here(monkeypatch, program('mmdet', 'test.py'), DETECTOR, tmp_path / 'other.pth', *options)
