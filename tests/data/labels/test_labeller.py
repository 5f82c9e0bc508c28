import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.labels.labeller import KINDS, NotFound, ThresholdError, Thresholds, find_segments

HZ = 20.0


class Script:
    """Writes an episode step by step, and notes where its sub-steps end."""

    def __init__(self, start=(0.0, 0.0, 0.3)):
        self.hand, self.command, self.width = np.array(start, float), 1.0, 0.08
        self.position, self.gripper, self.opening, self.ends = [], [], [], []
        self.step()

    def step(self):
        self.position.append(self.hand.copy())
        self.gripper.append(self.command)
        self.opening.append(self.width)

    def go(self, *goal, steps=10):
        for position in np.linspace(self.hand, goal, steps + 1)[1:]:
            self.hand = position
            self.step()

    def wait(self, steps):
        for _ in range(steps):
            self.step()

    def fingers(self, command, width, steps=5):
        """The command is given in the next step; the fingers then move evenly."""
        self.command = command
        for between in np.linspace(self.width, width, steps + 1)[1:]:
            self.width = between
            self.step()

    def done(self):
        """The last step written is an end."""
        self.ends.append(len(self.position) - 1)

    def last_cycle(self):
        """A cycle behind which the episode is over: what is left is too little for a sub-step of its own."""
        self.cycle((0.2, 0.1, 0.05), (-0.1, 0.2, 0.06))
        self.ends[-1] = len(self.position) - 1

    def cycle(self, pick, place, dwell=2):
        self.go(*pick)
        self.done()
        self.wait(dwell)
        self.fingers(0.0, 0.03)
        self.go(pick[0], pick[1], pick[2] + 0.049, steps=7)
        self.go(pick[0], pick[1], pick[2] + 0.052, steps=1)
        self.done()
        self.go(pick[0], pick[1], pick[2] + 0.1, steps=5)
        self.go(place[0], place[1], pick[2] + 0.1)
        self.done()
        self.go(*place)
        self.wait(dwell)
        self.fingers(1.0, 0.08)  # five steps of a fifth: the fourth one has opened them by 0.8
        self.ends.append(len(self.position) - 2)

    def find(self, thresholds=None, opening=True, **changes):
        arrays = {"position": np.array(self.position), "gripper": np.array(self.gripper)} | changes
        fingers = np.array(self.opening) if opening else None
        return find_segments(arrays["position"], arrays["gripper"], fingers, HZ, thresholds or Thresholds())


def one_cycle(dwell=2):
    script = Script()
    script.cycle((0.2, 0.1, 0.05), (-0.1, 0.2, 0.06), dwell)
    script.go(0.0, 0.0, 0.3)
    script.done()
    return script


def ends(segments):
    return [segment.last for segment in segments]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=3),
    st.booleans(),
)
def test_ends_are_where_the_events_are(cycles, leaves):
    script = Script()
    for x, y, dwell in cycles:
        script.cycle((0.1 + 0.1 * x, 0.1 * y, 0.05), (-0.1 - 0.1 * x, 0.2, 0.06), dwell)
    if leaves:
        script.go(0.0, 0.0, 0.3)
        script.done()
    else:
        script.ends[-1] = len(script.position) - 1  # too little is left for a sub-step of its own
    segments = script.find()
    assert ends(segments) == script.ends
    assert [segment.kind for segment in segments] == list(KINDS[:4]) * len(cycles) + ["leave"] * leaves
    assert [segment.cycle for segment in segments][: 4 * len(cycles)] == list(np.repeat(range(len(cycles)), 4))


@given(st.integers(0, 2**31), st.floats(-5, 5), st.floats(0, 6.3))
def test_origin_heading_and_finger_units_do_not_matter(seed, offset, turn):
    script = one_cycle()
    position = np.array(script.position)
    about = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    moved = position @ about.T + np.random.default_rng(seed).normal(size=3) * offset
    script.opening = [7.0 - 40.0 + 3.0 * width for width in script.opening]
    assert ends(script.find(position=moved)) == script.ends


@given(st.integers(0, 2**31))
def test_a_little_noise_moves_no_end_far(seed):
    script = one_cycle()
    noise = np.random.default_rng(seed).normal(size=(len(script.position), 3)) * 2e-4
    assert np.abs(np.subtract(ends(script.find(position=np.array(script.position) + noise)), script.ends)).max() <= 2


@given(st.data(), st.integers(0, 40))
def test_any_episode_is_cut_without_gaps_or_refused(data, length):
    gripper = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=length, max_size=length)))
    runs = data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    position = rng.normal(size=(length, 3)).cumsum(axis=0) * data.draw(st.sampled_from([0.0, 0.001, 0.05]))
    try:
        segments = find_segments(position, np.repeat(gripper, runs)[:length], rng.random(length), HZ, Thresholds())
    except NotFound:
        return
    assert [segment.first for segment in segments] == [0, *(segment.last + 1 for segment in segments[:-1])]
    assert segments[-1].last == length - 1
    assert all(segment.first <= segment.last for segment in segments)


def test_a_failed_grasp_belongs_to_the_pick():
    script, pick, place = Script(), (0.2, 0.1, 0.05), (-0.1, 0.2, 0.06)
    script.go(*pick)
    reached = len(script.position) - 1
    script.fingers(0.0, 0.0)
    script.go(0.2, 0.1, 0.15)  # comes up empty
    script.fingers(1.0, 0.08)
    script.cycle(pick, place)
    assert ends(script.find())[:2] == [reached, script.ends[1]]


def test_a_hand_that_stirs_by_less_than_twice_the_distance_has_arrived():
    script = Script()
    script.go(0.2, 0.1, 0.05)
    reached = len(script.position) - 1
    script.go(0.203, 0.1, 0.05, steps=1)
    script.go(0.2, 0.1, 0.05, steps=1)
    script.cycle((0.2, 0.1, 0.05), (-0.1, 0.2, 0.06))
    assert script.find()[0].last == reached
    assert script.find(Thresholds(arrive_distance=0.001))[0].last == reached + 2


def test_closing_for_nothing_elsewhere_is_no_grasp():
    script = Script()
    script.go(0.2, 0.1, 0.2)
    script.fingers(0.0, 0.0)
    script.fingers(1.0, 0.08)
    script.last_cycle()
    assert ends(script.find()) == script.ends


def test_a_short_opening_while_carrying_is_ignored():
    """Two steps are 0.1 s, less than the 0.15 s of `debounce`."""
    script = one_cycle()
    gripper = np.array(script.gripper)
    middle = script.ends[2] - 3
    gripper[middle : middle + 2] = 1.0
    assert ends(script.find(gripper=gripper)) == script.ends
    assert ends(script.find(Thresholds(debounce=0.1), gripper=gripper)) != script.ends


def test_a_short_closing_just_before_the_object_is_ignored():
    script = Script()
    script.go(0.2, 0.1, 0.065)  # near enough for a failed grasp of the object
    nearly = len(script.position) - 1
    script.last_cycle()
    gripper = np.array(script.gripper)
    gripper[nearly : nearly + 2] = 0.0
    assert ends(script.find(gripper=gripper)) == [script.ends[0] - 1, *script.ends[1:]]  # the last step of the way is of 1.5 mm
    assert ends(script.find(Thresholds(debounce=0.1), gripper=gripper)) == [nearly, *script.ends[1:]]


def test_a_hand_that_is_closed_from_the_start_has_grasped_nothing():
    script = Script()
    script.position, script.gripper, script.opening = [], [], []
    script.command = 0.0
    script.go(0.5, 0.5, 0.3)
    script.fingers(1.0, 0.08)
    script.last_cycle()
    assert ends(script.find()) == script.ends


def test_without_fingers_a_place_ends_when_the_hand_leaves():
    script = one_cycle()
    leaving = next(t for t in range(script.ends[3], 1000) if np.linalg.norm(script.position[t] - script.position[script.ends[3]]) > 0.01)
    assert ends(script.find(opening=False))[3] == leaving


def test_lowering_ends_a_carry_that_stops_short_of_the_target():
    """The hand comes down within 2 x 0.015 m of where it opens and only then closes in on it."""
    script = Script()
    script.go(0.2, 0.1, 0.05)
    script.fingers(0.0, 0.03)
    script.go(0.2, 0.1, 0.15)
    script.go(-0.08, 0.2, 0.15)
    carried = len(script.position) - 1
    script.go(-0.08, 0.2, 0.06)
    script.go(-0.1, 0.2, 0.06)
    script.fingers(1.0, 0.08)
    assert script.find()[2].last == carried


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"min_transport": 0.5}, "none of them carries anything 0.5 m"),
        ({"lift_height": 0.2}, "never rises by 0.2 m"),
        ({"carry_distance": 0.4}, "the carry of cycle 0 would end at step"),
    ],
)
def test_thresholds_that_nothing_reaches_say_so(change, why):
    with pytest.raises(NotFound, match=why):
        one_cycle().find(dataclasses.replace(Thresholds(), **change))


def test_an_object_that_is_never_released_is_told():
    script = one_cycle()
    gripper = np.array(script.gripper)
    gripper[script.ends[0] + 3 :] = 0.0
    with pytest.raises(NotFound, match="does not open again"):
        script.find(gripper=gripper)


@pytest.mark.parametrize("wrong", [{"lift_height": -0.1}, {"open_share": 1.5}, {"debounce": float("nan")}])
def test_a_meaningless_threshold_is_refused(wrong):
    with pytest.raises(ThresholdError, match=f"--{next(iter(wrong))}: expected 0"):
        Thresholds(**wrong)
