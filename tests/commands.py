"""Runs the commands that a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def scalars(work_dir: Path, key: str) -> list[float]:
    """The logged values of one scalar, over all runs in a work dir."""
    files = sorted(work_dir.glob('2*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line[key] for line in lines if key in line]
