"""A run that starts from a checkpoint in the Hugging Face layout, with adapters on it."""

import json
import shutil

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

from eosjax.cli import main
from eosjax.config import ConfigError
from eosjax.flags import parse
from eosjax.models.heads import EosHead
from eosjax.models.hf.weights import WeightsError, export_part
from eosjax.runs.load import load_run
from eosjax.training.loop import run
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

    (tmp_path / "vla").rename(tmp_path / "moved")  # the same weights may lie anywhere
    flags[flags.index("--vla_path") + 1] = str(tmp_path / "moved")
    run(parse([*flags, "--max_steps", "6", "--resume"]))
    write_checkpoint(tmp_path / "other", seed=1)
    flags[flags.index("--vla_path") + 1] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"trained on something else:\n  base\..* \(and \d+ more of base\)"):
        run(parse([*flags, "--max_steps", "8", "--resume"]))


def test_a_part_of_another_size_is_named(flags, tmp_path):
    write_checkpoint(tmp_path / "vla")
    wrong = {f"fc{i}": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)} for i in (1, 2, 3)}
    save_file(export_part("eos_head", wrong), tmp_path / "vla" / "eos_head.safetensors")
    with pytest.raises(WeightsError, match=r"eos_head.safetensors: model.0.weight: expected the shape \(112, 8\), got \(2, 2\)"):
        run(parse([*flags, "--max_steps", "2"]))


def test_a_diffusion_policy_goes_on_from_what_was_exported_of_it(flags, tmp_path, capsys):
    """Adapter, FiLM layers, head and projector of one run are where another one starts from."""
    write_checkpoint(tmp_path / "vla")
    kind = "--use_l1_regression False --use_diffusion True --num_diffusion_steps_train 4 --num_diffusion_steps_inference 2 --use_film True"
    flags += kind.split()
    run(parse([*flags, "--max_steps", "2"]))
    assert all(row["train/film_grad_norm"] > 0 for row in rows(tmp_path / "run"))
    assert main(f"export --checkpoint {tmp_path / 'run'} --out {tmp_path / 'adapter'} --format peft".split()) == 0
    for path in (tmp_path / "adapter").glob("*_checkpoint.safetensors"):
        shutil.copy(path, tmp_path / "vla")
    flags[flags.index("run")] = "second"
    again = [*flags, "--lora_adapter_path", str(tmp_path / "adapter")]
    capsys.readouterr()
    run(parse([*again, "--max_steps", "1", "--learning_rate", "1e-20"]))
    output = capsys.readouterr().out
    for line in (
        "action_head from action_head--2_",
        "noisy_action_projector from",
        "film from vision_backbone--2_",
        "adapters from",
        "note: made for the base",
    ):
        assert line in output
    first, second = (load_run(tmp_path / name, with_base=False).params for name in ("run", "second"))
    chex.assert_trees_all_close(first, second, atol=1e-6)


def test_a_policy_that_predicts_tokens_trains_whole_but_for_its_eyes(flags, tmp_path):
    write_checkpoint(tmp_path / "vla")
    flags[flags.index("--use_val_set") + 1] = "True"
    run(parse([*flags, *"--use_l1_regression False --use_lora False --freeze_vision True --max_steps 2 --val_freq 2".split()]))
    log = rows(tmp_path / "run")
    assert log[0]["train/action_loss"] == pytest.approx(np.log(576), rel=0.5)  # nothing is known yet: all tokens are alike
    assert {"train/curr_action_accuracy", "train/next_actions_l1_loss", "train/vla_grad_norm"} < log[0].keys()
    assert 0 < log[-1]["val/action_loss"] < 2
    assert "vision_backbone" not in load_run(tmp_path / "run", with_base=False).params
