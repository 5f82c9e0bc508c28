"""Data opened as the flags say; counts chosen from the share of ends, and what is said about it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.data.episode import Episode
from eosjax.data.frames.build import write_store
from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import LabelError
from eosjax.data.labels.plausibility import ImplausibleError
from eosjax.flag_values import ConfigError
from eosjax.runs.data import dataset_records, open_data, relabel_data, reopen_data
from eosjax.runs.policy_source import PolicySource
from eosjax.training.data_checks import check_ends, check_plausible, describe_data, tune_counts
from eosjax.training.parallel import choose_devices
from eosjax.types import UserError

AUTO = dataclasses.replace(TrainConfig(), eos_tune="auto")
POLICY = PolicySource.open(dataclasses.replace(TrainConfig(), vla_path="demo", use_lora=False))


@pytest.mark.parametrize(("share", "count"), [(0.012, 10), (0.0499, 10), (0.05, 15), (0.1, 15), (0.11, 20)])
def test_counts_follow_the_share_of_ends(share, count):
    tuned, why = tune_counts(AUTO, share)
    assert (tuned.eos_sample_positive, tuned.eos_min_positive) == (count, count)
    assert (tuned.eos_sample_negative, tuned.eos_min_negative) == (20, 20)
    assert f"{share:.2%}" in why
    assert f"= {count}" in why


def test_counts_stay_as_they_are_unless_asked():
    assert tune_counts(TrainConfig(), 0.01) == (TrainConfig(), "")


def test_a_buffer_too_small_for_the_chosen_counts_is_refused():
    small = {"eos_buffer_capacity": 18, "eos_sample_negative": 5, "eos_min_negative": 5}
    with pytest.raises(ConfigError, match=r"--eos_buffer_capacity \(18\) is less than --eos_min_positive \(20\)"):
        tune_counts(dataclasses.replace(AUTO, **small), 0.2)


@pytest.mark.parametrize(("train", "val", "named"), [([0, 0], [1], "training"), ([0, 1], [0], "validation")])
def test_a_split_without_ends_is_refused(train, val, named):
    ends = np.array([*train, *val], bool)
    split = lambda anchors: SimpleNamespace(anchors=anchors, data=SimpleNamespace(labels=SimpleNamespace(ends=ends)), episodes=[0])
    data = SimpleNamespace(train=split(np.arange(2)), val=split(np.array([2])))
    with pytest.raises(ConfigError, match=f"the {named} split .* has no end of a sub-step"):
        check_ends(data)
    check_ends(SimpleNamespace(train=split(np.arange(3)), val=None))
    with pytest.raises(ConfigError, match="the training split .* has nothing but ends"):
        check_ends(SimpleNamespace(train=split(np.flatnonzero(ends)), val=None))


def test_labels_that_no_robot_has_are_refused_and_unlikely_ones_told(mixed):
    """An end at every second step."""
    data = open_data(mixed, POLICY)
    goal = data.mixture.datasets[0]
    check_plausible(goal)
    assert sum("come right behind another end" in line for line in describe_data(data, Path())) == 0
    goal.labels.ends[::2] = goal.labels.ends[1] = True
    with pytest.raises(ImplausibleError, match=r"the labels of libero_goal: cannot be right:\n  68.2% of the steps are ends"):
        check_plausible(goal)
    assert sum(line.startswith("warning: libero_goal: ") and "come right behind" in line for line in describe_data(data, Path())) == 1


def test_a_checkpoint_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="--vla_path .*: no such folder"):
        PolicySource.open(dataclasses.replace(TrainConfig(), vla_path=str(tmp_path / "nowhere")))


def test_devices():
    assert choose_devices(0) == jax.devices()
    assert choose_devices(2) == jax.devices()[:2]
    with pytest.raises(UserError, match="--num_devices 9: JAX sees 4 cpu"):
        choose_devices(9)


LENGTHS = {"libero_goal": (6, 4, 5, 7), "libero_10": (3, 8, 4)}


def episodes(lengths):
    for number, length in enumerate(lengths):
        ramp = np.linspace(number, number + 1.0, length)
        actions, proprio = (np.stack([ramp] * size, axis=1).astype(np.float32) for size in (7, 8))
        actions[:, -1] = ramp > number
        proprio[:, 3] = 1.0 + 1e-6 * ramp
        yield Episode(number, ([b""] * length, [b""] * length), actions, proprio, f"Task {number % 2}", "")


def label_body(number, length):
    steps = [{"timestep": t, "APD_step": f"half {t // 2 > length // 4}", "is_substep_end": t == length - 1} for t in range(length)]
    return {"instruction": f"Task {number % 2}", "total_timesteps": length, "timestep_labels": steps}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """The configuration of a mixture of two small datasets whose labels are in one file; the frame stores are there already."""
    suites = {}
    for name, lengths in LENGTHS.items():
        (tmp_path / name).mkdir()
        write_store(episodes(lengths), name, tmp_path / name)
        tasks = suites.setdefault(name, {})
        for number, length in enumerate(lengths):
            tasks.setdefault(f"task_{number % 2}", {})[f"episode_{number}"] = label_body(number, length)
    (tmp_path / "labels.json").write_text(json.dumps(suites))
    monkeypatch.setattr("eosjax.runs.data.open_store", lambda data_root, name, spec, cache_dir: FrameStore(Path(data_root) / name))
    return TrainConfig(
        vla_path="demo",
        use_lora=False,
        dataset_name="libero_goal:2,libero_10",
        data_root_dir=tmp_path,
        substep_labels_path=tmp_path / "labels.json",
        val_share=0.3,
    )


def without_episode(config, suite, number):
    """The configuration with one episode less in a copy of its label file."""
    content = json.loads(config.substep_labels_path.read_text())
    del content[suite][f"task_{number % 2}"][f"episode_{number}"]
    path = config.substep_labels_path.with_name("fewer.json")
    path.write_text(json.dumps(content))
    return dataclasses.replace(config, substep_labels_path=path)


def test_a_mixture_is_opened_and_described(mixed):
    data = open_data(mixed, POLICY)
    assert data.val is not None
    assert sorted([*data.train.episodes, *data.val.episodes]) == list(range(7))
    for first, last in ((0, 4), (4, 7)):  # each dataset is on both sides
        assert all(((first <= side.episodes) & (side.episodes < last)).any() for side in (data.train, data.val))
    assert list(data.mixture.stats) == ["libero_goal", "libero_10"]
    assert np.flatnonzero(data.mixture.labels.ends).tolist() == [5, 9, 14, 21, 24, 32, 36]
    lines = describe_data(data, Path())
    goal, ten = np.diff(data.train.first_samples)
    assert lines[0] == f"{goal + ten} training samples of {len(data.train.episodes)} episodes of libero_goal + libero_10"
    assert f"libero_goal: {2 * goal / (2 * goal + ten):.1%} of the samples (weight 2)" in lines
    assert sum("proprio dimension(s) 3 hardly vary" in line for line in lines) == 2


def test_the_episodes_that_were_held_out_are_recorded_and_compared(mixed):
    data = open_data(mixed, POLICY)
    recorded = dataset_records(data)
    goal, ten = ([int(number) for number in data.val.episodes if (number < 4) == first] for first in (True, False))
    assert [list(each.held_out) for each in recorded] == [goal, [number - 4 for number in ten]]
    model = SimpleNamespace(dino=SimpleNamespace(image_size=data.train.image_size))
    reopened = reopen_data(mixed, SimpleNamespace(datasets=recorded, model=model), POLICY.tokenizer)
    np.testing.assert_array_equal(reopened.val.episodes, data.val.episodes)
    others = (recorded[0], dataclasses.replace(recorded[1], held_out=(9,)))
    with pytest.raises(UserError, match=rf"not those .* trained on:\n  datasets.libero_10.held_out.0 is {ten[0] - 4}, was 9"):
        reopen_data(mixed, SimpleNamespace(datasets=others, model=model), POLICY.tokenizer)
    whole = open_data(dataclasses.replace(mixed, use_val_set=False), POLICY)
    assert [each.held_out for each in dataset_records(whole)] == [(), ()]


def test_other_labels_leave_what_was_held_out_held_out(mixed):
    data = open_data(mixed, POLICY)
    model = SimpleNamespace(dino=SimpleNamespace(image_size=data.train.image_size))
    record = SimpleNamespace(datasets=dataset_records(data), model=model)
    (first, *_), episode = [int(each) for each in data.train.episodes if each < 4], int(data.val.episodes[-1])
    fewer = dataclasses.replace(without_episode(mixed, "libero_goal", first), allow="unlabelled", val_share=0.5)
    other = relabel_data(fewer, record, POLICY.tokenizer)
    assert other.train.episodes.tolist() == [each for each in data.train.episodes if each != first]
    np.testing.assert_array_equal(other.val.episodes, data.val.episodes)
    for each, recorded in zip(other.mixture.datasets, record.datasets, strict=True):
        assert each.stats is recorded.statistics
    without = dataclasses.replace(without_episode(fewer, "libero_10", episode - 4), allow="unlabelled")
    assert episode not in relabel_data(without, record, POLICY.tokenizer).val.episodes

    def held(*numbers):
        parts = zip(record.datasets, numbers, strict=True)
        return SimpleNamespace(datasets=tuple(dataclasses.replace(each, held_out=part) for each, part in parts), model=model)

    for numbers, message in (
        (((), ()), r"no episodes to measure on: the run held out none \(--use_val_set False\)"),
        (((first,), ()), "no episodes to measure on: none of those that the run held out has labels"),
        (((0, 1, 2, 3), (0, 1, 2)), "no episodes to train on: only those that the run held out have labels"),
    ):
        with pytest.raises(UserError, match=message):
            relabel_data(fewer, held(*numbers), POLICY.tokenizer)
    frames = SimpleNamespace(datasets=(dataclasses.replace(record.datasets[0], frames="others"), record.datasets[1]), model=model)
    with pytest.raises(UserError, match="datasets.libero_goal.frames is .*, was others"):
        relabel_data(mixed, frames, POLICY.tokenizer)


def test_prompts_are_reworded_unless_the_flags_say_no(mixed):
    reworded, plain = (open_data(dataclasses.replace(mixed, rephrase=rephrase), POLICY) for rephrase in (True, False))
    assert (reworded.train.rephrase, plain.train.rephrase) == (True, False)
    assert reworded.val is not None
    assert reworded.train.length == reworded.val.length > plain.train.length


def test_one_label_file_a_dataset(mixed):
    twice = Path(f"{mixed.substep_labels_path},{mixed.substep_labels_path}")
    ends = [
        open_data(dataclasses.replace(mixed, substep_labels_path=path), POLICY).mixture.labels.ends
        for path in (twice, mixed.substep_labels_path)
    ]
    np.testing.assert_array_equal(*ends)


def test_unlabelled_episodes_are_refused_or_left_out(mixed):
    fewer = without_episode(mixed, "libero_10", 1)
    with pytest.raises(LabelError, match="episode 1"):
        open_data(fewer, POLICY)
    data = open_data(dataclasses.replace(fewer, allow="unlabelled"), POLICY)
    assert data.val is not None
    assert sorted([*data.train.episodes, *data.val.episodes]) == [0, 1, 2, 3, 4, 6]
    assert "libero_10: 1 of 3 episodes have no labels and are left out" in describe_data(data, Path())
    assert data.mixture.stats["libero_10"].num_trajectories == 3  # of all episodes


def test_episodes_without_task_or_steps_are_refused_or_left_out(mixed, monkeypatch):
    store = FrameStore(mixed.data_root_dir / "libero_goal")
    store.tasks[2] = "..."
    store.episode_starts = np.array([0, 6, 6, 15, 22])  # the second episode is empty, its steps are in the third one
    config = dataclasses.replace(mixed, dataset_name="libero_goal", use_substep_eos=False, use_eos_classification=False)
    monkeypatch.setattr("eosjax.runs.data.open_store", lambda *args: store)
    with pytest.raises(LabelError, match="1 x empty episode, 1 x blank task"):
        open_data(config, POLICY)
    data = open_data(dataclasses.replace(config, allow="empty_episodes,blank_tasks"), POLICY)
    assert data.val is not None
    assert sorted([*data.train.episodes, *data.val.episodes]) == [0, 3]
    assert "".join(data.train.data.labels.instructions) == "...task 0task 1"
    lines = describe_data(data, Path())
    assert "libero_goal: 1 of 4 episodes have no steps and are left out" in lines
    assert "libero_goal: 1 of 4 episodes have no task instruction and are left out" in lines
    assert not [line for line in lines if "no labels" in line]


def test_conventions_are_mixed_only_on_purpose(mixed, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "libero_10: {image_keys: [image, wrist_image], state_keys: [state], gripper: minus_open_plus_closed, "
        "action_size: 7, proprio_size: 8, control_hz: 5}"
    )
    config = dataclasses.replace(mixed, dataset_specs=own)
    with pytest.raises(UserError, match=r"libero_goal has control_hz 20.0 and libero_10 has 5.0"):
        open_data(config, POLICY)
    assert open_data(dataclasses.replace(config, allow="mixed_conventions"), POLICY).mixture.num_episodes == 7


def test_actions_far_from_the_others_are_refused(mixed, monkeypatch):
    store = FrameStore(mixed.data_root_dir / "libero_goal")
    store.actions[:, 6] *= 850
    monkeypatch.setattr("eosjax.runs.data.open_store", lambda *args: store)
    with pytest.raises(UserError, match="libero_goal: action dimension 6 is not normalised and ranges from 0 to 850"):
        open_data(mixed, POLICY)


def test_the_format_of_the_labels_can_be_named(mixed):
    with pytest.raises(UserError):
        open_data(dataclasses.replace(mixed, substep_labels_format="cyclevla"), POLICY)


def test_the_description_of_a_dataset_can_be_ones_own(mixed, tmp_path):
    own = tmp_path / "own.yaml"
    layout = "image_keys: [image], state_keys: [state], gripper: as_stored, action_size: 7, proprio_size: 8, control_hz: 5"
    own.write_text(f"libero_10: {{{layout}, chunk: 4}}")
    with pytest.raises(UserError, match="libero_goal has chunk 8 and libero_10 has 4"):
        open_data(dataclasses.replace(mixed, dataset_specs=own), POLICY)
