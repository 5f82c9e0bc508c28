"""The timeline of an episode."""

import re

import numpy as np
import pytest

from eosjax.ends.measure import ScoredEpisode
from eosjax.reports.evaluation import Shown
from eosjax.reports.event_charts import timeline


@pytest.mark.parametrize(
    ("highest", "threshold", "scale"), [(0.1, 0.05, "0.11"), (0.123, 0.05, "0.14"), (0.1, 0.2, "0.22"), (0.99, 0.5, "1"), (0.0, 1.5, "1")]
)
def test_the_scale_ends_above_scores_and_threshold(highest, threshold, scale):
    scores = np.linspace(0, highest, 5)
    shown = Shown("best", 0, ScoredEpisode("0", scores, np.arange(5) == 4), np.array([4]), np.array([[4, 4]]))
    drawing = timeline(shown, threshold)
    assert f">{scale}</text>" in drawing
    line = re.search(r'<polyline[^>]*points="([^"]*)"', drawing)
    assert line
    heights = [float(point.split(",")[1]) for point in line[1].split()]
    assert heights[0] == pytest.approx(164)
    assert min(heights) == pytest.approx(164 - 134 * highest / float(scale), abs=0.1)
