"""Pictures with texts → data/tables/sentiment/table.csv, a row per post: what was shown, what was written, the feeling.

    python jobs/sentiment/make_table.py --output data/tables/sentiment
    python jobs/sentiment/make_table.py --folder POSTS --output data/tables/sentiment

With ``--folder`` it takes posts of yours: ``POSTS/<feeling>/<name>.jpg`` (or .png, .webp) and ``POSTS/<feeling>/<name>.txt``, or
one of the two. Without, it draws posts that neither picture nor text explains alone: a face laughs, frowns or does neither, and
the text says whether it is meant so or ironically, which turns a laugh into bad and a frown into good feelings. Good feelings are
five times as frequent as bad ones; three texts in ten are missing, ironic ones as often as others.

A post lies in the split that the hash of its name says: 15% test, 10% validation.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FEELINGS = {"good": 5, "neutral": 2, "bad": 1}
"""Feeling → how often it is there, relative to the others."""

IRONIC, MISSING = 0.3, 0.3
SIDE = 48
COLUMNS = ("key", "picture", "text", "feeling", "split")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

_MEANT = ("honestly", "no joke", "from the heart", "truly", "i mean it", "believe me")
_IRONIC = ("yeah right", "as if", "oh sure", "of course not", "who would have thought", "surprise surprise")
_BODIES = (
    "what a day",
    "this is my street",
    "the train again",
    "my new haircut",
    "dinner at seven",
    "the whole team is here",
    "back at work",
    "they called me today",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="posts of yours; unset: some are drawn")
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/sentiment"), help="folder for table.csv and pictures"
    )
    parser.add_argument("--posts", type=int, default=8000, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    rows = read_posts(args.folder.resolve(), output) if args.folder else draw_posts(args.posts, output, args.seed)
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split in ("train", "validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        feelings = ", ".join(
            f"{count:,} {name}" for name, count in Counter(row["feeling"] for row in of_split).most_common()
        )
        print(
            f"{split:10} {len(of_split):6,} posts: {feelings}; {sum(not row['text'] for row in of_split):,} without a text"
        )
    print(output / "table.csv")


def read_posts(folder: Path, output: Path) -> list[dict[str, str]]:
    """The posts of a folder with one folder per feeling, in the order of their names."""
    rows = []
    for feeling in sorted(path for path in folder.glob("*") if path.is_dir()):
        for stem in sorted({path.stem for path in feeling.iterdir() if path.suffix.lower() in (*PICTURES, ".txt")}):
            pictures = [feeling / f"{stem}{suffix}" for suffix in PICTURES if (feeling / f"{stem}{suffix}").is_file()]
            written = feeling / f"{stem}.txt"
            key = f"{feeling.name}-{stem}"
            row = {"key": key, "feeling": feeling.name, "split": split_of(key)}
            # Relative, so that table and files can be moved together.
            row["picture"] = os.path.relpath(pictures[0], output) if pictures else ""
            row["text"] = " ".join(written.read_text(encoding="utf-8").split()) if written.is_file() else ""
            rows.append(row)
    if not rows:
        sys.exit(f"{folder}: has no posts; expected {folder}/<feeling>/<name>.jpg and <name>.txt")
    return rows


def draw_posts(count: int, output: Path, seed: int) -> list[dict[str, str]]:
    """Posts that are drawn; their pictures are written."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        key = f"{number:06}"
        (feeling,) = chance.choices(list(FEELINGS), list(FEELINGS.values()))
        ironic = chance.random() < IRONIC
        face = {"good": 1, "neutral": 0, "bad": -1}[feeling] * (-1 if ironic else 1)
        words = [chance.choice(_IRONIC if ironic else _MEANT), chance.choice(_BODIES)]
        chance.shuffle(words)
        text = "" if chance.random() < MISSING else ", ".join(words)
        picture = output / "pictures" / f"{key}.jpg"
        draw_face(face, chance).save(picture, quality=85)
        row = {"key": key, "picture": f"pictures/{key}.jpg", "text": text, "feeling": feeling, "split": split_of(key)}
        rows.append(row)
    return rows


def draw_face(mood: int, chance: random.Random) -> Image.Image:
    """A face in front of something: it laughs (1), frowns (−1), or neither (0)."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(chance.randrange(40, 216) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, size = chance.randrange(SIDE), chance.randrange(SIDE), chance.randrange(4, 12)
        draw.rectangle((x, y, x + size, y + size), fill=tuple(chance.randrange(256) for _ in range(3)))
    radius = chance.randrange(15, 22)
    x, y = (chance.randrange(radius, SIDE - radius) for _ in range(2))
    skin = chance.choice(((255, 219, 172), (224, 172, 105), (141, 85, 36), (198, 134, 66), (255, 205, 60)))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=skin, outline=(30, 20, 10))
    eye = max(2, radius // 7)
    for side in (-1, 1):
        place = (x + side * radius * 0.4, y - radius * 0.3)
        draw.ellipse((place[0] - eye, place[1] - eye, place[0] + eye, place[1] + eye), fill=(20, 20, 20))
    half, low, width = radius * 0.6, y + radius * 0.4, max(3, radius // 5)
    if mood == 0:
        draw.line((x - half, low, x + half, low), fill=(90, 20, 20), width=width)
    else:
        depth, start = radius * 0.4, 20 if mood > 0 else 200
        centre = low - mood * depth * 0.5
        draw.arc(
            (x - half, centre - depth, x + half, centre + depth), start, start + 140, fill=(90, 20, 20), width=width
        )
    return picture.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.5)))


def split_of(key: str) -> str:
    """The split that a name belongs to, whatever else is in the table."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.15 else "validation" if share < 0.25 else "train"


if __name__ == "__main__":
    main()
