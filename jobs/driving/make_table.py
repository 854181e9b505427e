"""Moments of drives, drawn → data/tables/driving/table.csv, a row per moment: camera, radar, signals, and what is to be learned.

    python jobs/driving/make_table.py --output data/tables/driving

All of a row is drawn from one scene, so that its geometry agrees: a bend, things on the ground, a camera with its calibration.
Metres: x forwards, y to the left, z upwards, from the ground below the camera. A point lies in the picture at

    column = centre − focal · y / x          row = horizon + focal · (height − z) / x

    camera       picture 96×64; a third of the drives is in fog and a third at night, and then far things can't be seen
    calibration  focal length and centre in pixels, row of the horizon, height in metres: of the car's own camera
    radar        points [N, 4]: x, y, relative speed in m/s, strength; it sees through fog, and knows no classes
    signals      2 s at 20 Hz [40, 3]: speed in m/s, yaw rate in rad/s, steering wheel in degrees
    mask         of the camera, a class per pixel; 255: the car's own bonnet
    ground       from above, 32×32 cells: rows along x from 4 to 40 m, columns along y from −12 to 12 m; 255: beside the picture
    steering     degrees of the wheel that are right now: along the bend, and around what stands in the lane

A drive lies in one split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

COLUMNS = (
    *("key", "drive", "weather", "camera", "radar", "signals", "mask", "ground", "steering", "split"),
    *("focal", "centre", "horizon", "height"),
)
MASK_CLASSES = ("background", "road", "car", "person", "obstacle")
GROUND_CLASSES = ("free", "car", "person", "obstacle")
UNLABELLED = 255
HEIGHT, WIDTH = 64, 96
CELLS = 32
NEAR_M, FAR_M, SIDE_M = 4.0, 40.0, 12.0
LANE_M = 3.5
"""Of two lanes we drive in the right one."""
MOMENTS = 8
"""Of a drive."""
SIGHT_M = {"clear": 400.0, "fog": 4.0, "night": 4.5}
"""After so many metres a third of the light is left."""

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Kind:
    """What can stand somewhere: its class in the mask, width, length and height in metres, colours."""

    name: str
    width: float
    length: float
    height: float
    colours: tuple[tuple[int, int, int], ...]


# Of each pair that a radar can't tell apart, one is an obstacle.
KINDS = (
    Kind("car", 1.9, 4.2, 1.5, ((200, 40, 40), (40, 70, 190), (220, 220, 225), (35, 35, 40))),
    Kind("obstacle", 1.9, 4.2, 1.5, ((45, 120, 40), (70, 140, 60))),  # a bush
    Kind("person", 0.7, 0.7, 1.75, ((210, 120, 40), (130, 60, 150), (60, 150, 190))),
    Kind("obstacle", 0.7, 0.7, 1.75, ((150, 150, 145), (190, 190, 180))),  # a post
)


@dataclass(frozen=True)
class Thing:
    """Something on the ground: its near side in the middle lies at x, y; it moves at ``speed`` m/s along x."""

    kind: Kind
    x: float
    y: float
    speed: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Moment:
    """One row's truth: ``bend`` in 1/m, to the left where it is positive; ``calibration``: focal, centre, horizon, height."""

    weather: str
    bend: float
    speed: float
    things: tuple[Thing, ...]
    calibration: tuple[float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/driving"), help="folder for table.csv and files"
    )
    parser.add_argument("--drives", type=int, default=300, help=f"each of {MOMENTS} moments")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    for name in ("camera", "radar", "signals", "mask", "ground"):
        (output / name).mkdir(parents=True, exist_ok=True)
    rows = [row for drive in range(args.drives) for row in write_drive(output, args.seed, drive)]
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split, count in sorted(Counter(row["split"] for row in rows).items()):
        print(f"{split:10} {count:6,} moments")
    print(output / "table.csv")


def write_drive(output: Path, seed: int, drive: int) -> list[dict[str, str]]:
    """Writes the files of a drive and returns its rows."""
    random = np.random.default_rng([seed, drive])
    weather = str(random.choice(list(SIGHT_M)))
    calibration = (
        float(random.uniform(64, 76)),
        WIDTH / 2,
        float(random.uniform(21, 27)),
        float(random.uniform(1.2, 1.6)),
    )
    rows = []
    for number in range(MOMENTS):
        key = f"d{drive:04}-{number}"
        moment = draw_moment(weather, calibration, random)
        picture, mask = render(moment, random)
        row = {
            "key": key,
            "drive": f"d{drive:04}",
            "weather": weather,
            "split": split_of(f"d{drive:04}"),
            **{name: f"{value:.4f}" for name, value in zip(COLUMNS[-4:], calibration, strict=True)},
            "steering": f"{steering(moment):.3f}",
        }
        files = {
            "camera": (Image.fromarray(picture), "png"),
            "mask": (Image.fromarray(mask), "png"),
            "radar": (radar(moment, random).astype(np.float32), "npy"),
            "signals": (signals(moment, random).astype(np.float32), "npy"),
            "ground": (ground(moment), "npy"),
        }
        for name, (content, extension) in files.items():
            row[name] = f"{name}/{key}.{extension}"
            if isinstance(content, Image.Image):
                content.save(output / row[name])
            else:
                np.save(output / row[name], content)
        # A sensor fails now and then.
        for name in ("camera", "radar"):
            if random.random() < 0.05 and row["camera"]:
                row[name] = ""
        rows.append(row)
    return rows


def draw_moment(weather: str, calibration: tuple[float, float, float, float], random: np.random.Generator) -> Moment:
    """What happens; of the things none stands in another."""
    bend = float(random.normal(0, 0.006))
    things: list[Thing] = []
    for _ in range(int(random.integers(2, 7))):
        kind = KINDS[int(random.integers(len(KINDS)))]
        x = float(random.uniform(NEAR_M + 2, FAR_M - 5))
        lane = random.choice((-LANE_M / 2 - LANE_M, 0.0, LANE_M, LANE_M + 3.2))
        y = middle(bend, x) + float(lane + random.uniform(-0.5, 0.5))
        apart = all(
            abs(x - other.x) > 6 or abs(y - other.y) > (kind.width + other.kind.width) / 2 + 0.3 for other in things
        )
        if apart and abs(y) < SIDE_M - 1:
            moving = kind.name in ("car", "person") and random.random() < 0.5
            speed = float(random.uniform(2, 14) if kind.name == "car" else random.uniform(-1.5, 1.5)) if moving else 0.0
            things.append(Thing(kind, x, y, speed, kind.colours[int(random.integers(len(kind.colours)))]))
    return Moment(weather, bend, float(random.uniform(5, 15)), tuple(things), calibration)


def middle(bend: float, x: float | Array) -> float | Array:
    """Where the middle of our lane lies, y in metres."""
    return 0.5 * bend * x**2


def render(moment: Moment, random: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The picture, RGB, and its mask."""
    focal, centre, horizon, height = moment.calibration
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    below = np.maximum(row - horizon, 1e-3)
    depth: Array = np.where(row > horizon, focal * height / below, 1e3)
    side = (centre - column) * depth / focal - middle(moment.bend, depth)
    # Our lane is the right one of two.
    is_road = (row > horizon) & (side > -LANE_M / 2 - 1) & (side < LANE_M / 2 + LANE_M + 1) & (depth < 80)
    colour = np.where(
        is_road[..., None], (95, 95, 98), np.where((row > horizon)[..., None], (96, 122, 66), (150, 180, 220))
    )
    line = is_road & (np.abs(side - LANE_M / 2) < 0.12 + 0.01 * depth) & (np.mod(depth, 6) < 3.5)
    colour = np.where(line[..., None], (225, 225, 215), colour).astype(np.float64)
    mask = np.where(is_road, MASK_CLASSES.index("road"), 0).astype(np.uint8)
    for thing in sorted(moment.things, key=lambda thing: -thing.x):
        box, inside = _seen(thing, moment, row, column)
        shade = _paint(thing, row, column, box, random)
        colour[inside], mask[inside], depth[inside] = shade[inside], MASK_CLASSES.index(thing.kind.name), thing.x
    colour *= 1 + 0.06 * random.standard_normal((HEIGHT, WIDTH, 1))
    seen = np.exp(-depth / SIGHT_M[moment.weather])[..., None]
    if moment.weather == "fog":
        colour = colour * seen + np.array((196, 198, 200)) * (1 - seen)
    elif moment.weather == "night":
        colour = colour * seen * 0.9 + np.array((8, 9, 16))
    colour += random.normal(0, 7, colour.shape)
    mask[-2:] = UNLABELLED
    colour[-2:] = (30, 30, 34)
    return np.clip(colour, 0, 255).astype(np.uint8), mask


def _seen(thing: Thing, moment: Moment, row: Array, column: Array) -> tuple[Box, npt.NDArray[np.bool_]]:
    """The side of a thing that is turned to us: left, top, right, bottom in pixels, and which pixels it covers."""
    focal, centre, horizon, height = moment.calibration
    half = thing.kind.width / 2
    left, right = (centre - focal * (thing.y + edge) / thing.x for edge in (half, -half))
    top, bottom = (horizon + focal * (height - z) / thing.x for z in (thing.kind.height, 0.0))
    inside = (column > left) & (column < right) & (row > top) & (row < bottom)
    return (left, top, right, bottom), inside


def _paint(thing: Thing, row: Array, column: Array, box: Box, random: np.random.Generator) -> Array:
    left, top, right, bottom = box
    across, down = (column - left) / (right - left), (row - top) / (bottom - top)
    shade = np.broadcast_to(np.array(thing.colour, np.float64), (*row.shape, 3)).copy()
    if thing.kind.name == "car":
        shade[(down < 0.4) & (down > 0.08) & (np.abs(across - 0.5) < 0.38)] = (40, 50, 62)
        shade[(down > 0.5) & (down < 0.68) & (np.abs(across - 0.5) > 0.36)] = (235, 40, 30)
        shade[down > 0.85] = (22, 22, 22)
    elif thing.kind.name == "person":
        shade[down < 0.2] = (224, 180, 150)
        shade[down > 0.6] = (45, 50, 80)
    else:
        shade *= 1 + 0.25 * random.standard_normal((*row.shape, 1))
    return shade


def radar(moment: Moment, random: np.random.Generator) -> Array:
    """Points [N, 4] of the near sides of things, and some of nothing at all."""
    points = []
    for thing in moment.things:
        count = int(random.integers(5, 9)) if thing.kind.width > 1 else int(random.integers(3, 6))
        y = thing.y + random.uniform(-0.5, 0.5, count) * thing.kind.width
        x = thing.x + random.exponential(0.3, count).clip(0, thing.kind.length)
        speed = np.full(count, thing.speed - moment.speed)
        points.append(np.stack([x, y, speed, random.normal(0, 1, count)], axis=1))
    count = int(random.integers(1, 6))
    nothing = [
        random.uniform(NEAR_M, FAR_M, count),
        random.uniform(-SIDE_M, SIDE_M, count),
        np.full(count, -moment.speed),
    ]
    points.append(np.stack([*nothing, random.normal(-1, 1, count)], axis=1))
    found = np.concatenate(points)
    found[:, :3] += random.normal(0, (0.15, 0.12, 0.1), (len(found), 3))
    return random.permutation(found)


def signals(moment: Moment, random: np.random.Generator) -> Array:
    """Two seconds that lead here, [40, 3]: speed, yaw rate, wheel. The bend began a while ago."""
    time = np.linspace(-2, 0, 40)
    speed = moment.speed + random.normal(0, 0.6) * time + random.normal(0, 0.05, 40)
    bend = moment.bend * np.clip((time + random.uniform(0.6, 1.8)) / 0.8, 0, 1)
    wheel = _wheel(bend) + random.normal(0, 0.6, 40)
    return np.stack([speed, speed * bend + random.normal(0, 0.006, 40), wheel], axis=1)


def _wheel(bend: float | Array) -> float | Array:
    """Degrees of the wheel along a bend: a wheelbase of 2.7 m, 15 degrees of the wheel for one of the tyres."""
    return 15 * np.degrees(np.arctan(2.7 * bend))


def steering(moment: Moment) -> float:
    """Along the bend; around what stands in the lane, the earlier the faster we are, to the side with more room."""
    angle = float(_wheel(moment.bend))
    ahead = [
        thing
        for thing in moment.things
        if abs(thing.y - middle(moment.bend, thing.x)) < 1.6 and thing.x < 8 + 1.2 * (moment.speed - thing.speed)
    ]
    if not ahead:
        return angle
    nearest = min(ahead, key=lambda thing: thing.x)
    # A person is given more room than a bush.
    urgency = 60 / nearest.x * (1.5 if nearest.kind.name == "person" else 1.0)
    to_left = all(not 1.6 <= thing.y - middle(moment.bend, thing.x) < 5 or thing.x > 25 for thing in moment.things)
    return angle + (urgency if to_left else -urgency)


def ground(moment: Moment) -> npt.NDArray[np.uint8]:
    """What lies where, from above."""
    cells = np.zeros((CELLS, CELLS), np.uint8)
    x = NEAR_M + (np.arange(CELLS)[:, None] + 0.5) * (FAR_M - NEAR_M) / CELLS
    y = -SIDE_M + (np.arange(CELLS)[None, :] + 0.5) * 2 * SIDE_M / CELLS
    half = (FAR_M - NEAR_M) / CELLS / 2, SIDE_M / CELLS
    for thing in moment.things:
        deep = (x > thing.x - half[0]) & (x < thing.x + thing.kind.length + half[0] / 2)
        # Of a cell that is touched at all, a narrow thing has its own.
        wide = np.abs(y - thing.y) < max(thing.kind.width / 2, half[1])
        cells[deep & wide] = GROUND_CLASSES.index(thing.kind.name)
    focal, centre, *_ = moment.calibration
    cells[np.abs(y) > x * centre / focal] = UNLABELLED
    return cells


def split_of(drive: str) -> str:
    """The split of a drive, whatever else is in the table."""
    share = int.from_bytes(hashlib.sha256(drive.encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


if __name__ == "__main__":
    main()
