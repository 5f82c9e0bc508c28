"""Paths that are missing and runs that are in the way are named before anything is built."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.lock import LockedError, RunLock, holder
from eosjax.runs.record import CheckpointRecord
from eosjax.training.preflight import check_paths, check_shared
from tests.saved_runs import run_record
from tests.training.conftest import TINY


@pytest.fixture
def sound(tmp_path):
    """A configuration whose paths are all there."""
    (tmp_path / "data" / "libero_goal_no_noops").mkdir(parents=True)
    labels = tmp_path / "labels.json"
    labels.write_text("{}")
    return dataclasses.replace(TrainConfig(), data_root_dir=tmp_path / "data", substep_labels_path=labels, run_root_dir=tmp_path / "runs")


class TestPaths:
    def test_a_sound_configuration_passes(self, sound):
        check_paths(sound)

    def test_missing_dataset(self, sound):
        with pytest.raises(ConfigError, match="no dataset at .*elsewhere.*--data_root_dir"):
            check_paths(dataclasses.replace(sound, data_root_dir=Path("elsewhere")))

    def test_missing_labels(self, sound):
        with pytest.raises(ConfigError, match="--substep_labels_path no.json: no such file"):
            check_paths(dataclasses.replace(sound, substep_labels_path=Path("no.json")))
        with pytest.raises(ConfigError, match="--substep_labels_path is missing"):
            check_paths(dataclasses.replace(sound, substep_labels_path=None))

    def test_labels_that_are_a_pipe(self, sound, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="pipe: not a regular file"):
            check_paths(dataclasses.replace(sound, substep_labels_path=tmp_path / "pipe"))

    def test_every_dataset_of_a_mixture_is_looked_for(self, sound):
        mixed = dataclasses.replace(sound, dataset_name="libero_goal_no_noops,libero_10:2")
        with pytest.raises(ConfigError, match="no dataset at .*libero_10: set --data_root_dir"):
            check_paths(mixed)
        (sound.data_root_dir / "libero_10").mkdir()
        check_paths(mixed)
        labels = Path(f"{sound.substep_labels_path}, no.json")
        with pytest.raises(ConfigError, match="--substep_labels_path no.json: no such file"):
            check_paths(dataclasses.replace(mixed, substep_labels_path=labels))

    def test_the_demo_needs_neither_data_nor_labels(self, sound):
        check_paths(dataclasses.replace(sound, dataset_name="eosjax_demo", substep_labels_path=None))
        check_paths(dataclasses.replace(sound, dataset_name="eosjax_demo,libero_goal_no_noops"))

    def test_labels_may_be_a_folder(self, sound):
        check_paths(dataclasses.replace(sound, substep_labels_path=sound.data_root_dir))

    def test_unknown_format_of_labels(self, sound):
        with pytest.raises(ConfigError, match="--substep_labels_format must be one of auto, .*, got csv"):
            check_paths(dataclasses.replace(sound, substep_labels_format="csv"))

    def test_missing_descriptions(self, sound):
        with pytest.raises(ConfigError, match="--dataset_specs own.yaml: no such file"):
            check_paths(dataclasses.replace(sound, dataset_specs=Path("own.yaml")))

    def test_a_folder_with_a_run_is_left_alone(self, sound):
        leave_a_run(sound)
        with pytest.raises(ConfigError, match="already holds a run.*--resume True.*--run_id_note"):
            check_paths(sound)

    def test_a_log_without_a_checkpoint_is_no_run_to_go_on_from(self, sound):
        leave_a_run(sound)
        shutil.rmtree(sound.run_dir / "checkpoints" / "10")
        for resume in (False, True):
            with pytest.raises(ConfigError, match="ended before its first checkpoint.*delete the folder"):
                check_paths(dataclasses.replace(sound, resume=resume))

    def test_a_run_that_never_began_may_be_started_again(self, sound):
        leave_a_run(sound)
        shutil.rmtree(sound.run_dir / "checkpoints" / "10")
        (sound.run_dir / "metrics.jsonl").write_text("")
        check_paths(sound)

    def test_a_save_that_was_killed_is_no_run(self, sound):
        """What Orbax leaves of it: neither message may send the user to the other."""
        (sound.run_dir / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
        check_paths(sound)
        with pytest.raises(ConfigError, match="holds no run to go on from"):
            check_paths(dataclasses.replace(sound, resume=True))

    def test_folders_that_cannot_be_made(self, sound):
        blocking = sound.data_root_dir.parent / "labels.json"
        with pytest.raises(ConfigError, match=r"--run_root_dir .*labels.json/runs: cannot be made"):
            check_paths(dataclasses.replace(sound, run_root_dir=blocking / "runs"))
        with pytest.raises(ConfigError, match=r"--cache_dir .*labels.json: cannot be made"):
            check_paths(dataclasses.replace(sound, cache_dir=blocking))
        with pytest.raises(ConfigError, match=r"--compile_cache_dir .*labels.json: cannot be made"):
            check_paths(dataclasses.replace(sound, compile_cache_dir=blocking))

    def test_resume_of_a_tuned_run_takes_the_same_command(self, sound):
        asked = dataclasses.replace(sound, eos_tune="auto")
        leave_a_run(dataclasses.replace(asked, eos_sample_positive=10, eos_min_positive=10))
        check_paths(dataclasses.replace(asked, resume=True))
        with pytest.raises(ConfigError, match="--eos_sample_positive is 15, was 10"):
            check_paths(dataclasses.replace(asked, resume=True, eos_tune="manual"))

    def test_a_folder_that_another_process_trains_in(self, sound):
        with RunLock(sound.run_dir), pytest.raises(LockedError, match="is training in this folder"):
            check_paths(sound)
        check_paths(sound)

    def test_a_folder_that_other_machines_do_not_see(self, tmp_path):
        with RunLock(tmp_path / "run"):
            check_shared(tmp_path / "run", holder(tmp_path / "run"), seconds=0)
            with pytest.raises(ConfigError, match="is not the folder that process 0 has taken .*one file system that all processes see"):
                check_shared(tmp_path / "run", "process 7 on elsewhere", seconds=0)
        with pytest.raises(ConfigError, match="is not the folder"):
            check_shared(tmp_path / "other", "process 7 on elsewhere", seconds=0.3)

    def test_resume_needs_a_run(self, sound):
        with pytest.raises(ConfigError, match="holds no run to go on from"):
            check_paths(dataclasses.replace(sound, resume=True))

    def test_resume_takes_the_same_run_only(self, sound):
        leave_a_run(sound)
        check_paths(dataclasses.replace(sound, resume=True, max_steps=300_000))
        with pytest.raises(ConfigError, match="other flags: --lambda_eos is 1.0, was 2.0"):
            check_paths(dataclasses.replace(sound, resume=True, lambda_eos=1.0))

    def test_a_longer_run_is_never_made_shorter(self, sound):
        leave_a_run(sound)
        shorter = dataclasses.replace(sound, resume=True, max_steps=sound.max_steps - 1)
        with pytest.raises(ConfigError, match=rf"--max_steps: expected {sound.max_steps} as in .*, or more, got {sound.max_steps - 1}"):
            check_paths(shorter)

    def test_resume_refuses_another_mixture(self, sound):
        (sound.data_root_dir / "libero_10").mkdir()
        mixed = dataclasses.replace(sound, dataset_name="libero_goal_no_noops,libero_10", run_id_override="run")
        leave_a_run(mixed)
        with pytest.raises(ConfigError, match="--dataset_name is libero_goal_no_noops,libero_10:2, was libero_goal_no_noops,libero_10"):
            check_paths(dataclasses.replace(mixed, resume=True, dataset_name="libero_goal_no_noops,libero_10:2"))
        with pytest.raises(ConfigError, match="--allow is unlabelled, was None"):
            check_paths(dataclasses.replace(mixed, resume=True, allow="unlabelled"))


def leave_a_run(config):
    """A run folder with a log and a checkpoint that holds nothing but its record."""
    state = {"step": jnp.zeros((), jnp.int32)}
    checkpoints = Checkpoints(config.run_dir / "checkpoints", keep=1)
    checkpoints.save(state, CheckpointRecord(run_record(config, TINY, b"{}", {}), 10, None, None, fetch_fingerprints(state)))
    checkpoints.close()
    (config.run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
