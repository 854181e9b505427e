"""A scene → radar points, an IMU series, an instruction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ray_mm.demo.scenes import Scene

IMU_HZ = 50
_IMU_SECONDS = (1.6, 2.0)
_WHEEL_M = 1.95  # circumference: the frequency of the shaking says how fast we are
_GRAVITY = 9.81

_PHRASES: dict[str, tuple[str, ...]] = {
    "left": (
        "turn left at the next junction",
        "take the left exit ahead",
        "move over to the left lane",
        "overtake when it is free",
        "pass the vehicle in front of you",
        "we need to be in the left lane",
        "change lanes to the left",
        "keep left at the fork",
    ),
    "right": (
        "turn right at the next junction",
        "take the right exit ahead",
        "move over to the right lane",
        "pull in to the slow lane",
        "get ready to leave the motorway",
        "we need to be in the right lane",
        "change lanes to the right",
        "keep right at the fork",
    ),
    "stay": (
        "keep to your lane",
        "carry on straight ahead",
        "stay in this lane for now",
        "follow the road",
        "ignore the left exit and stay in this lane",
        "do not turn right, carry on straight ahead",
        "no change, carry on",
        "continue on this road",
    ),
}
_BEFORE = ("", "", "", "please ", "now ", "in three hundred metres ", "in half a kilometre ", "at the traffic lights ")
_AFTER = ("", "", "", ", thank you", ", no hurry", ", we are a little late", ", the route has changed")


def radar_points(scene: Scene) -> npt.NDArray[np.float32]:
    """What the radar returns: float32 [N, 4].

    Columns: x ahead in m, y to the left in m, radial velocity relative to us in m/s (negative: it comes closer),
    intensity 0 … 1. Distance and speed are sharp; the angle is not: neighbouring lanes run into each other.
    """
    rng = np.random.default_rng([*scene.seed, 2])
    parts = []
    for car in scene.cars:
        number = rng.integers(5, 11) if car.distance_m < 30 else rng.integers(1, 4)
        ahead = car.distance_m + rng.uniform(0.0, 3.0, number) ** 0.5
        left = -car.x_m + rng.normal(0.0, 1.3) + rng.normal(0.0, 0.5, number)
        speed = car.speed_mps + rng.normal(0.0, 0.25, number)
        size = {"car": 0.75, "van": 0.85, "truck": 1.0}[car.kind]
        strength = size * np.clip(14.0 / ahead, 0.1, 1.0) * rng.uniform(0.75, 1.0, number)
        parts.append(np.stack([ahead, left, speed, strength], 1))
    number = rng.integers(6, 16)
    ghosts = [
        rng.uniform(3.0, 90.0, number),
        rng.normal(0.0, 9.0, number),
        rng.normal(0.0, 5.0, number),
        rng.uniform(0.02, 0.12, number),
    ]
    parts.append(np.stack(ghosts, 1))
    points = np.concatenate(parts)
    return rng.permutation(points).astype(np.float32)


def imu_series(scene: Scene) -> npt.NDArray[np.float32]:
    """What the inertial sensor measures: float32 [T, 6] at ``IMU_HZ``.

    Columns: acceleration ahead, left, up in m/s²; turn rate about the same axes in rad/s. How much it shakes depends on
    the road and on the speed, so only the frequency tells one from the other.
    """
    rng = np.random.default_rng([*scene.seed, 3])
    steps = int(rng.uniform(*_IMU_SECONDS) * IMU_HZ)
    time_s = np.arange(steps) / IMU_HZ
    shaking = (0.25 + 0.9 * scene.roughness) * rng.uniform(0.6, 1.4)
    turns = scene.speed_mps / _WHEEL_M
    wheel = sum(
        part * np.sin(2 * np.pi * harmonic * turns * time_s + rng.uniform(0, 2 * np.pi))
        for harmonic, part in ((0.5, 0.4), (1.0, 1.0))
    )
    series = rng.normal(0.0, 1.0, (steps, 6)) * np.array([0.12, 0.12, 0.25, 0.01, 0.01, 0.006]) * (0.4 + shaking)
    series[:, 2] += _GRAVITY + shaking * 0.6 * wheel
    series[:, 0] += rng.normal(0.0, 0.25) + 0.18 * shaking * wheel  # coasting or pulling a little, as one does
    series[:, 4] += 0.012 * shaking * np.roll(wheel, 2)
    series[:, 5] += scene.speed_mps * scene.curve
    series[:, 1] += scene.speed_mps**2 * scene.curve
    values: npt.NDArray[np.float32] = series.astype(np.float32)
    return values


def instruction(scene: Scene) -> str:
    """What the navigation says."""
    rng = np.random.default_rng([*scene.seed, 4])
    phrases = _PHRASES[scene.situation.intent]
    before, after = _BEFORE[rng.integers(len(_BEFORE))], _AFTER[rng.integers(len(_AFTER))]
    return before + phrases[rng.integers(len(phrases))] + after
