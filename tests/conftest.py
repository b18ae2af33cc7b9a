import pytest
from families import FAMILIES, Family


@pytest.fixture(params=FAMILIES, ids=lambda family: family.key)
def family(request) -> Family:
    return request.param


@pytest.fixture
def normed_family(family) -> Family:
    """A family with batch norms."""
    if not family.has_batch_norm:
        pytest.skip('has no batch norm')
    return family
