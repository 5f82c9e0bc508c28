import dataclasses
import functools
import json
import re
import weakref

import chex
import jax
import ml_dtypes
import numpy as np
import pytest

from eosjax.models.hf import export, files, weights
from eosjax.models.hf.adapter import load_adapter, target_modules, write_adapter
from eosjax.models.hf.part_files import read_part
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.hf.table import adapter_table
from eosjax.models.openvla import OpenVLA

UNUSED = {
    "vision_backbone.featurizer.blocks.2.attn.qkv.weight": np.full((24, 8), 2, np.float32),
    "vision_backbone.fused_featurizer.attn_pool.q.weight": np.full((12, 12), 3, np.float32),
    "language_model.lm_head.weight": np.full((20, 16), 4, np.float32),
}


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run(config, variables, inputs):
    return OpenVLA(config).apply(variables, *inputs)


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, lora_rank=20, lora_scaling=0.8)


@pytest.fixture(scope="module")
def params(config, inputs, draw):
    """Parts of a policy with random adapters."""
    variables = draw(OpenVLA(config), inputs)
    base = dict(variables["params"])
    return {"proprio_projector": base.pop("proprio_projector"), "vla": base, "lora": variables["lora"]}


@pytest.fixture(scope="module")
def tensors(config, params):
    """A base checkpoint, with tensors that are not run."""
    return dict(weights.export_weights(params["vla"], config)) | UNUSED


def test_a_merged_checkpoint_is_the_policy_with_its_adapter(config, params, tensors, inputs):
    merged = dict(export.merged_tensors(tensors, config, {"lora": params["lora"]}))
    assert list(merged) == list(tensors)
    for name, array in merged.items():
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        changed = any(name.removesuffix("weight") in branch for entry in adapter_table(config) for branch in entry.names)
        assert (name.endswith(".weight") and changed) == (array != tensors[name]).any(), name

    plain = dataclasses.replace(config, lora_rank=0)
    base = weights.import_weights(merged, plain) | {"proprio_projector": params["proprio_projector"]}
    adapted = {"params": params["vla"] | {"proprio_projector": params["proprio_projector"]}, "lora": params["lora"]}
    hidden = run(config, adapted, inputs)
    np.testing.assert_allclose(run(plain, {"params": base}, inputs), hidden, atol=1e-4)
    without = jax.tree.map(np.zeros_like, params["lora"])
    assert np.abs(run(config, adapted | {"lora": without}, inputs) - hidden).max() > 0.1


def test_a_policy_that_was_trained_whole_takes_the_place_of_its_base(config, params, tensors):
    trained = jax.tree.map(lambda leaf: leaf + 1, params["vla"])
    merged = dict(export.merged_tensors(tensors, config, {"vla": trained}))
    chex.assert_trees_all_equal(weights.import_weights(merged, config), trained)
    assert all((merged[name] == array).all() for name, array in UNUSED.items())
    frozen_vision = {part: tree for part, tree in trained.items() if part != "vision_backbone"}
    merged = dict(export.merged_tensors(tensors, config, {"vla": frozen_vision}))
    expected = trained | {"vision_backbone": params["vla"]["vision_backbone"]}
    chex.assert_trees_all_equal(weights.import_weights(merged, config), expected)


def test_the_sum_is_rounded_once_to_the_dtype_of_the_base(config, params, tensors):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    rounded = dict(export.merged_tensors(half, config, {"lora": params["lora"]}))
    assert {array.dtype for array in rounded.values()} == {np.dtype(ml_dtypes.bfloat16)}
    again = export.merged_tensors({name: array.astype(np.float32) for name, array in half.items()}, config, {"lora": params["lora"]})
    for name, array in again:
        np.testing.assert_array_equal(rounded[name], array.astype(ml_dtypes.bfloat16), err_msg=name)


def test_a_base_with_other_tensors_is_refused(config, tensors):
    with pytest.raises(weights.WeightsError, match=r"unknown to the model \(1\):\n  extra"):
        next(export.merged_tensors(tensors | {"extra": np.ones(1)}, config, {}))
    with pytest.raises(weights.WeightsError, match=r"not in the checkpoint \(1\):\n  projector.fc1.bias"):
        next(export.merged_tensors({name: array for name, array in tensors.items() if name != "projector.fc1.bias"}, config, {}))


@pytest.mark.parametrize(("max_bytes", "sizes"), [(100, [24, 3, 40, 24]), (10**6, None)])
def test_shards_are_no_larger_than_asked_for(tmp_path, max_bytes, sizes):
    arrays = {f"t{i}": np.full(size, i, np.float32) for i, size in enumerate([20, 4, 3, 40, 24])}
    export.write_shards(arrays.items(), tmp_path, max_bytes)
    tensors = files.Tensors.of_folder(tmp_path)
    assert {name: array.tolist() for name, array in tensors.items()} == {name: array.tolist() for name, array in arrays.items()}
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if sizes is None:
        assert written == [files.SINGLE]
        assert not (tmp_path / files.INDEX).exists()
        return
    assert written == [f"model-0000{i + 1}-of-00004.safetensors" for i in range(4)]
    held = [sum(array.size for array in files.Tensors.of_file(tmp_path / name).values()) for name in written]
    assert held == sizes  # 40 numbers are more than a shard may hold
    assert json.loads((tmp_path / files.INDEX).read_text())["metadata"] == {"total_size": 4 * 91}


def test_no_more_than_a_shard_is_in_memory(tmp_path):
    made, alive = [], []

    def stream():
        for i in range(20):
            array = np.full(10, i, np.float32)
            made.append(weakref.ref(array))
            alive.append(sum(reference() is not None for reference in made))
            yield f"t{i}", array

    export.write_shards(stream(), tmp_path, 120)
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
    assert max(alive) <= 3 + 2  # a shard, the tensor before it, which the stream still holds, and the next one


def test_an_adapter_is_read_back(config, params, tmp_path):
    write_adapter(tmp_path, params["lora"], config, "owner/base")
    back = load_adapter(tmp_path, config, {})
    assert back.notes == ["made for the base 'owner/base'"]
    chex.assert_trees_all_equal(back.lora, params["lora"])
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (content["r"], content["lora_alpha"], content["base_model_name_or_path"]) == (20, 16, "owner/base")


def test_target_modules_are_the_layers_with_a_branch(config, tensors):
    pattern = target_modules(config)
    modules = {name.removesuffix(".weight") for name in tensors}
    # Layers that checkpoints have more of, and those whose names only begin or end like the real ones.
    modules |= {name.replace(".0.", f".{i}.") for name in modules for i in (2, 3, 10)} | {f"x.{name}" for name in modules}
    hit = {name for name in modules if re.fullmatch(pattern, name)}
    branches = {name for entry in adapter_table(config) for name in entry.names}
    assert {f"base_model.model.{name}.lora_{matrix}.weight" for name in hit for matrix in "AB"} == branches


@pytest.mark.parametrize("as_torch", [False, pytest.param(True, id="torch")])
def test_parts_are_read_back(config, params, tmp_path, as_torch):
    if as_torch:
        pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    tensors = weights.export_part("proprio_projector", params["proprio_projector"])
    export.write_part(tmp_path, "proprio_projector", tensors.items(), 70, as_torch=as_torch)
    assert [path.name for path in tmp_path.iterdir()] == [f"proprio_projector--70_checkpoint.{'pt' if as_torch else 'safetensors'}"]
    assert all(name.startswith("module.fc") for name in read_part(next(tmp_path.iterdir())))
    pretrained = Pretrained(tmp_path)
    (path,) = pretrained.part_files(["proprio_projector"]).of.values()
    back = pretrained.load_part(path, "proprio_projector", config, params["proprio_projector"])
    chex.assert_trees_all_equal(back, params["proprio_projector"])


def test_files_beside_the_weights(tmp_path):
    copied = ["config.json", "tokenizer.json", "tokenizer.model", "preprocessor_config.json", "modeling_prismatic.py", "chat.jinja"]
    left = [
        "dataset_statistics.json", "eos_calibration.json", files.INDEX, files.SINGLE, "action_head--7_checkpoint.pt", "pytorch_model.bin",
    ]  # fmt: skip
    (tmp_path / "base" / "lora_adapter").mkdir(parents=True)
    for name in copied + left:
        (tmp_path / "base" / name).write_text(name)
    (tmp_path / "out").mkdir()
    export.copy_files(tmp_path / "base", tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: name for name in copied}
