"""Whatever stands in a file of a checkpoint: it is read, or refused with a `UserError`."""

import contextlib
import dataclasses
import json
import struct

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from eosjax.data.samples.tokens import demo_tokenizer, load_tokenizer
from eosjax.models.hf import files, weights
from eosjax.models.hf.adapter import export_adapter, load_adapter
from eosjax.models.hf.adapter_config import ADAPTER_CONFIG, ADAPTER_FIELDS, AdapterConfig
from eosjax.models.hf.config import CONFIG, PREPROCESSOR, action_vocabulary, is_tied, vla_config_from_hf
from eosjax.models.hf.config_fields import CONFIG_FIELDS, PREPROCESSOR_FIELDS, ROPE_FIELDS, TEXT_FIELDS
from eosjax.models.hf.part_files import read_part
from eosjax.types import UserError
from tests.checkpoints import tiny_config

NUMBERS = st.integers(-3, 70) | st.sampled_from([2**31, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf")])
WORDS = st.sampled_from(["", "default", "LORA", "llama", "q_proj", "(a+)+$", "(", "\0", "../x.safetensors", "é"])
ATOMS = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "size", "mean", "r"]), inner, max_size=2),
    max_leaves=4,
)
DEEP = "[" * 100_000 + "]" * 100_000
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
CHECKPOINT = {
    "use_fused_vision_backbone": True,
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [28, 28],
    "text_config": {"vocab_size": 560, "hidden_size": 16, "num_attention_heads": 4, "rope_parameters": {"rope_theta": 1e4}},
}
PIXELS = {"tvf_normalize_params": [{"mean": [0.5] * 3, "std": [0.5] * 3}] * 2}


def changed(content, *tables):
    """Objects like `content`, some fields of which (of the tables, or unknown ones) have any value."""
    names = st.sampled_from([name for table in tables for name in table] + ["unknown"])
    return st.dictionaries(names, VALUES, max_size=3).map(lambda change: {**content, **change})


@contextlib.contextmanager
def read_or_refused():
    with contextlib.suppress(UserError):
        yield


@settings(max_examples=60)
@given(changed(ADAPTER, ADAPTER_FIELDS))
def test_adapter_config(content):
    with read_or_refused():
        settings = AdapterConfig.from_json(json.loads(json.dumps(content)))
        assert np.isfinite(settings.scaling)
        for name in ("projector.fc1", "language_model.model.layers.1.self_attn.q_proj"):
            assert settings.of_module(name)[0] > 0
            assert settings.has(name) in (True, False)


@settings(max_examples=100)
@given(
    changed(CHECKPOINT, CONFIG_FIELDS),
    changed(CHECKPOINT["text_config"], TEXT_FIELDS),
    changed({}, ROPE_FIELDS),
    changed(PIXELS, PREPROCESSOR_FIELDS),
)
def test_config_and_preprocessor(content, text, rope, pixels):
    for config, preprocessor in (
        (content, None),
        (CHECKPOINT | {"text_config": text}, None),
        (CHECKPOINT | {"text_config": {"rope_parameters": rope, "rope_scaling": rope}}, None),
        (CHECKPOINT, pixels),
    ):
        with read_or_refused():
            read = vla_config_from_hf(config, preprocessor)
            assert 0 < read.llama.depth <= 1000
        with read_or_refused():
            assert action_vocabulary(config) > 256
        with read_or_refused():
            is_tied(config)


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 10**5, "1" * 5000, '{"r": ' + "9" * 5000 + "}", '{"r": 1, "r": 2}', "[]", "null", "", "{"]
)
@pytest.mark.parametrize("name", [ADAPTER_CONFIG, CONFIG, PREPROCESSOR, files.INDEX])
def test_json_that_is_none(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: (not JSON|expected an object|repeated key)"):
        files.read_json(tmp_path, name)


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_bytes_for_json(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / CONFIG).write_bytes(content)
    with read_or_refused():
        files.read_json(folder, CONFIG)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["weight_map", "metadata"]), VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2), max_size=2
    )
)
def test_index(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "index"
    folder.mkdir(exist_ok=True)
    (folder / files.INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError):
        files.Tensors.of_folder(folder)


TENSOR = st.fixed_dictionaries({}, optional={
    "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "F4", "", 3]),
    "shape": st.lists(st.sampled_from([0, 1, 2, 3, 2**40, -1]), max_size=3) | VALUES,
    "data_offsets": st.lists(st.sampled_from([0, 4, 8, 2**62, -1]), min_size=1, max_size=2) | VALUES,
})  # fmt: skip
HEADERS = st.dictionaries(st.sampled_from(["fc1.weight", "fc1.bias", "__metadata__", ""]), TENSOR | VALUES, max_size=3)


@settings(max_examples=100)
@given(HEADERS, st.sampled_from([0, 8, 24]), st.integers(-2, 2) | st.sampled_from([10**12]))
def test_headers_of_safetensors(tmp_path_factory, header, size, more):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", max(len(text) + more, 0)) + text + bytes(size))
    with read_or_refused():
        read_part(path)


WHOLE = {"fc1.weight": np.ones((2, 3), np.float32), "fc1.bias": np.ones(2, np.float32)}


@settings(max_examples=60)
@given(st.data())
def test_damaged_parts(tmp_path_factory, data):
    """A byte changed, the end cut off, or other tensors than those of a part."""
    path = tmp_path_factory.getbasetemp() / "part.safetensors"
    content = bytearray(save(WHOLE))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([None, 0, 7, 50]))])
    with read_or_refused():
        weights.import_part("proprio_projector", read_part(path), path)


def test_damaged_parts_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    path = tmp_path / "part.pt"
    torch.save({name: torch.tensor(array) for name, array in WHOLE.items()}, path)
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with read_or_refused():
            read_part(path)
    for state in ({"a": 1}, {1: torch.ones(1)}, {"a": torch.ones(1).to_sparse()}, {"a": torch.ones(1, dtype=torch.complex64)}, None):
        torch.save(state, path)
        with pytest.raises(UserError, match="part.pt"):
            read_part(path)


ADAPTED = dataclasses.replace(tiny_config(), lora_rank=2)


@pytest.fixture(scope="module")
def branches():
    shapes = weights.abstract_variables(ADAPTED)["lora"]
    return dict(export_adapter(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes), ADAPTED))


@settings(max_examples=20)
@given(change=st.data())
def test_tensors_of_an_adapter(tmp_path_factory, branches, change):
    folder = tmp_path_factory.getbasetemp() / "adapter"
    folder.mkdir(exist_ok=True)
    names = st.sampled_from(sorted(branches)) | st.sampled_from(["a", "base_model.model.projector.fc1.bias", "lora_A", ""])
    shapes = st.lists(st.integers(0, 3), max_size=4)
    other = change.draw(st.dictionaries(names, st.none() | shapes, max_size=2))
    held = branches | {name: np.ones(shape, np.float32) for name, shape in other.items() if shape is not None}
    (folder / "adapter_model.safetensors").write_bytes(save({name: held[name] for name in held if other.get(name, 0) is not None}))
    (folder / ADAPTER_CONFIG).write_text(json.dumps(ADAPTER | {"target_modules": change.draw(st.sampled_from([[], ["q_proj"], ".*"]))}))
    with read_or_refused():
        adapter = load_adapter(folder, ADAPTED, {"projector.fc1.bias": np.ones(80, np.float32)})
        assert adapter.lora["projector"]["fc1"]["a"].shape == (20, 2)


TOKENIZER = json.loads(demo_tokenizer().tokenizer.to_str())


@settings(max_examples=60)
@given(st.data())
def test_tokenizer(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    section = data.draw(
        st.sampled_from(["model", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "post_processor", "version", "padding"])
    )
    content = dict(TOKENIZER)
    if section == "model":
        field = data.draw(st.sampled_from(["vocab", "merges", "type", "unk_token", "dropout"]))
        few = st.dictionaries(st.sampled_from(["<s>", "</s>", "<PAD>", "▁", "a"]), NUMBERS, max_size=5)
        content["model"] = dict(content["model"]) | {field: data.draw(VALUES | few)}
    else:
        content[section] = data.draw(VALUES)
    path.write_text(json.dumps(content))
    with read_or_refused():
        tokenizer = load_tokenizer(path)
        assert tokenizer.text_vocab_size <= tokenizer.vocab_size


@pytest.mark.parametrize("content", [b"", b"{", DEEP.encode(), b"\xff\xfe", b"null"])
def test_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="expected a tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
