"""Marks for tests of what some of the supported machines and versions lack."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from mmvit.environment import compiled_operators

HEADER = Path(sysconfig.get_path('include'), 'Python.h')
compiled_mmcv = compiled_operators() is not None
needs_compiled_mmcv = pytest.mark.skipif(not compiled_mmcv, reason='mmcv has no compiled operators here')
needs_mmcv_lite = pytest.mark.skipif(compiled_mmcv, reason="mmcv's compiled operators come first here")
needs_compiler = pytest.mark.skipif(
    shutil.which('g++') is None or not HEADER.is_file(),
    reason="torch.compile's own backend needs g++ and the headers of Python, which this machine lacks",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip below a version of PyTorch."""
    return pytest.mark.skipif(torch.__version__ < version, reason=f'{what} needs PyTorch {version}')
