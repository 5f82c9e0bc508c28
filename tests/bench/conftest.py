"""What the tests of the bench share."""

import pytest

from tests.hidden import make_cache


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path / "cache")
