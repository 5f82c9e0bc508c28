import numpy as np
import pytest

from benchmarks.head_forms import BATCH, FORMS, Data, fit, of_hazard
from eosjax.ends.calibration import sigmoid
from eosjax.runs.hidden import Columns, HiddenCache
from eosjax.training.head_fit import EVENT_AP, FRAME_AP

LENGTHS = np.array([45, 36, 27, 18])
EPISODE_STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])


@pytest.fixture
def cache():
    """Four episodes, the last held out, whose hidden states tell the ends: every ninth step."""
    frames, k = LENGTHS.sum(), 4
    step = np.concatenate([np.arange(length) for length in LENGTHS])
    ends = step % 9 == 8
    columns = Columns(
        ends, EPISODE_STARTS, np.arange(4) == 3, np.zeros(frames, np.float32), np.zeros((frames, 2), np.float32), np.zeros(frames, np.int32)
    )
    hidden = np.random.default_rng(0).normal(size=(frames, k, 2, 6)).astype(np.float32)
    hidden[..., 0, 0] = 6 * columns.labels(k) - 3
    return HiddenCache(hidden, columns, {})


def test_probabilities_of_a_hazard_are_those_of_the_first_end():
    outputs = np.random.default_rng(1).normal(size=(20, 5))
    here = sigmoid(outputs)
    none_before = np.concatenate([np.ones((20, 1)), np.cumprod(1 - here, 1)[:, :-1]], 1)
    np.testing.assert_allclose(sigmoid(of_hazard(outputs)), here * none_before, rtol=1e-9)


def test_what_there_is_to_learn(cache):
    chunks = Data(cache).chunks(np.array([6, 43, 46]))
    np.testing.assert_array_equal(chunks.ends, [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(chunks.valid[1], [1, 1, 0, 0])
    np.testing.assert_array_equal(chunks.near[0], [0, 0.5, 1, 0.5])
    assert chunks.near[1, 0] == 0.5
    np.testing.assert_allclose(chunks.progress[0], [7 / 9, 8 / 9, 1, 1 / 9], rtol=1e-6)
    np.testing.assert_array_equal(chunks.before[0], cache.hidden[2])
    assert not chunks.before[2].any()  # the episode has begun one frame before


@pytest.mark.parametrize("name", FORMS)
def test_every_form_learns_what_the_hidden_states_show(cache, name):
    assert cache.train_frames.size > BATCH
    figures = fit(FORMS[name], Data(cache), seed=0, passes=50)
    assert figures[EVENT_AP] > 0.95
    assert figures[FRAME_AP] > 0.8
