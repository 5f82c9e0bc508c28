"""The record comes back as it was, and no two records that differ are taken for the same."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.config import TrainConfig
from eosjax.runs import record as records
from eosjax.runs.record import CheckpointRecord, RecordError, Validation, describe_differences, differences
from eosjax.types import UserError
from tests.saved_runs import POINT, run_record
from tests.training.conftest import TINY

CONFIG = TrainConfig(
    vla_path="demo",
    use_lora=False,
    dataset_name="libero_goal_no_noops:2,libero_10",
    dataset_specs=None,
    data_root_dir=Path("somewhere"),
    substep_labels_path=Path("labels.json"),
)
BASE = {"vla": {"kernel": [[1.0, 2.0]]}}
RUN = run_record(CONFIG, TINY, b"{}", {})
RUN = dataclasses.replace(RUN, base={"['vla']['a']": 1, "['vla']['b']": 2}, base_revision="abc", wandb_id="w1")
POINTED = Validation(6, {"val/action_loss": 0.5, "val/frame/average_precision": 0.25}, POINT)
SAVED = CheckpointRecord(RUN, 9, POINTED, POINT, {".step": 3})


def leaves(value, path=()):
    """(path, value) of everything in a tree of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, each in items for leaf in leaves(each, (*path, key))]
    return below or [(path, value)]


def changed(content, path):
    """The JSON with another value at a path."""
    content = copy.deepcopy(content)
    at = content
    for key in path[:-1]:
        at = at[key]
    old = at[path[-1]]
    at[path[-1]] = (not old) if isinstance(old, bool) else old + 1 if isinstance(old, (int, float)) else f"{old} changed"
    return content


JSON = records._plain(RUN)
PATHS = [path for path, _ in leaves(JSON)]


def may_change(path):
    first, *rest = path
    return first in records.MAY_CHANGE and (not records.MAY_CHANGE[first] or rest[0] in records.MAY_CHANGE[first])


def test_it_comes_back_through_json():
    back = CheckpointRecord.from_json(json.loads(json.dumps(SAVED.to_json())))
    assert back.to_json() == SAVED.to_json()
    assert (back.run.config, back.run.model, back.run.prompt, back.operating_point) == (CONFIG, TINY, RUN.prompt, POINT)
    assert isinstance(back.run.config.data_root_dir, Path)
    assert (back.validation.step, back.step, back.score) == (6, 9, None)
    for before, after in zip(RUN.datasets, back.run.datasets, strict=True):
        assert before.spec == after.spec
        assert (before.statistics.action.q99 == after.statistics.action.q99).all()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_everything_in_it_is_compared_but_for_what_may_change(path):
    found = differences(JSON, changed(JSON, path))
    assert bool(found) == (not may_change(path))
    assert not differences(JSON, copy.deepcopy(JSON))


def test_every_field_that_may_change_exists():
    for first, names in records.MAY_CHANGE.items():
        assert set(names) <= set(JSON[first] if names else [])


@given(st.sampled_from([path for path in PATHS if not may_change(path) and path[-1] != "name"]))
def test_a_difference_says_what_then_and_now(path):
    (found,) = differences(JSON, changed(JSON, path))
    then = dict(leaves(JSON))[path]
    assert found.then == then
    assert found.what.split(".")[-1] == str(path[-1]).split(".")[-1]
    assert f"was {str(then)[:80]}" in str(found)


def test_differences_are_named_by_dataset_and_many_of_a_kind_once():
    now = copy.deepcopy(JSON)
    now["datasets"][1]["spec"]["normalisation"] = "bounds"
    now["datasets"][0]["statistics"]["action"]["q99"] = [9.0] * 7
    now["base"] = {"['vla']['a']": 5}
    now["datasets"][1]["held_out"] = [0, 3]
    now["datasets"].append(dict(now["datasets"][0], name="other"))
    lines = describe_differences(differences(JSON, now)).splitlines()
    assert "  datasets.libero_10.spec.normalisation is bounds, was q99" in lines
    assert any(line.startswith("  datasets.libero_goal_no_noops.statistics.action.q99.0 is 9.0, was ") for line in lines)
    assert any("(and 6 more of datasets.libero_goal_no_noops.statistics.action)" in line for line in lines)
    assert "  datasets.libero_10.held_out.0 is 0, was 1 (and 1 more of datasets.libero_10.held_out)" in lines
    assert "  base.['vla']['a'] is 5, was 1 (frozen base weights below --vla_path) (and 1 more of base)" in lines
    assert any("datasets.other.weight is 2.0, was not there" in line for line in lines)


def test_many_differences_are_cut():
    found = [records.Difference(f"config.flag{number}", 1, 2) for number in range(20)]
    assert describe_differences(found).splitlines()[-1] == "  and 8 more"


@pytest.mark.parametrize("path", [("step",), ("run", "share_of_ends"), ("fingerprints", ".step"), ("sha256",)])
def test_a_damaged_record_is_refused(path):
    with pytest.raises(RecordError, match="damaged: the record is not what was saved: expected SHA-256 .*, got "):
        CheckpointRecord.from_json(changed(SAVED.to_json(), path))


@pytest.mark.parametrize("content", [None, [], {}, {"samples": 10}, {**SAVED.to_json(), "version": 0}])
def test_the_record_of_another_version_is_named(content):
    with pytest.raises(RecordError, match=r"written by another version of eosjax: expected a record of version \d+, got (none|0)"):
        CheckpointRecord.from_json(content)


def test_unknown_and_missing_fields_are_named():
    content = SAVED.to_json()
    del content["sha256"], content["run"]["config"]["lambda_eos"]
    content["run"]["config"]["lambda_eso"] = 2.0
    with pytest.raises(RecordError, match=r"record.run.config: .* missing or unknown: \['lambda_eos', 'lambda_eso'\]"):
        CheckpointRecord.from_json({**content, "sha256": records._checksum(content)})


def test_a_score_is_of_the_very_checkpoint():
    at = dataclasses.replace(SAVED, step=6)
    assert (at.score, SAVED.score, dataclasses.replace(SAVED, validation=None).score) == (0.25, None, None)
    without_head = Validation(6, {"val/action_loss": 0.5}, None)
    assert dataclasses.replace(at, validation=without_head).score == -0.5
    assert without_head.score == ("-val/action_loss", -0.5)


def test_a_point_of_an_earlier_step_says_so():
    assert SAVED.describe_point().endswith("; chosen at step 6, not at this checkpoint's step 9")
    assert dataclasses.replace(SAVED, step=6).describe_point() == POINT.sentence()
    with pytest.raises(UserError, match="no EOS head"):
        dataclasses.replace(SAVED, operating_point=None).describe_point()


def test_a_dataset_is_named_where_there_are_several():
    assert RUN.dataset("libero_10").name == "libero_10"
    with pytest.raises(UserError, match="trained on 2 datasets; name the one whose robot is used: libero_goal_no_noops, libero_10"):
        RUN.dataset()
    with pytest.raises(UserError, match="trained on libero_goal_no_noops, libero_10; got 'bridge'"):
        RUN.dataset("bridge")
    assert dataclasses.replace(RUN, datasets=RUN.datasets[:1]).dataset().name == "libero_goal_no_noops"
