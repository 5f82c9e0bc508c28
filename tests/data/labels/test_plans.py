import json
import unicodedata

import pytest

from eosjax.data.labels.labeller import KINDS, FoundSegment, NotFound
from eosjax.data.labels.plans import PlanError, plan_instructions, read_plans

STEPS = ["Move to the cup", "Pick up the cup", "Move above the tray", "Place it on the tray", "Return home"]
SEGMENTS = [FoundSegment(kind, 0, 10 * number, 10 * number + 9) for number, kind in enumerate(KINDS)]


def entry(suite="goal", task="Put the cup on the tray", steps=STEPS):
    plan = [{"step": number, "subgoal": text, "expected_effect": ""} for number, text in enumerate(steps, 1)]
    return {"suite": suite, "instruction": {"raw": task, "plan": plan[::-1]}}  # the order is that of the step numbers


def numbered(*numbers):
    """An entry with these step numbers."""
    plan = [{"step": number, "subgoal": "Move"} for number in numbers]
    return {"suite": "goal", "instruction": {"raw": "Put it", "plan": plan}}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "plans.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    ("suite", "dataset"),
    [("goal", "libero_goal_no_noops"), ("LIBERO_Goal", "libero_goal"), ("long", "libero_10_no_noops"), ("my_arm", "my_arm")],
)
def test_the_suite_is_found_under_its_names(write, suite, dataset):
    plans = read_plans(write([entry("other", "another task"), entry(suite)]), dataset)
    assert plans == {"put the cup on the tray": STEPS}
    assert plan_instructions(plans, "put_the_cup_on_the_tray", SEGMENTS) == STEPS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "not JSON"),
        ({}, "expected a list"),
        ([{"suite": "goal"}], "entry 0: expected"),
        ([{**entry(), "suite": 3}], "entry 0: expected"),
        ([entry(steps=["Move", " . "])], "entry 0: expected .* texts that are not blank"),
        ([entry(task="?")], "entry 0: expected .* texts that are not blank"),
        ([numbered("1", "10", "2")], "entry 0: expected .* step numbers"),
        ([numbered(1, 2.5)], "entry 0: expected .* step numbers"),
        ([numbered([1], 2)], "entry 0: expected .* step numbers"),
        ([numbered(1, 2, 1)], r"entry 0: expected each step number once, got \[1, 2, 1\]"),
        ('[{"suite": "goal", "suite": "spatial"}]', "repeated key: 'suite' twice"),
        ([entry(), entry(steps=STEPS[:4])], "entry 1: another plan of the task 'put the cup on the tray'"),
        ([entry("spatial"), entry("long")], "no plan of the suite of 'libero_goal'; the file has: long, spatial"),
    ],
)
def test_a_faulty_file_is_refused(write, content, why):
    with pytest.raises(PlanError, match=why):
        read_plans(write(content), "libero_goal")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PlanError, match="unreadable"):
        read_plans(tmp_path / "no.json", "libero_goal")


@pytest.mark.parametrize(
    ("task", "steps", "why"),
    [
        ("open the door", STEPS, "no plan of 'open the door'"),
        ("put the cup on the tray", STEPS[:4], "5 sub-steps found, 4 in the plan"),
        ("put the cup on the tray", ["Move there", "Reach the cup", *STEPS[1:4]], "sub-step 2 is a pick, and 'Reach the cup'"),
        ("put the cup on the tray", ["Push the cup", *STEPS[1:]], "sub-step 1 is a reach, and 'Push the cup'"),
    ],
)
def test_a_plan_that_is_not_what_was_found_is_not_used(task, steps, why):
    with pytest.raises(NotFound, match=why):
        plan_instructions({"put the cup on the tray": steps}, task, SEGMENTS)


def test_tasks_are_found_in_any_unicode_form(write):
    plans = read_plans(write([entry(task=unicodedata.normalize("NFD", "Gib mir die Schüssel"))]), "goal")
    assert plan_instructions(plans, unicodedata.normalize("NFC", "gib_mir_die_schüssel"), SEGMENTS) == STEPS


def test_unknown_verbs_are_taken_by_their_place():
    steps = ["Hover over the cup", "Get the cup", *STEPS[2:]]
    assert plan_instructions({"t": steps}, "T", SEGMENTS) == steps
