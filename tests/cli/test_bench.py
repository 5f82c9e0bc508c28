"""The comparison from the command line: complete, refused, and gone on with."""

import json

import pytest

from tests.hidden import make_cache

METHODS = "buffer_50,focal"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "cache"
    make_cache(folder)
    return folder


@pytest.fixture
def compare(run, cache, tmp_path):
    """A function (*more flags) -> (exit status, stdout, stderr) of a small comparison."""

    def compare(*flags):
        return run("bench", "eos", "--cache", cache, "--out", tmp_path / "out", "--seeds", 2, "--updates", 30, "--methods", METHODS, *flags)

    return compare


def test_a_comparison_begun_again_ends_as_one_in_a_piece(compare, tmp_path):
    folder = tmp_path / "out"
    status, out, err = compare()
    assert (status, err) == (0, "")
    for text in ("balanced buffer, 50", "focal loss", "oracle", "chance", "deployed F1", "updates to 90 %", f"written: {folder}"):
        assert text in out
    results = (folder / "results.json").read_text()
    content = json.loads(results)
    assert [each["method"] for each in content["results"]] == METHODS.split(",")
    assert {"results.json", "summary.md", "curves.png", "curves.svg"} <= {path.name for path in folder.iterdir()}
    assert (folder / "curves.svg").read_text().count("</svg>") == 1
    assert "| balanced buffer, 50 |" in (folder / "summary.md").read_text()

    status, _, err = compare()
    assert (status, "it has results.json" in err) == (2, True)
    for name in ("results.json", "summary.md", "curves.png", "methods/focal.json"):  # as if it had been killed before
        (folder / name).unlink()
    kept = folder / "methods" / "buffer_50.json"
    before = kept.stat().st_mtime_ns
    status, _, err = compare("--seeds", 3)
    assert (status, "another comparison was begun" in err) == (2, True)
    assert compare()[0] == 0
    assert (folder / "results.json").read_text() == results
    assert kept.stat().st_mtime_ns == before


def test_refusals(compare, refused, tmp_path):
    for flags, message in (
        (("--seeds", "0"), "--seeds: expected 1 or more"),
        (("--updates", "31"), "--updates 31: expected a multiple of 30"),
        (("--methods", "none"), "no method 'none'"),
        (("--cache", tmp_path), "no cache.json"),
    ):
        status, out, err = compare(*flags)
        assert (status, out, message in err) == (2, "", True), err
    assert not (tmp_path / "out").exists()
