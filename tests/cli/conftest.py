"""Label files for the tiny dataset, and running commands in this process."""

import json

import pytest

from eosjax.cli import main


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
def data(tiny, shared_folder):
    """The flags that name the tiny dataset; its frame store is built once a test run."""
    return ["--data_root_dir", tiny.root, f"--dataset_name={tiny.name}", "--cache_dir", shared_folder / "cli_stores"]


@pytest.fixture
def bodies(tiny):
    """The label entry of each episode of the tiny dataset: "first half" ends in the middle, "second half" at the last step."""

    def body(number, length):
        entries = [
            {"timestep": step, "APD_step": "first half" if step < length // 2 else "second half", "is_substep_end": end}
            for step, end in ((step, step in (length // 2 - 1, length - 1)) for step in range(length))
        ]
        return {"instruction": f"Do task {number % 3}", "total_timesteps": length, "timestep_labels": entries}

    return [body(number, length) for number, length in zip(tiny.numbers, tiny.lengths, strict=True)]


@pytest.fixture
def write_labels(tmp_path):
    """A function (bodies, skip=()) -> path of a label file with those of the episodes that are not skipped."""

    def write(bodies, skip=()):
        tasks = {}
        for episode, body in enumerate(bodies):
            if episode not in skip:
                tasks.setdefault(body["instruction"].lower().replace(" ", "_"), {})[f"episode_{episode}"] = body
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({"libero_goal": tasks}))
        return path

    return write


@pytest.fixture
def refused(run):
    """A function (*argv) -> stderr of a command that must end with status 2 and no output."""

    def refused(*argv):
        status, out, err = run(*argv)
        assert (status, out) == (2, "")
        return err

    return refused
