"""Runs the commands that a user types."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from mmvit.environment import installed_version

MMDET = 'mmdet' if installed_version('mmdet') else 'onedl-mmdetection'  # the name that mim knows
BIN = Path(sys.executable).parent
ENV = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', 'PYTHONWARNINGS': 'ignore'}


def run(*command: object, **kwargs) -> str:
    """Run a command of this environment; its output, or an AssertionError that ends with it."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs
    )
    assert result.returncode == 0, f'{" ".join(words)}\n{result.stdout[-6000:]}'
    return result.stdout


def run_here(monkeypatch, program: Path, *arguments: object) -> None:
    """Run a program in this process, which starts ten seconds sooner. mmengine keeps one visualizer of each name."""
    monkeypatch.setattr(sys, 'argv', [program.name, *map(str, arguments)])
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))  # half of the time
    runpy.run_path(str(program), run_name='__main__')


def program(toolbox: str, name: str) -> Path:
    """What ``mim`` starts: a program of mmdet or mmseg."""
    return Path(importlib.import_module(toolbox).__file__).parent / '.mim' / 'tools' / name


def scalars(work_dir: Path, key: str) -> list[float]:
    """The logged values of one scalar, over all runs in a work dir."""
    files = sorted(work_dir.glob('2*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def data_options(root: Path, suffix: str = '') -> list[str]:
    """--cfg-options that point a config at ``root`` and load in the main process."""
    annotations = root / 'annotations' / f'instances_val{suffix}.json'
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        '--cfg-options',
        *(f'{loader}.dataset.data_root={root}/' for loader in loaders),
        *(f'{loader}.num_workers=0' for loader in loaders),
        *(f'{loader}.persistent_workers=False' for loader in loaders),
        f'val_evaluator.ann_file={annotations}',
        f'test_evaluator.ann_file={annotations}',
        'default_hooks.logger.interval=1',
    ]
