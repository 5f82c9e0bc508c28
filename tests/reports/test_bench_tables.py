"""Tables of the bench."""

import numpy as np

from eosjax.ends.comparison import HEAD
from eosjax.reports import bench_tables
from eosjax.reports.tables import markdown


def result(title, f1, **more):
    names = [name for _, name, _ in (*bench_tables.HEAD_QUALITY, *bench_tables.HEAD_TRAINING)]
    mean = dict.fromkeys(names, 0.25) | {"event/f1@2": f1}
    spread = dict.fromkeys(names, 0.125)
    intervals = {"event/f1@2": [0.1, 0.9], "event/ap@2": [None, None]}
    return {"title": title, "learning_rate": 1e-3, "mean": mean | more, "spread": spread, "intervals": intervals}


def test_best_first_and_baselines_behind():
    baselines = {"blind a": {"mean": {"event/f1@2": 0.1}, "intervals": {}}, "blind b": {"mean": {"event/f1@2": 0.9}, "intervals": {}}}
    rows = bench_tables.head_quality([result("low", 0.2), result("none", None), result("high", 0.8)], baselines)
    assert [row[0] for row in rows] == ["method", "high", "low", "none", "blind b", "blind a"]
    assert {len(row) for row in rows} == {len(rows[0])}
    cells = dict(zip(rows[0], rows[1], strict=True))
    assert cells["F1 ±2"] == "0.800 ± 0.125 [0.10, 0.90]"
    assert cells["AP ±2"] == "0.250 ± 0.125"
    assert cells["learning rate"] == "0.001"
    assert rows[3][2] == "–"
    assert rows[-1][1:3] == ("", "0.100")
    assert rows[-1][3:] == ("–",) * (len(rows[0]) - 3)


def test_training_in_the_given_order():
    rows = bench_tables.head_training([result("b", 0.1, **{"train/first_update": None}), result("a", 0.9)])
    assert [row[0] for row in rows[1:]] == ["b", "a"]
    assert rows[1][rows[0].index("first update")] == "–"
    assert rows[2][rows[0].index("share updated")] == "0.25"


def test_markdown():
    assert markdown([("a", "b"), ("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_methods_at_an_edge_of_the_grid_are_named():
    results = [{"title": "A", "method": "a", "learning_rate": 1e-3}, {"title": "B", "method": "detached", "learning_rate": 1e-4}]
    assert bench_tables.edge_of_grid(results, (1e-4, 1e-3, 1e-2)) == []
    assert bench_tables.edge_of_grid(results, (1e-4, 1e-3)) == ["learning rate at an edge of the grid: A"]


def test_tables_have_means_and_spreads():
    def figures(value):
        return dict.fromkeys((key for _, key in bench_tables.POLICY_QUALITY), value)

    def seed(value):
        buffer = dict.fromkeys((key for _, key in bench_tables.BUFFER), value)
        return {"held_out": {HEAD: figures(value), "blind": {"event/ap@2": 1.0}}, "buffer": dict.fromkeys(("half", "end"), buffer)}

    results = {"a": [seed(0.25), seed(0.75)], "plain": [seed(0.0), seed(0.5)], "b": [seed(None), seed(None)]}
    held_out = markdown(bench_tables.policy_quality(results, "plain")).splitlines()
    buffer = markdown(bench_tables.buffer_rows(results)).splitlines()
    assert held_out[0].endswith("| event AP ±2 above plain, seed by seed |")
    assert held_out[2].startswith(f"| a | 0.500 ± {np.std([0.25, 0.75], ddof=1):.3f} |")
    assert held_out[2].endswith("| 0.250 ± 0.000 |")  # above the reference, seed by seed
    assert held_out[4].startswith("| b | – |")
    assert held_out[5].startswith("| blind | 1.000 ± 0.000 | – |")
    assert [line.split(" | ")[0] for line in buffer[2:4]] == ["| a, half", "| a, end"]
