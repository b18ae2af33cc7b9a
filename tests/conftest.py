import os
import sys
from functools import cache
from pathlib import Path

import mmengine.config.utils
import pytest
from commands import run
from computed import as_written
from families import FAMILIES, Family
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from mmvit.environment import installed_version

# `make test` takes the same few cases of each property every time, `make fuzz` others, and as many as it is told. Each
# case that fails is printed. Put it above its test to repeat it: `@example(case=Case(...))`.
CASES = int(os.environ.get('MMVIT_FUZZ_CASES', '0'))
settings.register_profile(
    'slice',
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    'long',
    settings.get_profile('slice'),
    derandomize=False,
    max_examples=max(CASES, 1),
    database=DirectoryBasedExampleDatabase('.hypothesis/examples'),  # the next run begins with what failed
)
settings.load_profile('long' if CASES else 'slice')


def pytest_collection_modifyitems(items) -> None:
    """Skip what inherits from mmseg's configs where only onedl's fork of it is installed."""
    if installed_version('mmsegmentation') is None:
        skip = pytest.mark.skip(reason='configs that inherit from mmseg:: do not find onedl-mmsegmentation')
        for item in items:
            if any(word in item.name for word in ('upernet', '[fpn_', 'segformer', 'ade20k', 'semantic', 'segment')):
                item.add_marker(skip)


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


@pytest.fixture(params=['for CPUs', 'as written'])
def computed(request, monkeypatch) -> str:
    """How the networks compute: with the code for CPUs, and as they are written."""
    if request.param == 'as written':
        as_written(monkeypatch)
    return request.param


@pytest.fixture
def device() -> str:
    """Where a test that is marked `gpu` computes: on the CPU, or where tools/gpu_report.py says."""
    return os.environ.get('MMVIT_DEVICE', 'cpu')


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digits'
    run(sys.executable, 'tools/make_digits.py', out, '--train', 32, '--val', 4)
    return out
