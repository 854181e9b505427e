"""What stands on the road and beside it: vehicles, trees, bushes, posts, lamps. Drawn with flat faces, in metres."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np

from ray_mm.demo.optics import SHIFT, Camera, Colour, Picture, blob, fill, fixed, glow, scaled
from ray_mm.demo.scenes import LANE_WIDTH_M, Car


@dataclass(frozen=True)
class Place:
    """Something beside the road: a tree, a bush, a post or a lamp at (x, z) in m, ``size`` metres high."""

    what: str
    x: float
    z: float
    size: float
    hue: float


def roadside(camera: Camera, rng: np.random.Generator) -> list[Place]:
    """Random things along the road; they say nothing about the action."""
    half = 1.5 * LANE_WIDTH_M
    places = []
    density = rng.integers(0, 16)
    for _ in range(density):
        side = rng.choice((-1.0, 1.0))
        what = "tree" if rng.random() < 0.7 else "bush"
        size = rng.uniform(4.0, 9.0) if what == "tree" else rng.uniform(0.8, 1.8)
        places.append(Place(what, side * (half + rng.uniform(3.5, 16.0)), rng.uniform(14.0, 110.0), size, rng.random()))
    start = rng.uniform(6.0, 22.0)
    lamps = camera.weather in ("night", "dusk") or rng.random() < 0.25
    for z in np.arange(start, 120.0, 22.0):
        for side in (-1.0, 1.0):
            places.append(Place("post", side * (half + 1.2), float(z), 1.0, 0.0))
        if lamps and (z - start) % 44.0 < 1.0:
            places.append(Place("lamp", half + 2.0, float(z) + 4.0, 7.5, 0.0))
    return places


def draw_roadside(canvas: Picture, camera: Camera, place: Place) -> None:
    """Draws one of them."""
    x, z = place.x, place.z

    def shade(colour: Colour, shine: float = 1.0) -> Colour:
        return camera.hazed(camera.lit(colour, x, z, shine), z)

    def bar(low: float, high: float, width: float, colour: Colour) -> None:
        left, bottom = camera.project(x - width / 2, low, z)
        right, top = camera.project(x + width / 2, high, z)
        right = max(right, left + 0.7)
        fill(canvas, [fixed(left, bottom), fixed(right, bottom), fixed(right, top), fixed(left, top)], colour)

    match place.what:
        case "post":
            bar(0.0, place.size, 0.14, shade((0.9, 0.9, 0.9)))
            bar(place.size * 0.62, place.size * 0.85, 0.14, shade((0.12, 0.12, 0.12)))
        case "lamp":
            bar(0.0, place.size, 0.14, shade((0.42, 0.44, 0.46)))
            u, v = camera.project(x - 1.3, place.size, z)
            start, arm = fixed(*camera.project(x, place.size, z)), shade((0.42, 0.44, 0.46))
            cv2.line(canvas, start, fixed(u, v), scaled(arm), 1, cv2.LINE_AA, SHIFT)
            if camera.look.light < 0.7:
                glow(canvas, u, v, 60.0 / z + 0.6, 0.9, (1.0, 0.8, 0.45))
        case "tree":
            bar(0.0, place.size * 0.4, 0.35, shade((0.30, 0.22, 0.15)))
            green = colorsys.hsv_to_rgb(0.22 + 0.12 * place.hue, 0.45, 0.34 + 0.12 * place.hue)
            for dx, y, r, shine in ((-0.16, 0.48, 0.24, 0.8), (0.16, 0.52, 0.23, 0.9), (0.0, 0.72, 0.26, 1.1)):
                blob(canvas, camera, x + dx * place.size, y * place.size, z, r * place.size, shade(green, shine))
        case _:
            green = colorsys.hsv_to_rgb(0.24 + 0.1 * place.hue, 0.45, 0.36)
            for dx, shine in ((-0.5, 0.8), (0.5, 0.9), (0.0, 1.1)):
                blob(canvas, camera, x + dx * place.size, 0.4 * place.size, z, 0.55 * place.size, shade(green, shine))


@dataclass(frozen=True)
class _Body:
    """A vehicle's shape in metres; ``narrow`` is the roof's width as a share of the body's."""

    width: float
    belt: float
    roof: float
    narrow: float
    length: float
    lamps: tuple[float, float]


_BODIES = {
    "car": _Body(1.82, 0.92, 1.46, 0.74, 4.3, (0.62, 0.84)),
    "van": _Body(1.95, 1.15, 2.05, 0.90, 5.0, (0.55, 1.00)),
    "truck": _Body(2.45, 1.10, 3.10, 1.00, 8.0, (0.55, 1.00)),
}
_PAINTS: tuple[Colour, ...] = (
    (0.88, 0.88, 0.87), (0.72, 0.74, 0.76), (0.45, 0.47, 0.50), (0.16, 0.17, 0.19), (0.66, 0.12, 0.10),
    (0.12, 0.25, 0.52), (0.20, 0.42, 0.66), (0.12, 0.32, 0.22), (0.76, 0.56, 0.14), (0.50, 0.36, 0.24),
)  # fmt: skip
_GLASS: Colour = (0.16, 0.19, 0.23)
_TYRE: Colour = (0.05, 0.05, 0.05)
_PLATE: Colour = (0.86, 0.86, 0.80)


def draw_car(canvas: Picture, camera: Camera, car: Car) -> None:
    """Draws a vehicle that is seen from behind."""
    brush = _Brush(canvas, camera, car)
    body = _BODIES[car.kind]
    paint = _PAINTS[int(car.hue * len(_PAINTS))]
    _draw_flank(brush, body, paint, car)
    _draw_rear(brush, body, paint, car)
    _draw_tail_lamps(brush, body, car)


class _Brush:
    """Draws faces whose corners are given relative to the middle of a vehicle's rear, on the ground."""

    def __init__(self, canvas: Picture, camera: Camera, car: Car) -> None:
        self.canvas, self.camera, self.x, self.z = canvas, camera, car.x_m, car.distance_m

    def face(self, corners: list[tuple[float, float, float]], colour: Colour, shine: float = 1.0) -> None:
        """Corners (x, y, z) in m; ``shine`` makes a face lighter or darker than one turned to us."""
        z = self.z + max(sum(corner[2] for corner in corners) / len(corners), 0.0)
        shade = self.camera.hazed(self.camera.lit(colour, self.x, z, shine), z)
        fill(self.canvas, [fixed(*self.camera.project(self.x + x, y, self.z + dz)) for x, y, dz in corners], shade)

    def rear(self, left: float, low: float, right: float, high: float, colour: Colour, shine: float = 1.0) -> None:
        """A rectangle in the plane of the rear."""
        self.face([(left, low, 0.0), (right, low, 0.0), (right, high, 0.0), (left, high, 0.0)], colour, shine)


def _draw_flank(brush: _Brush, body: _Body, paint: Colour, car: Car) -> None:
    wide, belt, roof, length = body.width * 0.56, body.belt, body.roof, body.length
    brush.face([(-wide, 0, -0.35), (wide, 0, -0.35), (wide, 0, length), (-wide, 0, length)], (0.05, 0.05, 0.055))
    side = -1.0 if car.x_m > brush.camera.x else 1.0  # the flank that we see is the one towards us
    low, high = side * body.width / 2, side * body.width / 2 * body.narrow
    brush.face([(low, 0.28, 0), (low, belt, 0), (low, belt, length), (low, 0.28, length)], paint, 0.62)
    if car.kind == "car":
        brush.face([(low, belt, 0.1), (high, roof, 0.9), (high, roof, 2.6), (low, belt, 3.6)], _GLASS, 0.9)
    else:
        brush.face([(low, belt, 0), (high, roof, 0), (high, roof, length), (low, belt, length)], paint, 0.7)
    for along in (0.75, length - 0.9):
        near, far = along - 0.3, along + 0.3
        brush.face([(low, 0.0, near), (low, 0.62, near), (low, 0.62, far), (low, 0.0, far)], _TYRE)


def _draw_rear(brush: _Brush, body: _Body, paint: Colour, car: Car) -> None:
    half, top, belt, roof = body.width / 2, body.width / 2 * body.narrow, body.belt, body.roof
    for wheel in (-half, half):
        brush.rear(wheel * 0.95, 0.0, wheel * 0.62, 0.4, _TYRE)
    brush.rear(-half, 0.28, half, belt, paint)
    brush.rear(-half, 0.28, half, 0.46, paint, 0.55)
    brush.face([(-half * 0.97, belt, 0), (half * 0.97, belt, 0), (top, roof, 0.35), (-top, roof, 0.35)], paint, 0.85)
    if car.kind == "truck":
        brush.rear(-0.03, belt, 0.03, roof - 0.1, paint, 0.6)
    else:
        low, high, half, top = belt + 0.04, roof - 0.10, half * 0.86, top * 0.86
        brush.face([(-half, low, 0), (half, low, 0), (top, high, 0.3), (-top, high, 0.3)], _GLASS)
    brush.rear(-0.28, 0.50, 0.28, 0.64, _PLATE)


def _draw_tail_lamps(brush: _Brush, body: _Body, car: Car) -> None:
    camera, z, half, (low, high) = brush.camera, car.distance_m, body.width / 2, body.lamps
    look = camera.look
    dark = look.light < 0.9
    # They look the same whether the car comes closer or not: to tell that is the radar's part.
    colour: Colour = (0.95, 0.10, 0.08) if dark else (0.70, 0.07, 0.06)
    shade = camera.hazed(colour, z * 0.6) if dark else camera.hazed(camera.lit(colour, car.x_m, z), z)
    for edge in (-half, half):
        inner, outer = car.x_m + edge * 0.70, car.x_m + edge * 0.97
        corners = ((inner, low), (outer, low), (outer, high), (inner, high))
        fill(brush.canvas, [fixed(*camera.project(x, y, z)) for x, y in corners], shade)
        if dark:
            u, v = camera.project((inner + outer) / 2, (low + high) / 2, z)
            strength = 0.5 * math.exp(-z / (2.0 * look.sight_m)) * (1.1 - look.light)
            glow(brush.canvas, u, v, 24.0 / z + 0.4, strength, (1.0, 0.15, 0.1))
            if look.wet > 0.5:
                v = camera.project(car.x_m, -0.7, z)[1]
                glow(brush.canvas, u, v, 20.0 / z + 0.4, 0.3, (1.0, 0.2, 0.15), stretch=3.0)
