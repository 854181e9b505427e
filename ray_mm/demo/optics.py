"""How a point of the world lands in the picture, how it looks from there, and how shapes are drawn.

Two functions carry the weather: ``Camera.lit`` (how much light falls on a thing) and ``Camera.hazed`` (how much of it gets
through to us); everything that is drawn goes through both. Colours are RGB, 0 … 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ray_mm.demo.scenes import Scene, Weather

WIDTH, HEIGHT = 192, 128
FOCAL_PX = 150.0
CAMERA_M = 1.4
SHIFT = 4  # OpenCV draws at 1/16 pixel, so that a distant car does not jump from pixel to pixel

Colour = tuple[float, float, float]
Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """What a kind of weather does to the picture; colours are RGB, 0 … 1.

    Attributes:
        sky_top, sky_low: the sky above and at the horizon.
        haze: the colour that distance fades to.
        sight_m: distance at which two thirds of a thing are lost in the haze.
        light: daylight, 0 dark … 1 noon.
        warmth: the tint of that light.
        wet: 0 dry … 1 mirror.
    """

    sky_top: Colour
    sky_low: Colour
    haze: Colour
    sight_m: float
    light: float
    warmth: Colour
    wet: float


LOOKS: dict[Weather, Look] = {
    "clear": Look((0.25, 0.48, 0.80), (0.74, 0.86, 0.95), (0.70, 0.80, 0.90), 420.0, 1.0, (1.0, 0.98, 0.94), 0.0),
    "dusk": Look((0.24, 0.25, 0.48), (0.98, 0.62, 0.38), (0.80, 0.55, 0.45), 300.0, 0.66, (1.0, 0.87, 0.79), 0.0),
    "night": Look((0.02, 0.03, 0.08), (0.09, 0.11, 0.19), (0.05, 0.06, 0.11), 220.0, 0.19, (0.78, 0.86, 1.0), 0.0),
    "rain": Look((0.36, 0.40, 0.45), (0.60, 0.64, 0.67), (0.55, 0.59, 0.62), 85.0, 0.66, (0.92, 0.97, 1.0), 0.85),
    "fog": Look((0.72, 0.74, 0.75), (0.80, 0.81, 0.81), (0.79, 0.80, 0.80), 21.0, 0.85, (0.98, 0.99, 1.0), 0.15),
}


class Camera:
    """Where a point of the world lands in the picture, and how it looks from here. World: x right, y up, z ahead, in m."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.look = LOOKS[scene.weather]
        self.weather = scene.weather
        self.curve = scene.curve
        self.horizon = HEIGHT * 0.42 + rng.normal(0.0, 1.5)
        self.centre = WIDTH / 2 + rng.normal(0.0, 2.5)
        self.x = rng.normal(0.0, 0.15)  # nobody drives exactly in the middle

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel (column, row) of a point in the world."""
        bend = self.curve * z * z
        scale = FOCAL_PX / z
        return self.centre + (x - self.x + bend) * scale, self.horizon + (CAMERA_M - y) * scale

    def lit(self, colour: Colour, x: float, z: float, shine: float = 1.0) -> Colour:
        """A surface's colour under daylight and, in the dark, under our headlights."""
        beam = float(self.headlights(x, z))
        light = [self.look.light * shine * warmth + beam for warmth in self.look.warmth]
        return (colour[0] * light[0], colour[1] * light[1], colour[2] * light[2])

    def headlights(self, x: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
        """Light that our headlights add at points of the road, same shape as x and z."""
        x, z = np.asarray(x, np.float32), np.asarray(z, np.float32)
        power = np.float32(1.7 * max(0.0, 0.75 - self.look.light))
        beam: Floats = power * np.exp(-z / 40.0) * np.exp(-((x / (2.6 + 0.17 * z)) ** 2))
        return beam

    def hazed(self, colour: Colour, z: float) -> Colour:
        """A colour after z metres of air."""
        through = math.exp(-z / self.look.sight_m)
        haze = self.look.haze
        r, g, b = (part * through + veil * (1.0 - through) for part, veil in zip(colour, haze, strict=True))
        return (r, g, b)


def glow(
    canvas: Picture, u: float, v: float, radius: float, strength: float, colour: Colour, stretch: float = 1.0
) -> None:
    """Adds a soft light around a point."""
    reach = 2.5 * radius
    left, right = max(int(u - reach), 0), min(int(u + reach) + 2, WIDTH)
    top, bottom = max(int(v - reach * stretch), 0), min(int(v + reach * stretch) + 2, HEIGHT)
    if left >= right or top >= bottom:
        return
    columns = np.exp(-(((np.arange(left, right) - u) / radius) ** 2))
    rows = np.exp(-(((np.arange(top, bottom) - v) / (radius * stretch)) ** 2))
    light = (rows[:, None] * columns)[:, :, None] * (255.0 * strength * np.array(colour))
    window = canvas[top:bottom, left:right]
    window[:] = np.minimum(window + light, 255.0)


def blob(canvas: Picture, camera: Camera, x: float, y: float, z: float, radius: float, colour: Colour) -> None:
    """Draws a ball of a radius in m at a point of the world."""
    size = max(int(radius * FOCAL_PX / z * (1 << SHIFT)), 1)
    cv2.circle(canvas, fixed(*camera.project(x, y, z)), size, scaled(colour), -1, cv2.LINE_AA, SHIFT)


def fill(canvas: Picture, corners: list[tuple[int, int]], colour: Colour) -> None:
    """Draws a polygon; corners come from ``fixed``."""
    cv2.fillPoly(canvas, [np.array(corners, np.int32)], scaled(colour), cv2.LINE_AA, SHIFT)


def scaled(colour: Colour) -> Colour:
    """0 … 1 → 0 … 255."""
    return min(colour[0] * 255, 255), min(colour[1] * 255, 255), min(colour[2] * 255, 255)


def fixed(u: float, v: float) -> tuple[int, int]:
    """Pixels → OpenCV's fixed-point numbers."""
    # Far outside is as good as outside, and OpenCV's fixed-point numbers would overflow.
    return int(min(max(u, -2e3), 2e3) * (1 << SHIFT)), int(min(max(v, -2e3), 2e3) * (1 << SHIFT))
