from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from eosjax.models.hf import export, hub
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.hf.weights import WeightsError


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
        hub.find_checkpoint("openvla/openvla-7b", "v9")


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
    assert hub.find_checkpoint("owner/name") == (tmp_path / "cached", "cached")
    assert hub.find_checkpoint(str(tmp_path)) == (tmp_path, None)
    with pytest.raises(WeightsError, match="--vla_revision main: --vla_path .* is a folder, and only the hub has revisions"):
        hub.find_checkpoint(str(tmp_path), "main")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="expected a folder with config.json, got a file"):
        hub.find_checkpoint(str(tmp_path / "file"))
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="--vla_path a/b..c: no such folder, and no repository on the hub"):
        hub.find_checkpoint("a/b..c")
    for wrong in ("./missing", "missing", str(tmp_path / "missing")):
        with pytest.raises(WeightsError, match="no such folder, and no name of the form owner/name"):
            hub.find_checkpoint(wrong)
