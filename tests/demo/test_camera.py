from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ray_mm.demo.camera import render
from ray_mm.demo.optics import HEIGHT, LOOKS, WIDTH
from ray_mm.demo.scenes import LANE_WIDTH_M, Car, Scene, Weather, draw_scene


def empty_road(weather: Weather) -> Scene:
    return replace(draw_scene(0, 0), weather=weather, cars=(), curve=0.0)


def difference(one: Scene, other: Scene) -> npt.NDArray[np.float64]:
    return np.abs(render(one).astype(float) - render(other).astype(float)).mean(axis=2)


@pytest.mark.parametrize("weather", sorted(LOOKS))
def test_a_picture_has_its_shape_and_is_the_same_every_time(weather: Weather) -> None:
    scene = replace(draw_scene(0, 1), weather=weather)
    picture = render(scene)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    assert 10 < picture.std() < 110
    np.testing.assert_array_equal(picture, render(scene))


@pytest.mark.parametrize("weather", sorted(LOOKS))
@pytest.mark.parametrize("lane", [-1, 0, 1])
def test_a_car_nearby_is_seen_in_its_lane_in_any_weather(weather: Weather, lane: int) -> None:
    road = empty_road(weather)
    # The farthest that counts as near: elsewhere it is larger.
    car = Car(x_m=lane * LANE_WIDTH_M, distance_m=20.0, speed_mps=0.0, kind="car", hue=0.45)
    changed = difference(road, replace(road, cars=(car,))) > 12
    columns = np.flatnonzero(changed.any(axis=0))
    assert changed.sum() > 40
    assert columns.mean() == pytest.approx(WIDTH / 2 + lane * LANE_WIDTH_M * 150 / 20, abs=10)


def test_how_fast_a_car_is_can_not_be_seen() -> None:
    road = empty_road("dusk")
    cars = [Car(0.0, 12.0, speed, "van", 0.2) for speed in (-9.0, 2.0)]
    assert difference(replace(road, cars=(cars[0],)), replace(road, cars=(cars[1],))).max() == 0


def test_fog_hides_what_is_far_away() -> None:
    def contrast(weather: Weather, distance_m: float) -> float:
        road = empty_road(weather)
        car = Car(0.0, distance_m, 0.0, "truck", 0.0)
        return float(difference(road, replace(road, cars=(car,))).max())

    assert contrast("fog", 80.0) < 0.4 * contrast("clear", 80.0)
    assert contrast("fog", 80.0) < 0.4 * contrast("fog", 12.0)


def test_night_is_darker_than_day() -> None:
    assert render(empty_road("night")).mean() < 0.5 * render(empty_road("clear")).mean()
