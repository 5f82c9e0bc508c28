"""Label files for the tests of labels."""

import json

import pytest

from tests.data.labels.builders import KEY


@pytest.fixture
def write(tmp_path):
    def write(episodes, suite="libero_goal", task=KEY):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({suite: {task: episodes}}))
        return path

    return write
