"""A run that starts from a checkpoint in the Hugging Face layout, with adapters on it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from eosjax.config import ConfigError, parse
from eosjax.models.heads import EosHead
from eosjax.models.hf.weights import WeightsError, export_part
from eosjax.training import run
from tests.checkpoints import HEADS, write_checkpoint


@pytest.fixture
def flags(tiny, shared_folder, tmp_path):
    """A command that trains adapters on the tiny dataset without sub-step labels but for two ends an episode."""
    labels = {}
    for episode, (number, length) in enumerate(zip(tiny.numbers, tiny.lengths, strict=True)):
        steps = [{"timestep": t, "APD_step": "go", "is_substep_end": t in (1, length - 1)} for t in range(length)]
        body = {"instruction": f"Do task {number % 3}", "total_timesteps": length, "timestep_labels": steps}
        labels.setdefault(f"do_task_{number % 3}", {})[f"episode_{episode}"] = body
    (tmp_path / "labels.json").write_text(json.dumps({"libero_goal": labels}))
    return (
        f"--vla_path {tmp_path / 'vla'} --vision_heads {HEADS} --data_root_dir {tiny.root} --dataset_name {tiny.name} "
        f"--substep_labels_path {tmp_path / 'labels.json'} --cache_dir {shared_folder / 'pretrained_cache'} --run_root_dir {tmp_path} "
        "--run_id_override run --num_devices 1 --batch_size 2 --lora_rank 2 --image_aug False --use_val_set False --log_freq 1 "
        "--save_freq 2 --eos_buffer_capacity 8 --eos_sample_positive 2 --eos_min_positive 2 --eos_sample_negative 3 --eos_min_negative 3 "
        "--eos_hidden_dim 8 --use_tensorboard False"
    ).split()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_adapters_train_on_a_frozen_base_and_go_on_from_the_same_one_only(flags, tmp_path, capsys):
    write_checkpoint(tmp_path / "vla")
    head = EosHead(hidden_dim=8)
    params = {
        "fc1": {"kernel": np.full((7 * 16, 8), 0.01, np.float32), "bias": np.zeros(8, np.float32)},
        "fc2": {"kernel": np.full((8, 4), 0.1, np.float32), "bias": np.zeros(4, np.float32)},
        "fc3": {"kernel": np.ones((4, 1), np.float32), "bias": np.zeros(1, np.float32)},
    }
    assert head.hidden_dim == 8
    save_file(export_part("eos_head", params), tmp_path / "vla" / "eos_head--10_checkpoint.safetensors")
    run(parse([*flags, "--max_steps", "2"]))
    output = capsys.readouterr().out
    assert "5 left aside" in output
    assert "eos_head from eos_head--10_checkpoint.safetensors" in output
    assert all(row["train/lora_grad_norm"] > 0 for row in rows(tmp_path / "run"))
    run(parse([*flags, "--max_steps", "4", "--resume"]))
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]

    write_checkpoint(tmp_path / "other", seed=1)
    flags[flags.index("--vla_path") + 1] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="--vla_path is"):
        run(parse([*flags, "--max_steps", "6", "--resume"]))
    for shard in (tmp_path / "other").glob("*.safetensors"):
        shard.replace(tmp_path / "vla" / shard.name)
    flags[flags.index("--vla_path") + 1] = str(tmp_path / "vla")
    with pytest.raises(ConfigError, match="the base weights at --vla_path .* are not those that the run began with"):
        run(parse([*flags, "--max_steps", "6", "--resume"]))


def test_a_part_of_another_size_is_named(flags, tmp_path):
    write_checkpoint(tmp_path / "vla")
    wrong = {f"fc{i}": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)} for i in (1, 2, 3)}
    save_file(export_part("eos_head", wrong), tmp_path / "vla" / "eos_head.safetensors")
    with pytest.raises(WeightsError, match=r"eos_head.safetensors: model.0.weight: expected the shape \(112, 8\), got \(2, 2\)"):
        run(parse([*flags, "--max_steps", "2"]))
