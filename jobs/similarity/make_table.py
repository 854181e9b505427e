"""Pictures with names → data/tables/similarity/table.csv, a row per pair: a picture, what it is called.

    tar -xzf emoji.tar.gz -C data/raw
    python jobs/similarity/make_table.py --data data/raw --output data/tables/similarity
    python jobs/similarity/make_table.py --output data/tables/similarity

With ``--data`` it takes emoji (Noto Emoji, 72×72) and their Unicode names: 1,644 pairs, and in training the skin tones
of hands and people as well, each with the tone in its name. Without, it draws pairs: one to three coloured shapes, and a sentence
that tells them and where they are.

A pair lies in the split that the hash of its name says: 25% test, 10% validation; the tones of an emoji lie where it does, and
outside of training there is none but itself.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

COLUMNS = ("key", "picture", "name", "group", "split")
TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium dark skin tone",
    "1f3ff": "dark skin tone",
}
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 147, 43),
    "yellow": (249, 202, 36),
    "green": (46, 174, 96),
    "blue": (41, 98, 216),
    "purple": (142, 68, 173),
    "pink": (253, 121, 168),
    "brown": (126, 81, 42),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "bar")
PLACES = {"left": 0.2, "middle": 0.5, "right": 0.8}
SIDE = 72


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with noto_emoji/ and emoji_names/; unset: pairs are drawn")
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/similarity"), help="folder for table.csv and pictures"
    )
    parser.add_argument("--pairs", type=int, default=6000, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    rows = read_emoji(args.data.resolve(), output) if args.data else draw_pairs(args.pairs, output, args.seed)
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split, count in sorted(Counter(row["split"] for row in rows).items()):
        print(f"{split:10} {count:6,} pairs")
    print(output / "table.csv")


def read_emoji(data: Path, output: Path) -> list[dict[str, str]]:
    """The emoji that have a picture and a name, in the order of their names."""
    names, pictures = data / "emoji_names" / "data-by-emoji.json", data / "noto_emoji" / "png" / "72"
    if not names.is_file() or not pictures.is_dir():
        sys.exit(f"{data}: expected {names} and {pictures}; unpack emoji.tar.gz there")
    rows = []
    for emoji, about in json.loads(names.read_text(encoding="utf-8")).items():
        # File names leave out U+FE0F, which only says that a character is to be drawn in colours.
        points = [f"{ord(letter):04x}" for letter in emoji if letter != "\ufe0f"]
        split = split_of(about["name"])
        row = {"name": about["name"], "group": about["group"], "split": split}
        picture = pictures / f"emoji_u{'_'.join(points)}.png"
        if not picture.is_file():
            continue
        rows.append(row | {"key": about["slug"], "picture": os.path.relpath(picture, output)})
        if split != "train":
            continue
        for tone, called in TONES.items():
            picture = pictures / f"emoji_u{'_'.join([points[0], tone, *points[1:]])}.png"
            if picture.is_file():
                key = f"{about['slug']}-{tone}"
                picture_path = os.path.relpath(picture, output)
                rows.append(row | {"name": f"{about['name']}, {called}", "key": key, "picture": picture_path})
    return sorted(rows, key=lambda row: row["key"])


def draw_pairs(count: int, output: Path, seed: int) -> list[dict[str, str]]:
    """Pairs that are drawn, no two with the same sentence; their pictures are written."""
    chance = random.Random(seed)
    (output / "pictures").mkdir(exist_ok=True)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        places = chance.sample(list(PLACES), chance.choice((1, 2, 3)))
        things = [(chance.choice(list(COLOURS)), chance.choice(SHAPES), place) for place in places]
        name = " and ".join(f"a {colour} {shape} {_where(place)}" for colour, shape, place in things)
        told = " and ".join(sorted(name.split(" and ")))
        if told in rows:
            continue
        key = f"{len(rows):06}"
        draw_things(things, chance).save(output / "pictures" / f"{key}.png")
        rows[told] = {
            "key": key,
            "picture": f"pictures/{key}.png",
            "name": name,
            "group": f"{len(things)} shapes",
            "split": split_of(told),
        }
    return list(rows.values())


def draw_things(things: list[tuple[str, str, str]], chance: random.Random) -> Image.Image:
    """Shapes on a grey ground, each in its place, of some size."""
    shade = chance.randrange(110, 190)
    picture = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
    draw = ImageDraw.Draw(picture)
    for colour, shape, place in things:
        size = chance.randrange(7, 11)
        x = PLACES[place] * SIDE + chance.uniform(-3, 3)
        y = chance.uniform(size + 2, SIDE - size - 2)
        draw_shape(draw, shape, x, y, size, COLOURS[colour])
    return picture


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float, fill: tuple[int, ...]) -> None:
    """One shape around a point."""
    box = (x - size, y - size, x + size, y + size)
    thick = max(3, round(size / 2.5))
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=thick)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "bar":
        draw.rectangle((x - size, y - size / 3, x + size, y + size / 3), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - size), (x + size, y + size), (x - size, y + size)], fill=fill)
    elif shape == "diamond":
        draw.polygon([(x, y - size), (x + size * 0.7, y), (x, y + size), (x - size * 0.7, y)], fill=fill)
    elif shape == "cross":
        draw.line((x - size, y - size, x + size, y + size), fill=fill, width=thick)
        draw.line((x - size, y + size, x + size, y - size), fill=fill, width=thick)
    else:
        corners = [(0.0, -1.0), (0.25, -0.3), (1.0, -0.3), (0.4, 0.15), (0.6, 0.9), (0.0, 0.45)]
        corners += [(-left, top) for left, top in reversed(corners[1:5])]
        draw.polygon([(x + size * left, y + size * top) for left, top in corners], fill=fill)


def split_of(name: str) -> str:
    """The split that a name belongs to, whatever else is in the table."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.25 else "validation" if share < 0.35 else "train"


def _where(place: str) -> str:
    return "in the middle" if place == "middle" else f"on the {place}"


if __name__ == "__main__":
    main()
