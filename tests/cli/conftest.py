"""Running commands in this process, and a training run to run them on."""

import shutil

import pytest

from eosjax.cli import main
from eosjax.flags import parse
from eosjax.training.run import run as train

_RUN = (
    "--vla_path demo --use_lora False --image_aug False --batch_size 4 --num_devices 1 --val_share 0.4 --use_tensorboard False "
    "--max_steps 2 --val_freq 2 --save_freq 2 --log_freq 2 --run_id_override run --eos_hidden_dim 8 --eos_buffer_capacity 8 "
    "--eos_sample_positive 2 --eos_min_positive 2 --eos_sample_negative 3 --eos_min_negative 3"
).split()


def run_config(data, labels, folder, *flags):
    """The configuration of a run of two updates in a folder, with other flags beside."""
    return parse([*map(str, data), *_RUN, f"--substep_labels_path={labels}", f"--run_root_dir={folder}", *flags])


@pytest.fixture
def run(capsys):
    """A function (*argv) -> (exit status, stdout, stderr)."""

    def run(*argv):
        try:
            status = main([str(arg) for arg in argv])
        except SystemExit as stop:  # argparse
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """A function (*argv) -> stderr of a command that must end with status 2 and no output."""

    def refused(*argv):
        status, out, err = run(*argv)
        assert (status, out) == (2, "")
        return err

    return refused


@pytest.fixture
def labels(write_labels, bodies):
    """A label file for the tiny dataset."""
    return write_labels(bodies)


@pytest.fixture
def trained(data, labels, tmp_path, shared_folder, once, monkeypatch):
    """The folder of a run of two updates on `labels`: a copy of one that is trained once a test run.

    It knows the label file by its name alone, and so finds that of each test in the current folder.
    """
    with once("trained") as folder:
        if folder:
            folder.mkdir()
            shutil.copy(labels, folder)
            monkeypatch.chdir(folder)
            train(run_config(data, labels.name, folder))
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(shared_folder / "trained" / "run", tmp_path / "run")
