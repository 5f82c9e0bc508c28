import pytest

from eosjax.data.samples.mixture import Mixture
from eosjax.data.samples.source import split_mixture
from tests.data.conftest import source_over

LENGTHS = (5, 1, 13, 9)


@pytest.fixture(scope="module")
def source(make_source):
    return make_source(LENGTHS, ends=(2, 4, 5, 18, 27), image_aug=True, rephrase=True)


@pytest.fixture(scope="module")
def mixed(make_dataset):
    """Two datasets, the first of twice the weight; the middle episode of the second is unlabelled."""
    one = make_dataset((5, 13, 2), ends=(4, 17), name="one", weight=2.0)
    two = make_dataset((6, 3, 4), ends=(5,), name="two", labelled=[0, 2], instructions=("push it", "turn it"))
    return source_over(Mixture([one, two]), split_mixture(Mixture([one, two]), 0.0, 0)[0], image_aug=True)
