"""Pictures with notes → data/tables/classic/table.csv, a row per thing: its picture, its note, which of ten kinds it is.

    python jobs/classic/make_table.py --output data/tables/classic

The data are drawn, for the textbook's model of a picture and a text: 224×224 pixels, 60 to 100 words, ten classes. The picture
shows one of five shapes somewhere among others' outlines; the note says in passing whether it is new or used. A class is both
together, so that the picture alone is right in half of all cases and the note alone in a fifth.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 224
SHAPES = ("circle", "square", "triangle", "cross", "ring")
STATES = {
    "new": ("unopened", "sealed", "mint", "untouched", "unworn"),
    "used": ("scratched", "worn", "repaired", "faded", "dented"),
}
SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
COLUMNS = ("key", "picture", "note", "kind", "split")
_WORDS = """
    the a this that item thing piece shelf box corner room table window door seen found stood lay came went with from near under
    over behind before after morning evening monday friday someone nobody everybody said wrote asked told price list number page
    hall street house garden kitchen cellar blue grey light dark small large heavy round plain simple
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/classic"), help="folder for table.csv and pictures"
    )
    parser.add_argument("--things", type=int, default=3000, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = parser.parse_args()
    output: Path = args.output
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    chance = random.Random(args.seed)
    known, rows = _WORDS.split(), []
    for number in range(args.things):
        shape, state = chance.choice(SHAPES), chance.choice(list(STATES))
        key = f"{number:06}"
        draw_thing(shape, chance).save(output / "pictures" / f"{key}.jpg", quality=90)
        words = [chance.choice(known) for _ in range(chance.randrange(60, 101))]
        words[chance.randrange(len(words))] = chance.choice(STATES[state])
        (split,) = chance.choices(list(SPLITS), list(SPLITS.values()))
        row = {"key": key, "picture": f"pictures/{key}.jpg", "note": " ".join(words), "split": split}
        rows.append(row | {"kind": f"{state} {shape}"})
    with (output / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split, count in Counter(row["split"] for row in rows).items():
        print(f"{split:10} {count:6,} things of {len({row['kind'] for row in rows if row['split'] == split})} kinds")
    print(output / "table.csv")


def draw_thing(shape: str, chance: random.Random) -> Image.Image:
    """A filled shape somewhere, among outlines of others."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(chance.randrange(150, 256) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y, size = chance.randrange(SIDE), chance.randrange(SIDE), chance.randrange(10, 40)
        draw.ellipse((x, y, x + size, y + size), outline=tuple(chance.randrange(256) for _ in range(3)))
    size = chance.randrange(50, 110)
    left, top = (chance.randrange(SIDE - size) for _ in range(2))
    right, bottom, middle = left + size, top + size, size // 3
    colour = tuple(chance.randrange(120) for _ in range(3))
    match shape:
        case "circle":
            draw.ellipse((left, top, right, bottom), fill=colour)
        case "square":
            draw.rectangle((left, top, right, bottom), fill=colour)
        case "triangle":
            draw.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=colour)
        case "cross":
            draw.rectangle((left + middle, top, right - middle, bottom), fill=colour)
            draw.rectangle((left, top + middle, right, bottom - middle), fill=colour)
        case _:
            draw.ellipse((left, top, right, bottom), outline=colour, width=size // 5)
    return picture


if __name__ == "__main__":
    main()
