from functools import cache

import mmengine.config.utils
import pytest
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
