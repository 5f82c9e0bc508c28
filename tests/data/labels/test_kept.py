"""Labels of all stored steps, and of those that a description keeps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import Segment, make_table
from eosjax.data.labels.kept import count_kept_steps, count_stored_steps
from eosjax.data.specs import DatasetSpec


@st.composite
def tables(draw):
    """Segments in some of the steps of up to three episodes."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    segments = {}
    for episode, length in enumerate(lengths):
        borders = sorted(draw(st.sets(st.integers(0, length), max_size=4)))
        parts = zip(borders, borders[1:], strict=False)
        segments[episode] = [Segment(first, behind - 1, draw(st.booleans()), f"do {first}") for first, behind in parts]
    return make_table(segments, "made", dict(enumerate(lengths)), dict.fromkeys(range(len(lengths)), "t"))


def specs():
    return st.builds(
        DatasetSpec, skip_first=st.integers(0, 3), motion=st.sampled_from(["as_stored", "reached_states", "target_minus_state"])
    )


def painted(table):
    """By episode, the instruction of each step and the steps with an end."""
    found = {episode: ([None] * length, set()) for episode, length in table.lengths.items()}
    for episode, first, last, end, text in zip(table.episode, table.first, table.last, table.is_end, table.instruction, strict=True):
        texts, ends = found[episode]
        texts[first : last + 1] = [text] * (last + 1 - first)
        ends |= {int(last)} if end else set()
    return found


@settings(max_examples=50)
@given(table=tables(), spec=specs())
def test_every_kept_step_has_the_label_of_the_stored_one(table, spec):
    stored, kept = painted(table), painted(count_kept_steps(table, spec.kept_steps))
    for episode, (texts, ends) in stored.items():
        start, stop, _ = spec.kept_steps(len(texts)).indices(len(texts))
        assert kept[episode][0] == texts[start:stop]
        # A sub-step whose last step is left out ends with the one before it, if it has one.
        moved = {min(end, stop - 1) - start for end in ends if end < stop or (stop > start and texts[stop - 1] == texts[end])}
        assert kept[episode][1] == {end for end in moved if end >= 0}


@settings(max_examples=50)
@given(table=tables(), spec=specs())
def test_what_is_written_for_the_stored_steps_is_read_back(table, spec):
    """A table that counts kept steps; episodes in a copy have them between those that are left out."""
    left_out = spec.skip_first + (spec.motion == "reached_states")
    lengths = {episode: length + left_out for episode, length in table.lengths.items()}
    stored = count_stored_steps(table, spec.kept_steps, lengths)
    assert stored.lengths == lengths
    found = count_kept_steps(stored, spec.kept_steps)
    for column in ("episode", "segment", "first", "last", "is_end"):
        np.testing.assert_array_equal(getattr(found, column), getattr(table, column))
    assert (found.instruction, found.lengths, found.problems) == (table.instruction, table.lengths, ())


@pytest.mark.parametrize("place", [Segment(3, 5, True, "a"), Segment(-1, 1, True, "a"), Segment(2, 1, True, "a")])
def test_a_segment_at_an_impossible_place_stays_a_problem(place):
    spec = DatasetSpec(skip_first=1, motion="reached_states")
    table = make_table({0: [place], 1: [Segment(0, 4, True, "b")]}, "made", {0: 5, 1: 5}, {0: "t", 1: "t"})
    found = count_kept_steps(table, spec.kept_steps)
    assert ([problem.episode for problem in found.problems], found.episode.tolist(), found.lengths) == ([0], [1], {1: 3})
    again = count_stored_steps(table, spec.kept_steps, {0: 7, 1: 7})
    assert (again.lengths, again.first.tolist(), again.last.tolist()) == ({0: 5, 1: 7}, [place.first, 0], [place.last, 6])


def test_episodes_of_another_length_keep_it():
    table = make_table({0: [Segment(0, 4, True, "b")]}, "made", {0: 5}, {0: "t"})
    for lengths in ({0: 9}, {}):
        found = count_stored_steps(table, DatasetSpec(skip_first=1).kept_steps, lengths)
        assert dataclasses.astuple(found)[7] == {0: 5}
