"""Each finding against a plain loop over episodes, and the words of each."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.labels import import_labels, join_labels, plausibility
from eosjax.data.labels.join import Labels
from eosjax.data.labels.plausibility import Finding, ImplausibleError
from tests.data.labels.builders import dataset, lerobot

HZ = 20.0
# Episodes as lists of (instruction, is end) by step.
EPISODES = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=10), min_size=1, max_size=4).filter(any)


def starts_of(episodes):
    return np.cumsum([0, *map(len, episodes)])


def labels_of(episodes, labelled=None):
    ids, ends = (np.array(column) for column in zip(*itertools.chain(*episodes), strict=True))
    return Labels(ids.astype(np.int32), ["a", "b", "c"], ends, np.ones(len(episodes), bool) if labelled is None else np.array(labelled))


def episode_of(length, *ends, ids=None):
    """Steps of an episode with ends at some of them."""
    return [(0 if ids is None else ids[step], step in ends) for step in range(length)]


def check(*episodes, hz=HZ):
    return plausibility.check_labels(labels_of(episodes), starts_of(episodes), hz)


@given(EPISODES)
def test_a_substep_begins_after_the_end_before_it_or_with_its_episode(episodes):
    expected = []
    for episode in episodes:
        length = 0
        for _, is_end in episode:
            length += 1
            if is_end:
                expected.append(length)
                length = 0
    assert plausibility.substep_lengths(labels_of(episodes).ends, starts_of(episodes)).tolist() == expected


@given(EPISODES)
def test_a_step_flickers_if_the_steps_on_both_sides_agree_and_it_does_not(episodes):
    expected, first = [], 0
    for episode in episodes:
        ids = [each for each, _ in episode]
        expected += [first + t for t in range(1, len(ids) - 1) if ids[t - 1] == ids[t + 1] != ids[t]]
        first += len(ids)
    assert plausibility.flickering(labels_of(episodes).instruction_ids, starts_of(episodes)).tolist() == expected


@given(EPISODES, st.sampled_from([1.0, 10.0, 20.0]))
def test_labels_are_judged_as_a_person_would_count(episodes, hz):
    ends = [is_end for episode in episodes for _, is_end in episode]
    in_a_row = sum(before and after for episode in episodes for (_, before), (_, after) in itertools.pairwise(episode))
    short = 0
    for episode in episodes:
        places = [-1, *(step for step, (_, is_end) in enumerate(episode) if is_end)]
        gaps = [after - before for before, after in itertools.pairwise(places)]
        short += sum(gap < 0.2 * hz and not (gap == 1 and before >= 0) for before, gap in zip(places, gaps, strict=False))
    found = check(*episodes, hz=hz)
    share = sum(ends) / len(ends)
    assert any("steps are ends" in each.what for each in found) == (share > 0.15)
    assert any(each.impossible for each in found) == (share > 1 / 3)
    for number, words in ((in_a_row, "come right behind another end"), (short, "shorter than 0.2 s")):
        assert [each.what.split()[0] for each in found if words in each.what] == ([str(number)] if number else [])


def test_labels_as_they_should_be_are_not_remarked_upon():
    assert check(episode_of(60, 29, 59), episode_of(50, 20, 49)) == []


def test_unlabelled_episodes_do_not_count():
    episodes = episode_of(25, 5, 10, 15, 20, 24), episode_of(1000)
    for labelled, words in ([True, True], []), ([True, False], ["20.0% of the steps"]), ([False, False], []):
        found = plausibility.check_labels(labels_of(episodes, labelled), starts_of(episodes), HZ)
        assert [each.what.partition(" are")[0] for each in found] == words


@pytest.mark.parametrize(
    ("episodes", "finding"),
    [
        (
            [episode_of(25, *range(1, 25, 2))],
            Finding(True, "48.0% of the steps are ends, a sub-step of 2.1 steps on average; expected a few per cent"),
        ),
        ([episode_of(100, 50, 99), episode_of(100, 50, 51, 52)], Finding(False, "2 of 5 ends come right behind another end (episode 1)")),
        (
            [episode_of(100, 2, 99)] + [episode_of(100, 50, 53)] * 5,
            Finding(False, "6 of 12 sub-steps are shorter than 0.2 s, the shortest 3 step(s) (episode 0, 1, 2, 3, 4, …)"),
        ),
        (
            [episode_of(60, 29, ids=[0] * 10 + [1] + [0] * 49)],
            Finding(False, "1 single step(s) have another instruction than the steps on both sides (episode 0): the labels flicker"),
        ),
    ],
)
def test_what_is_said_of_labels(episodes, finding):
    assert finding in check(*episodes)


def grasp(length=30, close=10, opened=20):
    """Gripper commands of an episode, 1 = open."""
    return np.where((np.arange(length) >= close) & (np.arange(length) < opened), 0.0, 1.0)


def test_an_inverted_gripper():
    gripper, starts = np.tile(grasp(), 3), np.array([0, 30, 60, 90])
    opening = np.roll(0.02 + 0.06 * gripper, 2)  # the fingers come after the command
    check = plausibility.check_gripper
    assert check(gripper, starts, opening) == check(gripper, starts) == []
    contrary, begins = check(1 - gripper, starts, opening)
    assert contrary.impossible
    assert contrary.what.startswith("the fingers do the contrary of the command at 6 of the 6 times that it changes: the gripper")
    assert begins == Finding(False, "3 of 3 episodes begin with a closed hand that opens later: is the gripper inverted?")
    assert check(1 - gripper, starts) == [begins]
    assert check(gripper, starts, -opening)[0].impossible  # or the column of the fingers
    assert check(np.zeros(90), starts, opening) == []  # a hand that never opens says nothing
    assert check(gripper, starts, np.ones(90)) == []  # nor do fingers that never move


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=8), min_size=1, max_size=3).filter(any))
def test_fingers_are_asked_before_each_change_and_before_the_next(episodes):
    """Steps are pairs of (closed, opening)."""
    moves = []
    for steps in episodes:
        runs = [list(run) for _, run in itertools.groupby(steps, key=lambda step: step[0])]
        for before, after in itertools.pairwise(runs):
            moved = after[-1][1] - before[-1][1]
            moves += [(moved > 0) == after[0][0]] if moved else []
    closed, opening = (np.array(column) for column in zip(*itertools.chain(*episodes), strict=True))
    found = plausibility.check_gripper(1.0 - closed, starts_of(episodes), opening)
    told = [each.impossible for each in found if "the contrary" in each.what]
    assert told == ([sum(moves) > 0.8 * len(moves)] if 2 * sum(moves) > len(moves) else [])


def test_episodes_without_steps_change_nothing():
    full, gripper, labels = dataset(30, 30), np.tile(1 - grasp(), 2), labels_of([episode_of(30, 9, 29)] * 2)
    found = plausibility.check_dataset(labels, full, gripper, HZ)
    assert found
    labelled = np.array([False, True, False, True, False])
    assert plausibility.check_dataset(labels._replace(labelled=labelled), dataset(0, 30, 0, 30, 0), gripper, HZ) == found


def test_an_episode_that_ends_holding_though_its_task_does_not():
    gripper = np.concatenate([grasp(), grasp(), grasp(opened=30), grasp(opened=30)])
    starts, tasks, labelled = np.arange(5) * 30, ["a", "a", "a", "b"], np.ones(4, bool)
    (found,) = plausibility.check_release(gripper, starts, tasks, labelled)
    assert found == Finding(False, "1 episode(s) end with a closed hand, other than most of their task (episode 2): cut off?")
    labelled[2] = False
    assert plausibility.check_release(gripper, starts, tasks, labelled) == []


@pytest.mark.parametrize(
    ("unit", "impossible", "words"),
    [
        (1.0, None, ""),
        (1000.0, True, "the hand moves by 500 along an axis in the median episode; expected 0.02 to 3 m: millimetres?"),
        (100.0, True, "centimetres?"),
        (10.0, False, "another unit, or no positions?"),
        (0.001, False, "kilometres, or no positions?"),
        (np.nan, True, "the position of the hand is not finite at 60 step(s)"),
    ],
)
def test_the_unit_of_positions(unit, impossible, words):
    path = np.linspace([0.1, 0.2, 0.3], [0.2, 0.7, 0.1], 30)
    found = plausibility.check_positions(np.concatenate([path, path]) * unit, np.array([0, 30, 60]))
    assert [each.impossible for each in found] == ([] if impossible is None else [impossible])
    assert all(words in each.what for each in found)


@given(st.lists(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=5), min_size=1, max_size=4).filter(any))
def test_extents_are_the_largest_range_of_a_coordinate(episodes):
    expected = [max(max(column) - min(column) for column in zip(*episode, strict=True)) for episode in episodes if episode]
    found = plausibility.extents(np.array(list(itertools.chain(*episodes))), starts_of(episodes))
    np.testing.assert_array_equal(found, expected)


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 2)), st.lists(st.sampled_from("ab"), min_size=10, max_size=10))
def test_who_deviates_from_most_of_the_task(values, tasks):
    expected = []
    for episode, value in values.items():
        peers = [each for other, each in values.items() if tasks[other] == tasks[episode]]
        usual = [each for each in peers if 2 * peers.count(each) > len(peers)]
        expected += [episode] if usual and usual[0] != value else []
    assert plausibility.deviating(values, tasks) == expected


def test_another_number_of_cycles_than_most():
    (found,) = plausibility.check_cycles({0: 1, 1: 1, 2: 3, 5: 2}, ["a", "a", "a", "b", "b", "b"])
    assert found == Finding(False, "1 episode(s) have another number of cycles than most of their task (episode 2: 3)")
    assert plausibility.check_cycles({0: 1, 1: 2}, ["a", "a"]) == []


def test_a_dataset_is_checked_for_all_that_needs_no_position():
    gripper = np.concatenate([grasp(), grasp(), grasp(opened=30)])
    gripper[[0, 30, 60]] = 0.0
    found = plausibility.check_dataset(labels_of([episode_of(30, 3, 4, 29)] * 3), dataset(30, 30, 30), gripper, HZ)
    assert [each.what.split(" (")[0] for each in found] == [
        "3 of 9 ends come right behind another end",
        "3 of 3 episodes begin with a closed hand that opens later: is the gripper inverted?",
        "1 episode(s) end with a closed hand, other than most of their task",
    ]


def test_an_index_of_lerobot_that_flickers(tmp_path):
    """One frame of another sub-step makes three ends of one, which the join accepts."""
    index = np.repeat([0, 1], 30)
    index[12] = 1
    folder = lerobot(tmp_path, [60], fps=20, data={"subtask_index": index}, subtasks=["reach", "lift"])
    labels = join_labels(import_labels(folder, "any"), dataset(60))
    assert np.flatnonzero(labels.ends).tolist() == [11, 12, 29, 59]
    assert [each.what for each in plausibility.check_labels(labels, np.array([0, 60]), HZ)] == [
        "1 of 4 ends come right behind another end (episode 0)",
        "1 single step(s) have another instruction than the steps on both sides (episode 0): the labels flicker",
    ]


def test_only_the_impossible_is_refused():
    findings = [Finding(False, "seldom"), Finding(True, "never"), Finding(True, "nowhere")]
    with pytest.raises(ImplausibleError) as raised:
        plausibility.refuse_impossible(findings, "labels.json")
    assert str(raised.value) == "labels.json: cannot be right:\n  never\n  nowhere"
    plausibility.refuse_impossible(findings[:1], "labels.json")
