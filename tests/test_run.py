"""The real program in processes of its own: it runs, it is killed, it goes on, and nothing tells the difference."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import train
from eosjax.flags import parse
from eosjax.runs.load import choose_checkpoint
from eosjax.training.run import run
from eosjax.types import UserError

TRAIN = Path(__file__).parents[1] / "train.py"
FLAGS = (
    "--vla_path demo --use_lora False --model_dtype float32 --num_images_in_input 2 --batch_size 2 --image_aug True --use_val_set True "
    "--val_share 0.25 --log_freq 2 --val_freq 6 --save_freq 3 --eos_buffer_capacity 8 --eos_sample_positive 2 --eos_min_positive 2 "
    "--eos_sample_negative 3 --eos_min_negative 3 --eos_hidden_dim 8 --deterministic True"
).split()


@pytest.fixture(scope="module")
def data_flags(tiny, shared_folder, once):
    """Flags for the tiny dataset with a label file: an end in the middle and at the end of each episode."""
    labels = shared_folder / "run_labels" / "labels.json"
    with once("run_labels") as folder:
        if folder:
            folder.mkdir()
            tasks = {}
            for episode, (number, length) in enumerate(zip(tiny.numbers, tiny.lengths, strict=True)):
                entry = {"action": "move", "cycle": 0}
                steps = [
                    {
                        **entry,
                        "timestep": t,
                        "APD_step": "first half" if t <= length // 2 else "second half",
                        "is_substep_end": t in (length // 2, length - 1),
                    }
                    for t in range(length)
                ]
                body = {"instruction": f"Do task {number % 3}", "total_timesteps": length, "timestep_labels": steps}
                tasks.setdefault(f"do_task_{number % 3}", {})[f"episode_{episode}"] = body
            labels.write_text(json.dumps({"libero_goal": tasks}))
    cache = shared_folder / "run_cache"
    flags = f"--data_root_dir {tiny.root} --dataset_name {tiny.name} --substep_labels_path {labels} --cache_dir {cache}"
    return flags.split()


def start(flags, run_root):
    command = [sys.executable, str(TRAIN), *FLAGS, *flags, "--run_root_dir", str(run_root), "--run_id_override", "run"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}  # one device
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refusal(flags, run_root):
    """What a run in this process is refused with, or ends with. (How the program tells it, two tests in processes of their own show.)"""
    with pytest.raises(UserError) as error:
        run(parse([*FLAGS, *flags, "--num_devices", "1", "--run_root_dir", str(run_root), "--run_id_override", "run"]))
    return str(error.value)


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def read_until(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed; {process.stderr.read()}")


def rows(folder):
    """Rows of metrics.jsonl but for the timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def checkpoint(folder, step):
    """The arrays of a checkpoint by name, as saved, and its record."""
    path = folder / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(path / "state")
    record = json.loads((path / "record" / "metadata").read_text())
    return state, record


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return a is b is None or np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def whole(data_flags, shared_folder, once):
    """(output, folder) of a run of 24 steps that nothing interrupts; one for all workers."""
    root = shared_folder / "whole"
    with once("whole") as folder:
        if folder:
            output = finish(start([*data_flags, "--max_steps", "24"], root))
            (root / "output.txt").write_text(output)
    return (root / "output.txt").read_text(), root / "run"


def test_a_run_leaves_what_it_promises(whole):
    output, folder = whole
    assert "[EOS UPDATE] eos_loss = " in output
    assert "batch = 5, pos = 2, neg = 3, ✓ HAS GRAD" in output
    assert "% of the training steps are ends: about" in output
    assert "always off" in output
    names = {path.name for path in folder.iterdir()}
    expected = "config.yaml dataset_statistics.json tokenizer.json metrics.jsonl tensorboard checkpoints comparison.json"
    assert names >= {*expected.split(), "precision_recall.png", "timeline.png"}
    last = rows(folder)
    training, validation = [{k: v for r in last for k, v in r.items() if k.startswith(kind)} for kind in ("train/", "val/")]
    assert {"train/action_loss", "train/eos_loss", "train/eos_updated", "train/eos_buffer_positive", "train/eos_grad_norm"} <= set(training)
    assert {"val/action_loss", "val/frame/average_precision", "val/frame/share_of_ends", "val/event/ap_mean"} <= set(validation)
    assert {"val/event/recall@2", "val/deployed/event/recall@2", "val/deployed/event/false_alarms_per_episode@2"} <= set(validation)
    assert [row["step"] for row in last if "train/action_loss" in row] == list(range(2, 25, 2))
    assert "\r" not in output  # no progress bar where there is no terminal


def test_the_operating_point_goes_on_with_its_step(whole):
    """Validated every 6 steps, saved every 3."""
    _, folder = whole
    at, behind = (checkpoint(folder, step)[1] for step in (24, 21))
    for record, step in ((at, 24), (behind, 18)):
        assert (record["operating_point"]["chosen_by"], record["operating_point"]["episodes"]) == ("false_alarms:1", 2)
        assert record["validation"]["step"] == step
        assert record["validation"]["operating_point"] == record["operating_point"]
        share = record["run"]["share_of_ends"]
        assert record["operating_point"]["calibration"]["shift"] == pytest.approx(np.log(share / (1 - share)) - np.log(2 / 3))
    precisions = {row["step"]: row["val/frame/average_precision"] for row in rows(folder) if "val/action_loss" in row}
    kept = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert choose_checkpoint(folder).record.score == max(precisions[step] for step in kept if step in precisions)
    assert max(precisions, key=lambda step: precisions[step]) in kept


def test_a_second_process_in_the_folder_is_refused_and_a_signal_saves_and_ends_the_first(data_flags, tmp_path):
    root = tmp_path / "runs"
    flags = [*data_flags, "--max_steps", "100000"]
    first = start(flags, root)
    read_until(first, "step 2/100000")
    second = start(flags, root)
    _, err = second.communicate()
    assert second.returncode == 2
    assert f"process {first.pid} on" in err
    assert "is training in this folder" in err
    assert "Traceback" not in err
    first.send_signal(signal.SIGTERM)
    assert "saved; go on with --resume" in finish(first)
    assert any(path.name.isdigit() for path in (root / "run" / "checkpoints").iterdir())


def test_resume_compares_data_and_labels(whole, data_flags, tmp_path):
    """With the same flags but a label file of other ends: named, and nothing is moved or written."""
    root = tmp_path / "runs"
    shutil.copytree(whole[1], root / "run")
    labels = Path(data_flags[data_flags.index("--substep_labels_path") + 1])
    content = json.loads(labels.read_text())
    for task in content["libero_goal"].values():
        for body in task.values():
            for step in body["timestep_labels"]:
                step["is_substep_end"] |= step["timestep"] == 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))

    def files():
        return sorted((path, path.stat().st_mtime_ns) for path in (root / "run").rglob("*") if path.is_file() and path.name != ".lock")

    before = files()
    process = start([*data_flags, "--max_steps", "30", "--resume", "--substep_labels_path", str(other)], root)
    _, err = process.communicate()
    assert process.returncode == 2
    assert re.search(r"--resume: .* was trained on something else:", err)
    assert re.search(r"  datasets\.\w+\.labels is \w{64}, was \w{64} \(instructions .*, from --substep_labels_path\)", err)
    assert re.search(r"  share_of_ends is [\d.]+, was [\d.]+", err)
    assert "Traceback" not in err
    assert files() == before


def test_killed_and_resumed_is_the_same_run_bit_for_bit(whole, data_flags, tmp_path):
    _, uninterrupted = whole
    root = tmp_path / "runs"
    flags = [*data_flags, "--max_steps", "24"]
    process = start(flags, root)
    read_until(process, "step 8/24")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = [int(path.name) for path in (root / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept
    assert max(kept) < 24
    output = finish(start([*flags, "--resume"], root))
    assert "resumed from the checkpoint of step" in output
    assert rows(root / "run") == rows(uninterrupted)
    (state, record), (expected_state, expected_record) = checkpoint(root / "run", 24), checkpoint(uninterrupted, 24)
    assert same(state, expected_state)
    assert record["fingerprints"] == expected_record["fingerprints"]
    assert record["run"]["samples_per_update"] * record["step"] == 48
    for name in record["run"].keys() - {"config"}:
        assert record["run"][name] == expected_record["run"][name], name
    assert record["validation"] == expected_record["validation"]
    assert record["operating_point"] == expected_record["operating_point"]


def test_labels_that_do_not_fit_stop_it_before_anything_is_written(data_flags, tmp_path):
    labels = Path(data_flags[data_flags.index("--substep_labels_path") + 1])
    content = json.loads(labels.read_text())
    task = next(iter(content["libero_goal"].values()))
    next(iter(task.values()))["total_timesteps"] += 1
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(content))
    assert "episode" in refusal([*data_flags, "--substep_labels_path", str(wrong)], tmp_path / "runs")
    assert not (tmp_path / "runs" / "run").exists()


def test_a_run_that_diverges_leaves_no_checkpoint_of_it(data_flags, tmp_path):
    flags = ["--max_steps", "6", "--learning_rate", "1e30", "--save_freq", "1", "--log_freq", "6"]
    assert "training has diverged by step" in refusal([*data_flags, *flags], tmp_path / "runs")
    for path in (tmp_path / "runs" / "run" / "checkpoints").glob("[0-9]*"):
        state, _ = checkpoint(tmp_path / "runs" / "run", int(path.name))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["trainable"])), path


def test_flags_that_do_not_say_what_to_train_on_vary_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.runtime, "prepare", lambda *args, **kwargs: None)  # JAX has been told
    monkeypatch.setattr(train, "stop_at_once", lambda: None)  # signals are those of pytest
    with pytest.raises(SystemExit) as stop:
        train.main(["--resume", "--run_root_dir", str(tmp_path)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "demo+eosjax_demo" in err
    assert "holds no run to go on from" in err
