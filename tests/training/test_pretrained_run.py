"""A run that starts from a checkpoint in the Hugging Face layout, with adapters on it."""

import codecs
import json
import shutil

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eosjax.cli import main
from eosjax.flag_values import ConfigError
from eosjax.flags import parse
from eosjax.models.heads import EosHead
from eosjax.models.hf.adapter import ADAPTER_WEIGHTS, write_adapter
from eosjax.models.hf.adapter_config import ADAPTER_CONFIG
from eosjax.models.hf.weights import WeightsError, abstract_variables, export_part
from eosjax.runs.load import choose_checkpoint, load_run
from eosjax.serving.policy import Policy
from eosjax.training.run import run
from tests.checkpoints import HEADS, tiny_config, write_checkpoint
from tests.saved_runs import random_like, save_run


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


def test_odd_but_legal_files_are_trained_on_and_served(flags, tmp_path, capsys):
    """Labels with a byte order mark, a checkpoint that stores its rotary frequencies, an adapter of PEFT's `all-linear`."""
    labels = tmp_path / "labels.json"
    labels.write_bytes(codecs.BOM_UTF8 + labels.read_bytes())
    write_checkpoint(tmp_path / "vla")
    shard = tmp_path / "vla" / "model-00001-of-00002.safetensors"
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(shard) | {name: np.array([1.0, 0.01], np.float32)}, shard)
    index = tmp_path / "vla" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][name] = shard.name
    index.write_text(json.dumps(content))
    config = tiny_config(lora_rank=2, proprio_dim=0, chunk=8, action_dim=7)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, random_like(abstract_variables(config)["lora"], 0), config, "owner/base")
    tensors = {name: tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items() if "patch_embed" not in name}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors})
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings | {"target_modules": modules}))

    run(parse([*flags, "--max_steps", "1", "--lora_adapter_path", str(folder)]))
    assert "no branch for 2 layers, which stay as in the base: " in capsys.readouterr().out
    policy = Policy.load(tmp_path / "run")
    step = policy({"images": [np.zeros((16, 16, 3), np.uint8)]}, "go")
    assert np.isfinite(step.actions).all()
    assert not np.any(policy._params["lora"]["vision_backbone"]["featurizer"]["patch_embed"]["proj"]["b"])


def test_a_part_of_another_size_is_named(flags, tmp_path):
    write_checkpoint(tmp_path / "vla")
    wrong = {f"fc{i}": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)} for i in (1, 2, 3)}
    save_file(export_part("eos_head", wrong), tmp_path / "vla" / "eos_head.safetensors")
    with pytest.raises(WeightsError, match=r"eos_head.safetensors: model.0.weight: expected the shape \(112, 8\), got \(2, 2\)"):
        run(parse([*flags, "--max_steps", "2"]))


def test_a_diffusion_policy_goes_on_from_what_was_exported_of_it(flags, tmp_path, capsys):
    """Adapter, FiLM layers, head and projector of one run, here with random weights, are where another one starts from."""
    write_checkpoint(tmp_path / "vla")
    kind = "--use_l1_regression False --use_diffusion True --num_diffusion_steps_train 4 --num_diffusion_steps_inference 2 --use_film True"
    flags += kind.split()
    save_run(tmp_path / "run", parse(flags), (2,))
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
    assert rows(tmp_path / "second")[0]["train/film_grad_norm"] > 0
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


def test_a_base_that_is_shared_out_gives_the_same_bits_and_the_same_record(flags, tmp_path):
    write_checkpoint(tmp_path / "vla")
    flags += "--num_devices 2 --batch_size 1 --remat dots".split()
    run(parse([*flags, "--max_steps", "2"]))
    flags[flags.index("run")] = "shared"
    run(parse([*flags, "--max_steps", "2", "--shard_frozen", "True"]))
    whole, shared = (choose_checkpoint(tmp_path / name, 2).record for name in ("run", "shared"))
    assert shared.fingerprints == whole.fingerprints
    assert shared.run.base == whole.run.base
    run(parse([*flags, "--max_steps", "4", "--resume", "True", "--layers", "unroll"]))  # on devices that hold all of it, in layers
    assert [row["step"] for row in rows(tmp_path / "shared")] == [1, 2, 3, 4]
