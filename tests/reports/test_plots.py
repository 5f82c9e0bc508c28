"""The plots are written as pictures, also for episodes at the edges of what occurs."""

import numpy as np
import pytest
from PIL import Image

from eosjax.reports.plots import plot_precision_recall, plot_timeline

PICTURE = np.zeros((16, 16, 3), np.uint8)


def is_drawn(path):
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24)) > 10


def test_precision_recall(tmp_path):
    ends = np.arange(50) % 7 == 0
    scores = {"EOS head": np.sin(np.arange(50.0)), "always off": np.zeros(50)}
    plot_precision_recall(tmp_path / "curve.png", ends, scores)
    assert is_drawn(tmp_path / "curve.png")


@pytest.mark.parametrize("where", [[3, 9], [9], [0, 1, 9], []], ids=str)
def test_timeline(tmp_path, where):
    ends = np.isin(np.arange(10), where)
    plot_timeline(tmp_path / "line.png", "episode 1", np.linspace(0, 1, 10), ends, ["go"] * 10, [PICTURE] * len(where))
    assert is_drawn(tmp_path / "line.png")
