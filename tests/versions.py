"""Marks for tests of what some of the supported machines and versions lack."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

HEADER = Path(sysconfig.get_path('include'), 'Python.h')
needs_compiler = pytest.mark.skipif(
    shutil.which('g++') is None or not HEADER.is_file(),
    reason="torch.compile's own backend needs g++ and the headers of Python, which this machine lacks",
)


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip below a version of PyTorch."""
    return pytest.mark.skipif(torch.__version__ < version, reason=f'{what} needs PyTorch {version}')
