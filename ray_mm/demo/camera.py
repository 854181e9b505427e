"""A scene → the picture that a camera behind the windscreen takes: uint8 RGB [HEIGHT, WIDTH, 3].

The ground is computed per pixel (each one knows where on the road it looks); what stands on it is drawn from far to near.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from ray_mm.demo.objects import draw_car, draw_roadside, roadside
from ray_mm.demo.optics import (
    CAMERA_M,
    FOCAL_PX,
    HEIGHT,
    SHIFT,
    WIDTH,
    Camera,
    Colour,
    Floats,
    Look,
    Picture,
    fill,
    fixed,
)
from ray_mm.demo.scenes import LANE_WIDTH_M, Car, Scene


def render(scene: Scene) -> Picture:
    """The picture of a scene, uint8 RGB [HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng([*scene.seed, 1])
    camera = Camera(scene, rng)
    canvas = _bytes(_sky(camera, rng))  # OpenCV smooths edges in 8-bit pictures only
    _paint_hills(canvas, camera, rng)
    ground = _bytes(_ground(camera, rng))
    canvas[-len(ground) :] = ground
    things = [(place.z, place) for place in roadside(camera, rng)] + [(car.distance_m, car) for car in scene.cars]
    for _, thing in sorted(things, key=lambda pair: -pair[0]):
        if isinstance(thing, Car):
            draw_car(canvas, camera, thing)
        else:
            draw_roadside(canvas, camera, thing)
    if scene.weather == "rain":
        _rain(canvas, rng)
    return _develop(canvas, camera, rng)


def _sky(camera: Camera, rng: np.random.Generator) -> Floats:
    look = camera.look
    height = np.linspace(0.0, HEIGHT / camera.horizon, HEIGHT, dtype=np.float32)[:, None, None].clip(0.0, 1.0) ** 1.4
    top, low = np.array(look.sky_top, np.float32), np.array(look.sky_low, np.float32)
    sky: Floats = np.repeat((top + (low - top) * height).astype(np.float32), WIDTH, axis=1)
    if camera.weather in ("clear", "dusk"):
        x, y = rng.uniform(0, WIDTH), rng.uniform(0.15, 0.9) * camera.horizon
        sunlight = np.array([1.0, 0.92, 0.72] if camera.weather == "clear" else [1.0, 0.7, 0.4], np.float32)
        sky += (_disc(x, y, 14.0) * 0.55 + _disc(x, y, 3.2) * 1.2)[:, :, None] * sunlight
    if camera.weather == "night":
        for _ in range(24):
            sky[int(rng.uniform(0, camera.horizon)), int(rng.uniform(0, WIDTH))] += rng.uniform(0.1, 0.5)
        if rng.random() < 0.5:
            x, y = rng.uniform(0, WIDTH), rng.uniform(0.1, 0.5) * camera.horizon
            sky += (_disc(x, y, 9.0) * 0.10 + (_disc(x, y, 3.0) > 0.4) * 0.75)[:, :, None]
    if camera.weather != "fog":
        amount, tint = _CLOUDS[camera.weather]
        noise = cv2.resize(rng.random((9, 10), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noise += 0.5 * cv2.resize(rng.random((30, 22), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cover = np.clip((noise - 0.82) * 3.2, 0.0, 1.0)[:, :, None] * (amount * rng.uniform(0.4, 1.0))
        sky += (np.array(tint, np.float32) - sky) * cover
    return sky


_CLOUDS: dict[str, tuple[float, Colour]] = {
    "clear": (0.75, (1.0, 1.0, 1.0)),
    "dusk": (0.50, (1.0, 0.66, 0.55)),
    "rain": (0.30, (0.33, 0.36, 0.40)),
    "night": (0.05, (1.0, 1.0, 1.0)),
}


def _paint_hills(canvas: Picture, camera: Camera, rng: np.random.Generator) -> None:
    columns = np.arange(-2, WIDTH + 3)
    for distance, size, colour in ((700.0, 15.0, (0.36, 0.42, 0.46)), (260.0, 7.0, (0.24, 0.34, 0.22))):
        ridge = np.zeros(len(columns))
        for points, share in ((7, 1.0), (40, 0.16)):
            ridge += share * np.interp(columns, np.linspace(-2, WIDTH + 2, points), rng.random(points))
        tops = [fixed(float(u), camera.horizon - size * float(r)) for u, r in zip(columns, ridge, strict=True)]
        base = [fixed(WIDTH + 2.0, camera.horizon + 2), fixed(-2.0, camera.horizon + 2)]
        shade = camera.hazed(camera.lit(colour, 1e3, 1e3), min(distance, camera.look.sight_m * 1.6))
        fill(canvas, [*tops, *base], shade)


def _ground(camera: Camera, rng: np.random.Generator) -> Floats:
    """The rows of the picture from the horizon down."""
    look = camera.look
    first = math.ceil(camera.horizon)
    # Two samples per pixel each way: thin lane markings far away would flicker with one.
    rows = (np.arange(2 * (HEIGHT - first), dtype=np.float32) + 0.5) / 2 + first
    columns = (np.arange(2 * WIDTH, dtype=np.float32) + 0.5) / 2
    z: Floats = (FOCAL_PX * CAMERA_M / np.maximum(rows - camera.horizon, 0.25))[:, None].astype(np.float32)
    x: Floats = ((columns - camera.centre) * (z / FOCAL_PX) + (camera.x - camera.curve * z * z)).astype(np.float32)
    material, road = _materials(x, z, rng)
    palette, roughness = _palette(look, rng)

    grain = rng.standard_normal(x.shape, np.float32) * roughness[material] + 1.0
    grain += (0.04 * np.sin(z * 0.55 + rng.uniform(0, 6), dtype=np.float32)) * (material == _GRASS)
    light = np.array(look.warmth, np.float32) * look.light
    colour = palette[material] * grain[:, :, None]
    colour *= light if look.light > 0.7 else light + camera.headlights(x, z)[:, :, None]
    if look.wet > 0.5:
        shine = 0.3 * look.wet * (road * grain)[:, :, None]
        mirror = np.array(look.sky_low, np.float32) * (0.22 + 0.5 * np.exp(-(((z - 25.0) / 40.0) ** 2)))[:, :, None]
        colour += (mirror - colour * 0.35) * shine
    through = np.exp(-z / look.sight_m)[:, :, None]
    colour *= through
    colour += np.array(look.haze, np.float32) * (1.0 - through)
    return np.asarray(cv2.resize(colour, (WIDTH, HEIGHT - first), interpolation=cv2.INTER_AREA), np.float32)


_GRASS, _SHOULDER, _ASPHALT, _PAINT = range(4)


def _materials(x: Floats, z: Floats, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """What lies at each point of the ground, and where it is road. x: [rows, columns], z: [rows, 1], in m."""
    half = 1.5 * LANE_WIDTH_M
    edge = np.abs(x)
    road = edge < half + 0.75
    material = (edge < half + 1.7).astype(np.uint8) + road
    dashes = np.mod(z + rng.uniform(0, 12), 12.0) < 5.0
    material[(np.abs(edge - half) < 0.11) | ((np.abs(edge - LANE_WIDTH_M / 2) < 0.085) & dashes)] = _PAINT
    return material, road


def _palette(look: Look, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Colour [4, 3] and roughness [4] of the materials."""
    grass = ((0.33, 0.44, 0.20), (0.45, 0.45, 0.24), (0.27, 0.40, 0.22))[rng.integers(3)]
    tone = rng.uniform(0.27, 0.36) * (1.0 - 0.35 * look.wet)
    colours = [grass, (0.47, 0.43, 0.36), (tone, tone, tone * 1.03), (0.88, 0.88, 0.88)]
    return np.array(colours, np.float32), np.array([0.10, 0.12, 0.07, 0.02], np.float32)


def _rain(canvas: Picture, rng: np.random.Generator) -> None:
    streaks = np.zeros((HEIGHT, WIDTH), np.uint8)
    lean = rng.uniform(-0.25, 0.25)
    for _ in range(int(rng.integers(70, 130))):
        u, v, size = rng.uniform(0, WIDTH), rng.uniform(-10, HEIGHT), rng.uniform(4, 13)
        end = fixed(u + lean * size, v + size)
        cv2.line(streaks, fixed(u, v), end, rng.uniform(25, 90), 1, cv2.LINE_AA, SHIFT)
    cover = streaks[:, :, None].astype(np.float32) / 255.0
    canvas[:] = canvas * (1.0 - cover) + 235.0 * cover
    for _ in range(int(rng.integers(3, 9))):  # drops on the windscreen show the world upside down
        u, v, r = int(rng.uniform(6, WIDTH - 6)), int(rng.uniform(6, HEIGHT - 6)), int(rng.integers(2, 4))
        patch = canvas[v - r : v + r + 1, u - r : u + r + 1]
        disc = (np.hypot(*np.mgrid[-r : r + 1, -r : r + 1]) <= r)[:, :, None]
        patch[:] = np.where(disc, patch[::-1] * 0.85 + 30.0, patch)


def _develop(canvas: Picture, camera: Camera, rng: np.random.Generator) -> Picture:
    """Lens and sensor: dark corners, a breath of blur, noise that grows in the dark."""
    noise = rng.standard_normal(canvas.shape, np.float32) * (2.0 + 3.0 * (1.0 - camera.look.light))
    blurred = cv2.GaussianBlur(canvas, (3, 3), 0.4 if camera.look.wet < 0.5 else 0.7)
    return _bytes((blurred * _CORNERS + noise) / 255.0)


_V, _U = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
_CORNERS: Floats = (1.0 - 0.16 * (_U * _U + _V * _V) ** 1.5)[:, :, None].astype(np.float32)


def _bytes(values: Floats) -> Picture:
    return (values.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _disc(u: float, v: float, radius: float) -> Floats:
    columns = np.exp(-(((np.arange(WIDTH, dtype=np.float32) - u) / radius) ** 2))
    rows = np.exp(-(((np.arange(HEIGHT, dtype=np.float32) - v) / radius) ** 2))
    disc: Floats = rows[:, None] * columns
    return disc
