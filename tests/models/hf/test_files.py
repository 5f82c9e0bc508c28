import json
from unittest.mock import Mock

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from eosjax.models.hf import export, files
from eosjax.models.hf.pretrained import Pretrained
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
    with pytest.raises(WeightsError, match=r"index\.json: not JSON"):
        files.Tensors.of_folder(folder)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"expected model.safetensors or .*; found pytorch_model.bin"):
        files.Tensors.of_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"config.json: no such file"):
        files.read_json(tmp_path, "config.json")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (errors.LocalEntryNotFoundError("offline"), r"not in the cache, and the hub cannot be reached \(offline\)"),
        (OSError("no route to host"), r"cannot be reached \(no route to host\)"),
        (errors.RevisionNotFoundError("404", response=Mock()), "--vla_revision v9: openvla/openvla-7b has no such branch, tag or commit"),
    ],
)
def test_the_errors_of_the_hub_are_readable(monkeypatch, raised, message):
    def refuse(name, **_):
        assert name == "openvla/openvla-7b"
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=message):
        files.find_checkpoint("openvla/openvla-7b", "v9")


def test_what_pytorch_needs_comes_along_from_the_hub_and_goes_on_into_an_export(monkeypatch, tmp_path):
    """A hub of one repository; none of its Python files may be run here."""
    code = {"configuration_prismatic.py", "modeling_prismatic.py", "processing_prismatic.py"}
    beside = {*code, "config.json", "tokenizer.json", "tokenizer.model", "preprocessor_config.json", "added_tokens.json"}
    commit = "31f090d05236101ebfc381b61c674dd4746d4ce0"
    snapshot = tmp_path / "models--owner--policy" / "snapshots" / commit
    snapshot.mkdir(parents=True)

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("owner/policy", "v1")
        held = [*beside, "README.md", "pytorch_model.bin", "model.safetensors", "dataset_statistics.json"]
        for file in huggingface_hub.utils.filter_repo_objects(held, allow_patterns=allow_patterns):
            (snapshot / file).write_text("raise SystemExit('code of the hub was run')" if file in code else file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pretrained = Pretrained.open("owner/policy", "v1")
    assert (pretrained.folder, pretrained.revision) == (snapshot, commit)
    assert {path.name for path in snapshot.iterdir()} == {*beside, "model.safetensors", "dataset_statistics.json"}
    (tmp_path / "merged").mkdir()
    export.copy_files(pretrained.folder, tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == beside


def test_paths_and_names(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "cached"))
    assert files.find_checkpoint("owner/name") == (tmp_path / "cached", "cached")
    assert files.find_checkpoint(str(tmp_path)) == (tmp_path, None)
    with pytest.raises(WeightsError, match="--vla_revision main: --vla_path .* is a folder, and only the hub has revisions"):
        files.find_checkpoint(str(tmp_path), "main")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="expected a folder with config.json, got a file"):
        files.find_checkpoint(str(tmp_path / "file"))
    for wrong in ("./missing", "missing", str(tmp_path / "missing")):
        with pytest.raises(WeightsError, match="no such folder, and no name of the form owner/name"):
            files.find_checkpoint(wrong)


def test_the_newest_file_of_a_part_is_taken(tmp_path):
    assert files.find_part(tmp_path, "eos_head") is None
    for name in ("eos_head--500_checkpoint.pt", "eos_head--10000_checkpoint.pt", "eos_head_notes.txt", "action_head--20000_checkpoint.pt"):
        (tmp_path / name).touch()
    assert files.find_part(tmp_path, "eos_head") == tmp_path / "eos_head--10000_checkpoint.pt"
    (tmp_path / "eos_head--latest_checkpoint.pt").touch()
    assert files.find_part(tmp_path, "eos_head") == tmp_path / "eos_head--latest_checkpoint.pt"


def test_parts_from_both_kinds_of_file(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"fc1.weight": array}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(files.read_part(tmp_path / "a.safetensors")["fc1.weight"], array)
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    torch.save({"module.fc1.weight": torch.tensor(array).bfloat16()}, tmp_path / "a.pt")
    np.testing.assert_array_equal(files.read_part(tmp_path / "a.pt")["module.fc1.weight"], array)
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"b\.pt: expected a state dict"):
        files.read_part(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"PK nothing")
    with pytest.raises(WeightsError, match=r"c\.pt: unreadable"):
        files.read_part(tmp_path / "c.pt")
