from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_mm.demo.scenes import ACTIONS, FIELDS, LANE_WIDTH_M, NEAR_M, Situation, best_accuracy, draw_scene

SCENES = [draw_scene(0, number) for number in range(3000)]


def situation(**facts: bool | str) -> Situation:
    plain = {"ahead": False, "left": False, "right": False, "slower_traffic": False, "poor_sight": False, "fast": False}
    return Situation(**(plain | {"intent": "stay"} | facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "action"),
    [
        ({}, "keep_lane"),
        ({"ahead": True}, "keep_lane"),
        ({"slower_traffic": True, "left": True}, "keep_lane"),
        ({"ahead": True, "slower_traffic": True, "poor_sight": True, "fast": True, "intent": "left"}, "brake"),
        ({"poor_sight": True}, "keep_lane"),
        ({"fast": True}, "keep_lane"),
        ({"poor_sight": True, "fast": True, "intent": "left"}, "slow_down"),
        ({"intent": "left", "right": True}, "move_left"),
        ({"intent": "left", "left": True}, "keep_lane"),
        ({"intent": "right", "ahead": True}, "move_right"),
        ({"intent": "right", "right": True}, "keep_lane"),
    ],
)
def test_every_rule_needs_both_of_its_fields(facts: dict[str, bool | str], action: str) -> None:
    assert situation(**facts).action == action


def test_actions_are_equally_frequent() -> None:
    counts = Counter(scene.action for scene in SCENES)
    assert set(counts) == set(ACTIONS)
    for action in ACTIONS:
        assert counts[action] / len(SCENES) == pytest.approx(1 / len(ACTIONS), abs=0.03), action


def test_the_same_numbers_give_the_same_scene() -> None:
    assert draw_scene(3, 7) == draw_scene(3, 7)
    assert draw_scene(3, 7) != draw_scene(4, 7)
    assert draw_scene(3, 7) != draw_scene(3, 8)


@given(st.integers(0, 2**32), st.integers(0, 10**6))
@example(88, 424)  # a car's own speed far from the others'
def test_a_scene_shows_the_facts_that_its_action_follows_from(seed: int, number: int) -> None:
    scene = draw_scene(seed, number)
    facts = scene.situation
    near = {round(car.x_m / LANE_WIDTH_M): car for car in scene.cars if car.distance_m <= NEAR_M[1]}
    assert (facts.left, facts.ahead, facts.right) == tuple(lane in near for lane in (-1, 0, 1))
    assert all((car.speed_mps < -2.0) == facts.slower_traffic for car in near.values())
    assert facts.poor_sight == (scene.weather in ("rain", "fog"))
    assert facts.fast == (scene.speed_mps > 18.0)
    assert len(FIELDS) - len(scene.absent) >= 2
    assert scene.action == facts.action


def test_all_fields_together_decide_the_action_and_none_alone_comes_near() -> None:
    fused = best_accuracy(FIELDS)
    assert fused >= 0.95
    assert best_accuracy(FIELDS, with_gaps=False) == pytest.approx(1.0)
    for field in FIELDS:
        assert best_accuracy([field]) <= fused - 0.10, field


def test_every_field_adds_something_to_all_others() -> None:
    for field in FIELDS:
        assert best_accuracy(FIELDS) >= best_accuracy(set(FIELDS) - {field}) + 0.05, field


def test_best_accuracy_is_what_a_table_of_generated_scenes_gives() -> None:
    """Counts, instead of sums over probabilities: the most frequent action of every observation."""

    def observed(field: str, facts: Situation) -> tuple[object, ...]:
        match field:
            case "camera":
                return facts.ahead, facts.left, facts.right, facts.poor_sight
            case "imu":
                return (facts.fast,)
            case "instruction":
                return (facts.intent,)
        return (facts.slower_traffic and (facts.ahead or facts.left or facts.right),)

    for fields in [*itertools.combinations(FIELDS, 2), ("camera",), ("imu",), ("instruction",)]:
        votes: dict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
        for scene in SCENES:
            seen = tuple(None if f in scene.absent else observed(f, scene.situation) for f in fields)
            votes[seen][scene.action] += 1
        counted = sum(max(of_action.values()) for of_action in votes.values()) / len(SCENES)
        assert counted == pytest.approx(best_accuracy(fields), abs=0.03), fields


def test_a_field_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="no field 'lidar'"):
        best_accuracy(["lidar"], with_gaps=False)
