"""What happens on the road, and the right action: the truth behind one sample of the demo.

The ego vehicle drives in the middle lane of three. What it should do follows from the situation by four rules, and each
rule joins two fields that know nothing of each other:

    a car close ahead in our lane (camera), traffic ahead is slower than we are (radar)   → brake
    rain or fog (camera), we are fast (imu)                                               → slow_down
    asked to go left / right (instruction), the lane there is free (camera)               → move_left / move_right
    otherwise                                                                             → keep_lane

So no single field can do well, and how well it could do at best is a sum over a few hundred situations
(``best_accuracy``), not a guess.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

ACTIONS = ("brake", "keep_lane", "move_left", "move_right", "slow_down")
FIELDS = ("camera", "imu", "instruction", "radar")
LANE_WIDTH_M = 3.6
NEAR_M = (8.0, 20.0)
FAR_M = (45.0, 85.0)

Intent = Literal["left", "right", "stay"]
Weather = Literal["clear", "dusk", "night", "rain", "fog"]

_CHANCES = {
    "ahead": 0.55,
    "left": 0.42,
    "right": 0.42,
    "slower_traffic": 0.5,
    "poor_sight": 0.5,
    "fast": 0.5,
}
"""How often each fact holds before the actions are balanced: chosen so that every fact is a near miss often enough."""
_INTENTS: dict[Intent, float] = {"left": 0.36, "right": 0.36, "stay": 0.28}
_ABSENT = {"camera": 0.04, "imu": 0.05, "instruction": 0.06, "radar": 0.06}
"""Chance that a field is missing. Few enough that the action is still mostly decidable."""


@dataclass(frozen=True)
class Situation:
    """The facts that decide the action.

    Attributes:
        ahead, left, right: is there a car near ahead in our lane, in the lane to the left, to the right?
        slower_traffic: do the cars ahead come closer?
        poor_sight: rain or fog.
        fast: are we fast?
        intent: what the instruction asks for.
    """

    ahead: bool
    left: bool
    right: bool
    slower_traffic: bool
    poor_sight: bool
    fast: bool
    intent: Intent

    @property
    def action(self) -> str:
        """The right action."""
        if self.ahead and self.slower_traffic:
            return "brake"
        if self.poor_sight and self.fast:
            return "slow_down"
        if self.intent == "left" and not self.left:
            return "move_left"
        if self.intent == "right" and not self.right:
            return "move_right"
        return "keep_lane"


@dataclass(frozen=True)
class Car:
    """Another vehicle.

    Attributes:
        x_m: metres to the right of our lane's centre.
        distance_m: from us to its rear.
        speed_mps: its speed minus ours; negative: it comes closer.
        kind: what it looks like.
        hue: 0 … 1, its colour.
    """

    x_m: float
    distance_m: float
    speed_mps: float
    kind: Literal["car", "van", "truck"]
    hue: float


@dataclass(frozen=True)
class Scene:
    """One moment on the road.

    Attributes:
        situation: the facts that decide.
        weather: what the camera sees.
        speed_mps: ours.
        roughness: 0 smooth … 1 rough road; says nothing about the action.
        curve: of the road, in 1/m; positive to the right; says nothing about the action.
        cars: all vehicles ahead, near and far.
        absent: fields that this sample lacks.
        seed: for what is random in the sensors.
    """

    situation: Situation
    weather: Weather
    speed_mps: float
    roughness: float
    curve: float
    cars: tuple[Car, ...]
    absent: frozenset[str]
    seed: tuple[int, int]

    @property
    def action(self) -> str:
        """The right action."""
        return self.situation.action


def draw_scene(seed: int, number: int) -> Scene:
    """The scene of one sample; the actions are equally frequent.

    Args:
        seed: of the data set.
        number: of the sample.
    """
    rng = np.random.default_rng([seed, number])
    action = ACTIONS[rng.integers(len(ACTIONS))]
    situation = _draw_situation(rng)
    while situation.action != action:
        situation = _draw_situation(rng)
    sight: tuple[Weather, ...] = ("rain", "fog") if situation.poor_sight else ("clear", "clear", "dusk", "night")
    absent = frozenset(field for field in FIELDS if rng.random() < _ABSENT[field])
    return Scene(
        situation=situation,
        weather=sight[rng.integers(len(sight))],
        speed_mps=rng.uniform(22.0, 32.0) if situation.fast else rng.uniform(8.0, 15.0),
        roughness=rng.uniform(),
        curve=rng.normal(0.0, 0.0006),
        cars=tuple(_draw_cars(situation, rng)),
        # A sample with nothing in it would be no sample.
        absent=absent if len(absent) < len(FIELDS) - 1 else frozenset(),
        seed=(seed, number),
    )


def best_accuracy(fields: Iterable[str], with_gaps: bool = True) -> float:
    """The accuracy of the best possible classifier that sees only some fields (Bayes).

    Exact where fields show the facts without error, which the sensors are built to do, with one exception: the radar's
    angles are coarse. Where the radar is judged alone it is taken to know every lane, which flatters it; joined with
    others it is taken to know none, which understates the fused figure.

    Args:
        fields: names out of ``FIELDS``.
        with_gaps: count samples that lack a field, as they occur; False: all fields are there.
    """
    fields = sorted(fields)
    alone = fields == ["radar"]
    weights = _balanced()
    best = 0.0
    for missing in itertools.product((False, True), repeat=len(fields)):
        chance = 1.0
        for field, gone in zip(fields, missing, strict=True):
            absent = _ABSENT[field] if with_gaps else 0.0
            chance *= absent if gone else 1.0 - absent
        seen = [field for field, gone in zip(fields, missing, strict=True) if not gone]
        posterior: dict[tuple[object, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for situation, weight in weights.items():
            observed = tuple(_observe(field, situation, alone) for field in seen)
            posterior[observed][situation.action] += weight
        best += chance * sum(max(of_action.values()) for of_action in posterior.values())
    return best


def _observe(field: str, situation: Situation, radar_alone: bool) -> tuple[object, ...]:
    s = situation
    match field:
        case "camera":
            return s.ahead, s.left, s.right, s.poor_sight
        case "imu":
            return (s.fast,)
        case "instruction":
            return (s.intent,)
        case "radar":
            # Without a car nearby the radar has nothing whose speed it could measure.
            closing = s.slower_traffic and (s.ahead or s.left or s.right)
            return (closing, s.ahead, s.left, s.right) if radar_alone else (closing,)
    raise ValueError(f"no field {field!r}; fields are {', '.join(FIELDS)}")


def _balanced() -> dict[Situation, float]:
    """Situation → its probability with all actions equally frequent."""
    prior = dict(_all_situations())
    of_action: dict[str, float] = defaultdict(float)
    for situation, chance in prior.items():
        of_action[situation.action] += chance
    return {situation: chance / of_action[situation.action] / len(ACTIONS) for situation, chance in prior.items()}


def _all_situations() -> Iterator[tuple[Situation, float]]:
    for facts in itertools.product((False, True), repeat=len(_CHANCES)):
        chance = float(np.prod([p if fact else 1.0 - p for fact, p in zip(facts, _CHANCES.values(), strict=True)]))
        for intent, share in _INTENTS.items():
            yield Situation(**dict(zip(_CHANCES, facts, strict=True)), intent=intent), chance * share


def _draw_situation(rng: np.random.Generator) -> Situation:
    facts = {fact: bool(rng.random() < chance) for fact, chance in _CHANCES.items()}
    intents = list(_INTENTS)
    return Situation(**facts, intent=intents[rng.choice(len(intents), p=list(_INTENTS.values()))])


def _draw_cars(situation: Situation, rng: np.random.Generator) -> Iterator[Car]:
    common = rng.uniform(-10.0, -4.5) if situation.slower_traffic else rng.uniform(-0.8, 2.5)
    for lane, near in ((-1, situation.left), (0, situation.ahead), (1, situation.right)):
        distance = float(rng.uniform(*NEAR_M)) if near else None
        far = float(rng.uniform(*FAR_M)) if rng.random() < 0.35 else None
        # A car that differs more from the others would contradict the situation.
        own = common + np.clip(rng.normal(0.0, 0.5), -1.0, 1.0)
        for place, speed in ((distance, own), (far, rng.uniform(-8.0, 6.0))):
            if place is not None:
                yield Car(
                    x_m=lane * LANE_WIDTH_M + rng.normal(0.0, 0.22),
                    distance_m=place,
                    speed_mps=float(speed),
                    # A truck in the neighbouring lane would hide half the road.
                    kind="car" if rng.random() < 0.7 else ("van" if lane or rng.random() < 0.6 else "truck"),
                    hue=float(rng.random()),
                )
