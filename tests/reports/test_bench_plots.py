"""Curves of the bench."""

import json

from eosjax.reports.bench_plots import policy_curves


def test_curves_show_the_steps_that_all_seeds_have(tmp_path):
    for seed, values in enumerate(([None, 1.0, 2.0], [5.0, 3.0, 6.0])):
        rows = [{"step": step, "train/eos_loss": value} for step, value in enumerate(values)]
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 2, "val/x": 1.0}]))
    line = policy_curves([tmp_path / "0", tmp_path / "1"], "title").axes[1].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [2.0, 4.0])
