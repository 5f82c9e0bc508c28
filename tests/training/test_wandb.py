"""A resumed run goes on as the same run at Weights & Biases, whose id is in the record."""

import sys
from types import SimpleNamespace

import pytest

from eosjax.config import TrainConfig
from eosjax.runs.load import choose_checkpoint
from eosjax.training.logging import MetricWriter
from eosjax.training.run import run as train
from tests.cli.conftest import labels, run_config  # noqa: F401  # `labels`: a fixture


@pytest.fixture
def started(monkeypatch):
    """What runs were started at a stand-in for the package: the arguments of each."""
    calls = []

    def init(**settings):
        calls.append(settings)
        return SimpleNamespace(id=settings["id"] or f"new{len(calls)}", log=lambda row, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=SimpleNamespace()))
    return calls


def test_the_writer_takes_up_a_run_or_starts_one(started, tmp_path):
    config = TrainConfig(use_wandb=True, use_tensorboard=False)
    for number, given in enumerate((None, "old")):
        folder = tmp_path / str(number)
        folder.mkdir()
        writer = MetricWriter(config, folder, 0, given, enabled=True)
        writer.close()
        assert (started[-1]["id"], writer.wandb_id) == (given, given or "new1")
    disabled = MetricWriter(config, tmp_path, 0, "old", enabled=False)
    assert (disabled.wandb_id, len(started)) == ("old", 2)


def test_resume_goes_on_at_the_same_run(started, data, labels, tmp_path):  # noqa: F811
    config = run_config(data, labels, tmp_path)
    train(run_config(data, labels, tmp_path, "--use_wandb"))
    assert choose_checkpoint(config.run_dir).record.run.wandb_id == "new1"
    train(run_config(data, labels, tmp_path, "--use_wandb", "--resume", "--max_steps", "4"))
    assert [call["id"] for call in started] == [None, "new1"]
    assert choose_checkpoint(config.run_dir, "4").record.run.wandb_id == "new1"
    train(run_config(data, labels, tmp_path, "--resume", "--max_steps", "6"))
    assert choose_checkpoint(config.run_dir, "6").record.run.wandb_id == "new1"
