import sys
from functools import cache
from pathlib import Path

import mmengine.config.utils
import pytest
from commands import run
from families import FAMILIES, Family


@pytest.fixture(scope='session', autouse=True)
def _read_metafiles_once():
    """mmengine reads all metafiles of a package for each file that a config inherits from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', cache(mmengine.config.utils.load))
        yield


@pytest.fixture(params=FAMILIES, ids=lambda family: family.key)
def family(request) -> Family:
    return request.param


@pytest.fixture
def normed_family(family) -> Family:
    """A family with batch norms."""
    if not family.has_batch_norm:
        pytest.skip('has no batch norm')
    return family


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digits'
    run(sys.executable, 'tools/make_digits.py', out, '--train', 32, '--val', 4)
    return out
