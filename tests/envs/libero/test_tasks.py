import pytest

from eosjax.envs.libero.tasks import COVERED, VERBS, Goal, Task, read_goal, split_name
from eosjax.envs.worlds import WorldError

BDDL = """(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language Put the bowl on the plate)
  (:init (On akita_black_bowl_1 main_table_akita_black_bowl_region) (On plate_1 main_table_plate_region))
  (:goal
    {}
  )
)"""


def task(thing, target):
    return Task("libero_goal", 8, "put it there", "", Goal(thing, target))


def test_the_goal_of_a_file():
    assert read_goal(BDDL.format("(And (On akita_black_bowl_1 plate_1))")) == Goal("akita_black_bowl_1", "plate_1")
    assert read_goal(BDDL.format("(And (In milk_1 basket_1_contain_region) )")) == Goal("milk_1", "basket_1_contain_region")


@pytest.mark.parametrize(
    "goal", ["(And (Open wooden_cabinet_1_middle_region))", "(And (On a_1 b_1) (On c_1 b_1))", "(And (Turnon flat_stove_1))"]
)
def test_another_goal_is_refused(goal):
    with pytest.raises(WorldError, match="one thing is on or in another, got"):
        read_goal(BDDL.format(goal))


@pytest.mark.parametrize(
    ("thing", "target", "carry", "place"),
    [
        ("akita_black_bowl_1", "plate_1", "move the black bowl above the plate", "place the black bowl on the plate"),
        ("akita_black_bowl_1", "wooden_cabinet_1_top_side", "move the black bowl above the cabinet", "place the black bowl on the cabinet"),
        ("akita_black_bowl_1", "flat_stove_1_cook_region", "move the black bowl above the stove", "place the black bowl on the stove"),
        ("cream_cheese_1", "akita_black_bowl_1", "move the cream cheese above the bowl", "place the cream cheese in the bowl"),
        ("bbq_sauce_1", "basket_1_contain_region", "move the bbq sauce above the basket", "place the bbq sauce in the basket"),
    ],
)
def test_the_plan_names_the_thing_and_its_place(thing, target, carry, place):
    plan = task(thing, target).plan
    assert plan[2:] == [carry, place, "move the gripper away"]
    assert len(plan) == len(VERBS)


def test_names_of_environments():
    assert split_name("libero_goal") == ("libero_goal", COVERED["libero_goal"])
    assert split_name("libero_goal:8,1,8") == ("libero_goal", (8, 1))
    for wrong in ("libero_goal:0", "libero_goal:x", "libero_goal:8,,1", "libero_goal:99"):
        with pytest.raises(WorldError, match=r"some of the tasks 1, 4, 6, 8 of libero_goal, got"):
            split_name(wrong)
