"""The committed form is what `cut.py` makes of the complete recording, and nothing but what it fills in differs from that recording."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import cut

WEIGHTS = ("checkpoint/model.safetensors", "lora_adapter/adapter_model.safetensors")


def content(path):
    """What a file says: the compression of arrays differs between versions of zlib."""
    if path.suffix == ".npz":
        return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in np.load(path).items()}
    return path.read_bytes()


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".npz", ".json", ".safetensors")}


def test_the_committed_form_is_cut_from_the_recording(recording, tmp_path):
    cut.cut(recording, tmp_path)
    assert files(cut.SMALL) == files(tmp_path)
    assert [path for path in files(tmp_path) if content(cut.SMALL / path) != content(tmp_path / path)] == []


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_recording_or_filled_in(golden, recording, name):
    small, whole = (load_file(folder / cut.MODEL / name) for folder in (golden, recording))
    assert small.keys() == whole.keys()
    for tensor, values in small.items():
        differs = values != whole[tensor]
        if not any(part in tensor for part in (*cut.UNUSED, "embed_tokens", "lm_head")):
            assert not differs.any(), tensor
        assert (np.isnan(values[differs]) | (values[differs] == 0)).all(), tensor


def test_the_vocabulary_is_that_of_the_recording(golden, recording):
    small, whole = (json.loads((folder / cut.MODEL / "checkpoint" / "tokenizer.json").read_text()) for folder in (golden, recording))
    assert small == whole


def test_weights_that_the_model_leaves_aside_and_rows_of_other_tokens_are_not_numbers(golden):
    """So that a wrong read of them shows in every result."""
    weights = load_file(golden / cut.MODEL / WEIGHTS[0])
    assert np.isnan(weights["vision_backbone.featurizer.blocks.2.norm1.weight"]).all()
    assert np.isnan(weights[cut.EMBEDDING]).all(axis=1).sum() > 31_900  # of 32,064
