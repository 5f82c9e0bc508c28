def test_prepare_builds_and_tells_where(run, data, tiny, shared_folder):
    status, out, _ = run("prepare", *data)
    assert status == 0
    header, line = out.splitlines()
    assert header.split() == ["dataset", "episodes", "steps", "hours", "size", "frame", "store"]
    name, episodes, steps, hours, size, unit, folder = line.split()
    assert (name, episodes, steps, hours, unit) == (tiny.name, "8", str(sum(tiny.lengths)), "0.00", "MB")
    assert float(size) > 0
    assert folder.startswith(str(shared_folder / "cli_stores"))
    assert run("prepare", *data)[1] == out


def test_prepare_takes_a_mixture(run, data, tiny):
    """The second one has a NaN: the error names it, so both were read."""
    position = data.index(f"--dataset_name={tiny.name}")
    status, out, err = run("prepare", *data[:position], f"--dataset_name={tiny.name}:2,{tiny.broken_name}", *data[position + 1 :])
    assert (status, out) == (2, "")
    assert tiny.broken_name in err
    assert "step 2" in err
