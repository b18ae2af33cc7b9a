"""Marks for tests of what some of the supported versions lack."""

import pytest
import torch


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip below a version of PyTorch."""
    return pytest.mark.skipif(torch.__version__ < version, reason=f'{what} needs PyTorch {version}')
