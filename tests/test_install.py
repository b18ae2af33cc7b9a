"""What a user gets who installs the wheel, in clean environments."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from commands import ENV, run

from mmvit.models import MPViT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec('build') is None, reason='the wheel is built by the package build'),
]

FORWARD = """
import importlib.util, torch
assert importlib.util.find_spec('mmdet') is None and importlib.util.find_spec('mmseg') is None
from mmvit.models import MPViT
print([tuple(out.shape) for out in MPViT('tiny').eval()(torch.zeros(1, 3, 64, 97))])
"""
OPERATORS = "import mmcv.ops, sys; print(sys.modules['mmcv._ext'].__file__)"


@pytest.fixture(scope='session')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder)  # from the source archive
    return next(folder.glob('mmvit-*.whl'))


@pytest.fixture
def clean_venv(tmp_path) -> Path:
    venv = tmp_path / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    # The versions of this environment, which are at hand. === leaves out other builds of them, such as 2.13.0+cpu.
    pins = {d.name: d.version for d in distributions() if d.name not in ('mmvit', 'mmcv', 'opencv-python')}
    (venv / 'pins.txt').write_text(''.join(f'{name}==={version}\n' for name, version in pins.items()))
    return venv


def install(venv: Path, *what: object) -> None:
    # The overrides of pyproject.toml hold: this machine may have no libGL.
    run('uv', 'pip', 'install', '--python', venv / 'bin' / 'python', '--constraint', venv / 'pins.txt', *what)


def user(venv: Path, *command: object, **environment: str) -> str:
    """Run a command as somebody with nothing but this environment on the PATH: no compiler."""
    path = f'{venv / "bin"}{os.pathsep}{venv / "empty"}'
    env = {**ENV, 'PATH': path, **environment}
    words = [str(word) for word in (venv / 'bin' / str(command[0]), *command[1:])]
    result = subprocess.run(words, cwd=venv.parent, env=env, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def test_wheel_ships_what_mim_and_python_look_for(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for file in [*Path(folder).rglob('*.py'), *Path(folder).glob('*.yml')]:
            assert f'mmvit/.mim/{file}' in names
    assert {'mmvit/.mim/model-index.yml', 'mmvit.pth', '_mmvit_finder.py', 'mmvit/ops/__init__.py'} <= names
    assert not any(name.startswith('tests') for name in names)


def test_one_line_installs_all_that_mim_needs(wheel, clean_venv, digits, tmp_path):
    pip = (clean_venv / 'bin' / 'pip', 'install', '--quiet', '--no-compile')  # Python compiles what it imports
    run(*pip, '--constraint', clean_venv / 'pins.txt', f'{wheel}[det]')  # plain pip, and none of uv's overrides
    run(clean_venv / 'bin' / 'pip', 'uninstall', '--yes', 'opencv-python')  # this machine may have no libGL
    run(*pip, '--constraint', clean_venv / 'pins.txt', 'opencv-python-headless')
    options = [f'{s}_dataloader.dataset.data_root={digits}/' for s in ('train', 'val')]
    options += [f'val_evaluator.ann_file={digits}/annotations/instances_val.json', 'train_cfg.max_epochs=1']
    options += ['train_dataloader.dataset.indices=4']  # images, of 32
    (configs,) = clean_venv.glob('lib/*/site-packages/mmvit/.mim/configs')
    config = configs / 'maskrcnn_mpvit_t_digits.py'
    # mmdet's own program, which imports mmdet before mmvit; the data come from spawned processes.
    user(
        clean_venv, 'mim', 'train', 'mmdet', config, '--work-dir', 'run', '--cfg-options', *options,
        'env_cfg.mp_cfg.mp_start_method=spawn',
    )  # fmt: skip
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()
    user(clean_venv, 'mim', 'train', 'mmvit', config.name, '--work-dir', 'again', '--cfg-options', *options)
    assert (tmp_path / 'again' / 'epoch_1.pth').exists()

    torch.save({'model': MPViT.to_official(MPViT('tiny').state_dict())}, tmp_path / 'official.pth')
    files = ('official.pth', '--config', config, '-o', 'converted.pth')
    assert 'written: converted-' in user(clean_venv, 'mim', 'run', 'mmvit', 'convert_checkpoint', *files)
    data = (digits / 'train', '--labels', digits / 'annotations' / 'instances_train.json')
    assert 'Train: mim train mmdet' in user(clean_venv, 'mim', 'run', 'mmvit', 'new_project', *data, '--out', 'mine')
    image = next((digits / 'train').glob('*.png'))
    model = (config, tmp_path / 'run' / 'epoch_1.pth')
    user(clean_venv, 'mim', 'run', 'mmvit', 'predict', *model, image, '--out', 'predicted')
    assert (tmp_path / 'predicted' / image.name).exists()
    options = ('--config', model[0], '--checkpoint', model[1], '--out', 'seen')
    assert 'seen/mpvit.png' in user(clean_venv, 'mim', 'run', 'mmvit', 'look', image, *options)
    assert 'mpvit_tiny' in user(
        clean_venv, 'mim', 'run', 'mmvit', 'benchmark', 'mpvit_tiny', '--sizes', 64, '--rounds', 1
    )


def test_operators_come_and_go_with_the_package(wheel, clean_venv, tmp_path):
    install(clean_venv, f'{wheel}[lite]', 'opencv-python-headless')
    python = clean_venv / 'bin' / 'python'
    assert '(1, 96, 16, 25)' in user(clean_venv, 'python', '-c', FORWARD)
    assert 'mmvit/ops/__init__.py' in user(clean_venv, 'python', '-c', OPERATORS)
    run('uv', 'pip', 'uninstall', '--python', python, 'mmvit')
    assert not list(clean_venv.glob('lib/*/site-packages/*mmvit*'))
    with pytest.raises(AssertionError, match="No module named 'mmcv._ext'"):
        user(clean_venv, 'python', '-c', OPERATORS)
    # Python reads no .pth file in a folder that is only on PYTHONPATH.
    folder = tmp_path / 'folder'
    run('uv', 'pip', 'install', '--python', python, '--no-deps', '--target', folder, wheel)
    with pytest.raises(AssertionError, match="No module named 'mmcv._ext'"):
        user(clean_venv, 'python', '-c', OPERATORS, PYTHONPATH=str(folder))
    found = user(clean_venv, 'python', '-c', f'import mmvit; {OPERATORS}', PYTHONPATH=str(folder))
    assert str(folder / 'mmvit' / 'ops' / '__init__.py') in found


def test_bare_package_brings_nothing_of_openmmlab(wheel, clean_venv):
    install(clean_venv, wheel)
    with pytest.raises(AssertionError, match=r"mmengine is missing: run `pip install 'mmvit\[det\]'`"):
        user(clean_venv, 'python', '-c', 'import mmvit')
    assert 'mmengine is missing' in user(clean_venv, 'python', '-m', 'mmvit')
