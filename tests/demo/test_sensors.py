from __future__ import annotations

import numpy as np
import pytest

from ray_mm.demo.scenes import draw_scene
from ray_mm.demo.sensors import IMU_HZ, imu_series, instruction, radar_points

SCENES = [draw_scene(1, number) for number in range(600)]


def test_radar_is_points_of_four_values_in_no_order() -> None:
    for scene in SCENES[:50]:
        points = radar_points(scene)
        assert points.dtype == np.float32
        assert points.shape[1] == 4
        assert 6 <= len(points) <= 60
        assert np.isfinite(points).all()
        np.testing.assert_array_equal(points, radar_points(scene))


def test_radar_tells_whether_the_traffic_ahead_is_slower() -> None:
    right = total = 0
    for scene in SCENES:
        facts = scene.situation
        if facts.ahead or facts.left or facts.right:
            points = radar_points(scene)
            strong = points[(points[:, 3] > 0.3) & (points[:, 0] < 25.0)]
            right += (np.median(strong[:, 2]) < -2.8) == facts.slower_traffic
            total += 1
    assert right / total > 0.99


def test_radar_tells_the_lane_of_a_car_only_roughly() -> None:
    """A car in the lane to the left and one ahead overlap, else the camera would not be needed."""
    lanes: dict[str, list[float]] = {"ahead": [], "left": []}
    for scene in SCENES:
        facts = scene.situation
        points = radar_points(scene)
        sideways = points[(points[:, 3] > 0.3) & (points[:, 0] < 25.0), 1]
        if facts.ahead and not (facts.left or facts.right):
            lanes["ahead"].append(float(sideways.mean()))
        if facts.left and not (facts.ahead or facts.right):
            lanes["left"].append(float(sideways.mean()))
    best = max(
        (np.mean(np.array(lanes["ahead"]) < limit) + np.mean(np.array(lanes["left"]) >= limit)) / 2
        for limit in np.linspace(0, 4, 41)
    )
    assert 0.8 < best < 0.97


def test_the_imu_tells_speed_by_frequency_and_not_by_strength() -> None:
    def peak_hz(series: np.ndarray) -> float:
        up = series[:, 2] - series[:, 2].mean()
        spectrum = np.abs(np.fft.rfft(up * np.hanning(len(up)), 1024))
        return float(np.fft.rfftfreq(1024, 1 / IMU_HZ)[spectrum.argmax()])

    fast = np.array([scene.situation.fast for scene in SCENES])
    series = [imu_series(scene) for scene in SCENES]
    assert all(one.dtype == np.float32 and one.shape[1] == 6 and 80 <= len(one) <= 100 for one in series)
    by_frequency = np.array([peak_hz(one) > 9.5 for one in series])
    assert (by_frequency == fast).mean() > 0.98
    strength = np.array([one[:, 2].std() for one in series])
    assert max(((strength > limit) == fast).mean() for limit in np.quantile(strength, np.linspace(0, 1, 41))) < 0.65


def test_an_instruction_belongs_to_one_intent() -> None:
    intents: dict[str, set[str]] = {}
    for scene in SCENES:
        intents.setdefault(instruction(scene), set()).add(scene.situation.intent)
    assert len(intents) > 200
    assert all(len(found) == 1 for found in intents.values())


@pytest.mark.parametrize("number", range(5))
def test_an_instruction_is_the_same_every_time(number: int) -> None:
    assert instruction(draw_scene(2, number)) == instruction(draw_scene(2, number))
