"""Results as tables."""

from eosjax.bench import tables


def result(title, f1, **more):
    names = [name for _, name, _ in (*tables._QUALITY, *tables._TRAINING)]
    mean = dict.fromkeys(names, 0.25) | {"event/f1@2": f1}
    spread = dict.fromkeys(names, 0.125)
    intervals = {"event/f1@2": [0.1, 0.9], "event/ap@2": [None, None]}
    return {"title": title, "learning_rate": 1e-3, "mean": mean | more, "spread": spread, "intervals": intervals}


def test_best_first_and_rules_behind():
    rules = {"rule a": {"mean": {"event/f1@2": 0.1}, "intervals": {}}, "rule b": {"mean": {"event/f1@2": 0.9}, "intervals": {}}}
    rows = tables.quality([result("low", 0.2), result("none", None), result("high", 0.8)], rules)
    assert [row[0] for row in rows] == ["method", "high", "low", "none", "rule b", "rule a"]
    assert {len(row) for row in rows} == {len(rows[0])}
    cells = dict(zip(rows[0], rows[1], strict=True))
    assert cells["F1 ±2"] == "0.800 ± 0.125 [0.10, 0.90]"
    assert cells["AP ±2"] == "0.250 ± 0.125"
    assert cells["learning rate"] == "0.001"
    assert rows[3][2] == "–"
    assert rows[-1][1:3] == ("", "0.100")
    assert rows[-1][3:] == ("–",) * (len(rows[0]) - 3)


def test_training_in_the_given_order():
    rows = tables.training([result("b", 0.1, **{"train/first_update": None}), result("a", 0.9)])
    assert [row[0] for row in rows[1:]] == ["b", "a"]
    assert rows[1][rows[0].index("first update")] == "–"
    assert rows[2][rows[0].index("share updated")] == "0.25"


def test_markdown():
    assert tables.markdown([("a", "b"), ("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
