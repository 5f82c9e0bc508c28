from tests.training.conftest import batches  # noqa: F401  # a fixture
