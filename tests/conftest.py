import pytest
from families import FAMILIES, Family


@pytest.fixture(params=FAMILIES, ids=lambda family: family.key)
def family(request) -> Family:
    return request.param
