import pytest

from eosjax import cli
from eosjax.cli import collect as module
from eosjax.envs.attempts import DemoSource
from eosjax.envs.collect import Settings


def test_it_says_what_it_made_and_how_to_train_on_it(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "collect", lambda *args: asked.append(args) or {"demonstration": 3, "missed": 0, "lost": 1})
    flags = ["--episodes", "4", "--failures", "0.25", "--seed", "2", "--processes", "3"]
    assert cli.main(["collect", "--env", "demo", "--out", str(tmp_path), *flags]) == 0
    ((out, settings, source, processes),) = asked
    assert (out, settings, processes) == (tmp_path, Settings("demo", 4, 2, 0.25, False), 3)
    assert isinstance(source, DemoSource)
    text = capsys.readouterr().out
    assert "3 demonstration, 1 lost" in text
    assert f"--data_root_dir {tmp_path} --dataset_name demo_table" in text


@pytest.mark.parametrize("flags", [["--episodes", "0"], ["--episodes", "1", "--failures", "1.5"], ["--episodes", "1", "--seed", "-1"]])
def test_numbers_out_of_range_are_refused(tmp_path, flags, capsys):
    assert cli.main(["collect", "--env", "demo", "--out", str(tmp_path / "out"), *flags]) == 2
    assert "expected --episodes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mars", "demo:1", "libero_10", "libero_goal:0", "module:function"])
def test_an_unknown_environment_is_refused(tmp_path, name, capsys):
    assert cli.main(["collect", "--env", name, "--episodes", "1", "--out", str(tmp_path / "out")]) == 2
    assert f"--env {name}: expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
