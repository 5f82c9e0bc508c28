import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from eosjax.documents import DocumentError
from eosjax.models.hf import files
from eosjax.models.hf.weights import WeightsError


@pytest.fixture
def sharded(tmp_path):
    arrays = {f"layer.{i}.weight": np.full((2, i + 1), i, ml_dtypes.bfloat16 if i % 2 else np.float32) for i in range(4)}
    shards = {"model-00001-of-00002.safetensors": list(arrays)[:2], "model-00002-of-00002.safetensors": list(arrays)[2:]}
    for shard, names in shards.items():
        save_file({name: arrays[name] for name in names}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    return tmp_path, arrays


def test_shards_are_one_mapping(sharded):
    folder, arrays = sharded
    tensors = files.Tensors.of_folder(folder)
    assert dict(tensors.shapes) == {name: array.shape for name, array in arrays.items()}
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    assert tensors.largest_file == max(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_single_file_needs_no_index(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / files.SINGLE)
    assert list(files.Tensors.of_folder(tmp_path)) == ["a"]


def test_what_is_missing_or_damaged_is_named(sharded):
    folder, _ = sharded
    second = folder / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-3])
    with pytest.raises(WeightsError, match=f"model-00002-of-00002.safetensors: damaged .* {len(content) - 3} bytes"):
        files.Tensors.of_folder(folder)
    second.unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors: no such file"):
        files.Tensors.of_folder(folder)
    save_file({"layer.2.weight": np.ones(1)}, second)
    with pytest.raises(WeightsError, match=r"puts layer.3.weight here \(1 such tensors\), but the file lacks it"):
        files.Tensors.of_folder(folder)
    (folder / files.INDEX).write_text("{")
    with pytest.raises(DocumentError, match=r"index\.json: not JSON"):
        files.Tensors.of_folder(folder)


def test_json_of_a_size_that_no_such_file_has(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 29)  # no byte is written
    with pytest.raises(WeightsError, match="config.json: expected at most 268,435,456 bytes, got 536,870,912"):
        files.read_json(tmp_path, "config.json")


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"expected model.safetensors or .*; found pytorch_model.bin"):
        files.Tensors.of_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"config.json: no such file"):
        files.read_json(tmp_path, "config.json")
