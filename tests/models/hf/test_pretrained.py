"""Checkpoints as people have them: read as they are meant, or refused with the file, the tensor and the remedy."""

import dataclasses
import json
import shutil

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eosjax.models.hf import files, weights
from eosjax.models.hf.adapter import load_adapter
from eosjax.models.hf.export import copy_files, merged_tensors, untie_output, write_shards
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.hf.table import EMBEDDING, LM_HEAD
from eosjax.models.hf.weights import WeightsError
from eosjax.models.openvla import with_action_tokens
from tests.checkpoints import HEADS, tiny_config, write_checkpoint

CONFIG = tiny_config()
NORM = "language_model.model.norm.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, tensors) of a checkpoint."""
    folder = tmp_path_factory.mktemp("written") / "vla"
    return folder, write_checkpoint(folder)


@pytest.fixture
def checkpoint(written, tmp_path):
    """A function (tensors: changed or added ones, None removes; text: fields of text_config) -> the checkpoint as one file."""
    folder, tensors = written

    def make(changes=None, **text):
        shutil.copytree(folder, tmp_path / "vla", ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        held = {name: array for name, array in (tensors | (changes or {})).items() if array is not None}
        save_file(held, tmp_path / "vla" / files.SINGLE, metadata=files.METADATA)
        content = json.loads((folder / "config.json").read_text())
        content["text_config"] |= text
        (tmp_path / "vla" / "config.json").write_text(json.dumps(content))
        return Pretrained(tmp_path / "vla")

    return make


def load(pretrained, config=CONFIG):
    return pretrained.load_base(config, lambda _, array: np.asarray(array))[0]


def test_sizes_come_from_the_files(written):
    heads = tuple(map(int, HEADS.split(",")))
    assert dataclasses.replace(Pretrained(written[0]).vla_config(heads), dino=CONFIG.dino) == CONFIG


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(16, np.nan, np.float32), f"model.safetensors: {NORM}: expected numbers, got NaN or infinity"),
        (np.full(16, -np.inf, ml_dtypes.bfloat16), f"model.safetensors: {NORM}: expected numbers, got NaN or infinity"),
        (np.ones(16, np.int8), f"model.safetensors: {NORM}: expected weights in one of F64, F32, F16, BF16, got I8; quantised"),
        (np.ones(16, np.complex64), f"model.safetensors: {NORM}: expected weights in one of F64, F32, F16, BF16, got C64"),
        (np.ones(16, ml_dtypes.float8_e4m3fn), f"model.safetensors: {NORM}: expected weights in one of F64, F32, F16, BF16, got F8_E4M3"),
    ],
)
def test_weights_that_are_no_finite_numbers(checkpoint, array, message):
    with pytest.raises(WeightsError, match=message):
        load(checkpoint({NORM: array}))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_finite_is_what_numpy_says(dtype):
    largest = np.array(ml_dtypes.finfo(np.float32 if dtype == np.float64 else dtype).max).astype(dtype)
    for value in (0.0, -1.5, largest, -largest):
        assert files.is_finite(np.array([1, value, -2], dtype))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        assert not files.is_finite(np.array([1, value, -2], dtype)), value
    assert files.is_finite(np.array([1e39])) is False  # is infinite in float32
    assert files.is_finite(np.ones((0, 3), dtype))
    assert files.is_finite(np.ones((4, 3), dtype).T)


def test_timms_name_of_layer_scale(written, checkpoint):
    scales = [name for name in written[1] if name.endswith(".scale_factor")]
    assert len(scales) == 4
    old = {name.replace("scale_factor", "gamma"): written[1][name] for name in scales}
    pretrained = checkpoint(dict.fromkeys(scales) | old)
    chex.assert_trees_all_equal(load(pretrained), load(Pretrained(written[0])))
    assert set(scales) < set(dict(merged_tensors(pretrained.tensors, CONFIG, {})))


def test_two_names_for_one_tensor(written, checkpoint):
    name = "vision_backbone.featurizer.blocks.0.ls1.scale_factor"
    with pytest.raises(WeightsError, match=f"{name} is also stored as .*ls1.gamma"):
        _ = checkpoint({name.replace("scale_factor", "gamma"): written[1][name]}).tensors


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("prefix", ["", "layers.1.self_attn."])
def test_stored_rotary_frequencies_must_be_those_of_the_model(checkpoint, dtype, prefix):
    frequencies = (10_000.0 ** -(np.arange(0, 4, 2) / 4)).astype(dtype)
    name = f"language_model.model.{prefix}rotary_emb.inv_freq"
    pretrained = checkpoint({name: frequencies})
    assert load(pretrained)["language_model"]
    other = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, rope_theta=1e6))
    with pytest.raises(WeightsError, match=f"{name}: expected the rotary frequencies of rope_theta 1e.06, got others"):
        load(pretrained, other)


def test_an_output_projection_that_is_the_embedding(written, checkpoint, tmp_path):
    pretrained = checkpoint({LM_HEAD: None}, tie_word_embeddings=True)
    config = with_action_tokens(CONFIG, 560)
    model = load(pretrained, config)["language_model"]
    np.testing.assert_array_equal(model["lm_head"]["kernel"], written[1][EMBEDDING].T)
    np.testing.assert_array_equal(model["model"]["embed_tokens"]["embedding"], written[1][EMBEDDING])

    # With a branch on it, it is no longer the embedding: the merged checkpoint has both, and says so.
    adapted = dataclasses.replace(config, lora_rank=2, lora_scaling=2.0)
    lora = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), weights.abstract_variables(adapted)["lora"])
    (tmp_path / "merged").mkdir()
    write_shards(merged_tensors(pretrained.tensors, adapted, {"lora": lora}), tmp_path / "merged", 10**6)
    copy_files(pretrained.folder, tmp_path / "merged")
    untie_output(tmp_path / "merged")
    merged = Pretrained(tmp_path / "merged")
    assert merged.config_json["text_config"]["tie_word_embeddings"] is False
    np.testing.assert_array_equal(merged.tensors[EMBEDDING], written[1][EMBEDDING])
    np.testing.assert_allclose(merged.tensors[LM_HEAD], written[1][EMBEDDING] + 4, rtol=1e-6)


def test_an_output_projection_that_cannot_be_the_embedding(checkpoint):
    with pytest.raises(WeightsError, match=f"config.json: text_config.tie_word_embeddings: got true, but {LM_HEAD} differs"):
        _ = checkpoint(tie_word_embeddings=True).tensors


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/model.safetensors", "a\0.safetensors", "model.bin", 7, None])
def test_the_index_names_files_of_its_folder_only(written, tmp_path, file):
    shutil.copytree(written[0], tmp_path / "other")
    (tmp_path / "vla").mkdir()
    (tmp_path / "vla" / files.INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(WeightsError, match=r"weight_map: 'a': expected a file of safetensors in this folder, got "):
        files.Tensors.of_folder(tmp_path / "vla")


def test_pointers_of_git_lfs_are_named(written, tmp_path):
    folder = tmp_path / "vla"
    shutil.copytree(written[0], folder)
    (folder / "config.json").write_bytes(POINTER)
    with pytest.raises(WeightsError, match="config.json: a pointer of git-lfs, without the file itself; run `git lfs pull`"):
        _ = Pretrained(folder).config_json
    (folder / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(WeightsError, match="tokenizer.json: a pointer of git-lfs"):
        _ = Pretrained(folder).tokenizer_file
    (folder / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors: a pointer of git-lfs"):
        files.Tensors.of_folder(folder)


def test_weights_of_two_checkpoints_in_one_folder(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "vla")
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "vla" / files.SINGLE)
    with pytest.raises(WeightsError, match=r"expected model.safetensors or model.safetensors.index.json, got both"):
        files.Tensors.of_folder(tmp_path / "vla")


def test_an_adapter_that_is_merged_already(checkpoint):
    """OpenVLA-OFT keeps it beside the merged weights: with both, its branches would count twice."""
    pretrained = checkpoint()
    folder = pretrained.folder / "lora_adapter"
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "openvla/openvla-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"lies in --vla_path, .*; leave the flag out, or give the base 'openvla/openvla-7b'"):
        pretrained.load_adapter(folder, CONFIG)


def test_pickles_are_named_with_the_remedy(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(WeightsError, match=r"found pytorch_model-00001-of-00002.bin; weights in pickles, .* save them anew"):
        files.Tensors.of_folder(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}))
    with pytest.raises(WeightsError, match=r"adapter_model.bin: a pickle, which could run code, is not read; load it with PEFT"):
        load_adapter(tmp_path, CONFIG, {})


def test_the_file_of_a_nan_in_an_adapter_is_named(tmp_path):
    config = dataclasses.replace(CONFIG, lora_rank=2)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}))
    prefix = "base_model.model.language_model.model.layers."
    shapes = {f"{prefix}{i}.self_attn.q_proj.lora_{m}.weight": s for i in range(2) for m, s in (("A", (2, 16)), ("B", (16, 2)))}
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, path)
    assert np.all(load_adapter(tmp_path, config, {}).lora["language_model"]["model"]["layers"]["self_attn"]["q_proj"]["b"] == 1)
    save_file(load_file(path) | {f"{prefix}1.self_attn.q_proj.lora_B.weight": np.full((16, 2), np.nan, np.float32)}, path)
    with pytest.raises(
        WeightsError, match=r"adapter_model.safetensors: .*layers.1.self_attn.q_proj.lora_B.weight: expected numbers, got NaN"
    ):
        load_adapter(tmp_path, config, {})
