"""What a user gets who installs the wheel, in clean environments."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from commands import ENV, run

import bootstrap
from mmvit.models import MPViT

pytestmark = pytest.mark.slow

FORWARD = """
import importlib.util, torch
assert importlib.util.find_spec('mmdet') is None and importlib.util.find_spec('mmseg') is None
from mmvit.models import MPViT
print([tuple(out.shape) for out in MPViT('tiny').eval()(torch.zeros(1, 3, 64, 97))])
"""


@pytest.fixture(scope='session')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', folder)
    return next(folder.glob('mmvit-*.whl'))


@pytest.fixture
def clean_venv(tmp_path) -> Path:
    venv = tmp_path / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    return venv


def install(venv: Path, *what: object) -> None:
    # opencv-python's stand-in, as in the pinned set: this machine may have no libGL.
    run('uv', 'pip', 'install', '--python', venv / 'bin' / 'python', *what)


def test_wheel_ships_what_mim_looks_for(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for file in [*Path(folder).rglob('*.py'), *Path(folder).glob('*.yml')]:
            assert f'mmvit/.mim/{file}' in names
    assert 'mmvit/.mim/model-index.yml' in names
    assert not any(name.startswith(('tests', 'bootstrap')) for name in names)


def test_mim_takes_the_wheel(wheel, clean_venv, tmp_path):
    bootstrap.install_pinned(clean_venv)
    install(clean_venv, '--no-deps', wheel)
    data = tmp_path / 'digits'
    bin_ = clean_venv / 'bin'
    env = {**ENV, 'PATH': f'{bin_}:{ENV["PATH"]}'}

    def user(*command):
        result = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=env, text=True, capture_output=True, check=False
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout + result.stderr

    user(bin_ / 'mim', 'run', 'mmvit', 'make_digits', data, '--train', 8, '--val', 1)
    options = [f'{s}_dataloader.dataset.data_root={data}/' for s in ('train', 'val')]
    options += [f'val_evaluator.ann_file={data}/annotations/instances_val.json', 'train_cfg.max_epochs=1']
    user(bin_ / 'mim', 'train', 'mmvit', 'maskrcnn_mpvit_t_digits.py', '--work-dir', 'run', '--cfg-options', *options)
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()

    torch.save({'model': MPViT.to_official(MPViT('tiny').state_dict())}, tmp_path / 'released.pth')
    (config,) = clean_venv.glob('lib/*/site-packages/mmvit/.mim/configs/maskrcnn_mpvit_t_digits.py')
    files = ('released.pth', '--config', config, '-o', 'converted.pth')
    assert 'written: converted-' in user(bin_ / 'mim', 'run', 'mmvit', 'convert_checkpoint', *files)
    assert 'mpvit_tiny' in user(bin_ / 'mim', 'run', 'mmvit', 'benchmark', 'mpvit_tiny', '--sizes', 64, '--rounds', 1)


def test_lite_has_a_forward_pass(wheel, clean_venv, tmp_path):
    pins = {k: v for k, v in bootstrap.read_pins().items() if k != 'mmcv'}
    (tmp_path / 'pins.txt').write_text(''.join(f'{k}=={v}\n' for k, v in pins.items()))
    (tmp_path / 'overrides.txt').write_text("opencv-python; python_version < '0'\n")
    install(
        clean_venv, f'{wheel}[lite]', 'opencv-python-headless',
        '--constraint', tmp_path / 'pins.txt', '--override', tmp_path / 'overrides.txt',
    )  # fmt: skip
    assert '(1, 96, 16, 25)' in run(clean_venv / 'bin' / 'python', '-W', 'ignore', '-c', FORWARD, cwd=tmp_path)
