"""Clips with sound → data/tables/video/table.csv, a row per clip: what is in it, any number of seven things.

    python jobs/video/make_table.py --output data/tables/video
    python jobs/video/make_table.py --folder CLIPS --output data/tables/video

With ``--folder`` it takes clips of yours: ``CLIPS/labels.csv`` with the columns ``clip`` (a file beside it) and ``tags`` (names
with semicolons between them; [] for none). Without, it makes clips of three seconds (H.264 and AAC in an MP4): a person walks, a
car drives, snow falls, and each of these can only be seen; somebody speaks, a siren wails, music plays, and each can only be
heard. A dog is seen in one half of the clips that have one and heard in the other. Every thing is there in three clips of ten,
whatever else is; there is a street with a tree, and a hum, in all of them.

A clip lies in the split that the hash of its name says: 20% test, 10% validation.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SEEN = ("car", "person", "snow")
HEARD = ("music", "siren", "speech")
BOTH = "dog"
CHANCE = 0.3
HEIGHT, WIDTH, RATE, SECONDS, SOUND_HZ = 64, 96, 8, 3, 16_000
NOTHING = "[]"
"""A clip that has none of the tags; one with an empty cell nobody has looked at."""
COLUMNS = ("key", "clip", "tags", "split")

Sound = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="clips of yours; unset: some are made")
    parser.add_argument("--output", type=Path, default=Path("data/tables/video"), help="folder for table.csv and clips")
    parser.add_argument("--clips", type=int, default=2400, help="how many are made")
    parser.add_argument("--seed", type=int, default=0, help="of what is made")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    (output / "clips").mkdir(parents=True, exist_ok=True)
    rows = read_clips(args.folder.resolve(), output) if args.folder else make_clips(args.clips, output, args.seed)
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split in ("train", "validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        tags = Counter(tag for row in of_split for tag in row["tags"].split(";") if tag not in ("", NOTHING))
        print(
            f"{split:10} {len(of_split):6,} clips: {', '.join(f'{count:,} {tag}' for tag, count in sorted(tags.items()))}"
        )
    print(output / "table.csv")


def read_clips(folder: Path, output: Path) -> list[dict[str, str]]:
    """The clips that a folder's labels.csv lists."""
    labels = folder / "labels.csv"
    if not labels.is_file():
        sys.exit(f"{folder}: expected {labels} with the columns clip and tags")
    with labels.open(newline="", encoding="utf-8-sig") as stream:
        given = list(csv.DictReader(stream))
    if not given or not {"clip", "tags"} <= given[0].keys():
        sys.exit(f"{labels}: expected the columns clip and tags, and at least one row")
    rows = []
    for number, row in enumerate(given, start=2):
        clip = folder / row["clip"]
        if not clip.is_file():
            sys.exit(f"{labels}, line {number}: there is no file {clip}")
        key = Path(row["clip"]).stem
        rows.append({"key": key, "clip": os.path.relpath(clip, output), "tags": row["tags"], "split": split_of(key)})
    return rows


def make_clips(count: int, output: Path, seed: int) -> list[dict[str, str]]:
    """Clips that are made; their files are written."""
    rows = []
    for number in range(count):
        # Each from a seed of its own: a shorter run makes the same clips.
        chance = random.Random(f"{seed} {number}")
        key = f"{number:06}"
        tags = {tag for tag in (*SEEN, *HEARD, BOTH) if chance.random() < CHANCE}
        shown = {tag for tag in tags if tag in SEEN}
        played = {tag for tag in tags if tag in HEARD}
        if BOTH in tags:
            (shown if chance.random() < 0.5 else played).add(BOTH)
        clip = output / "clips" / f"{key}.mp4"
        write_clip(clip, draw_frames(shown, chance), make_sound(played, chance))
        rows.append(
            {"key": key, "clip": f"clips/{key}.mp4", "tags": ";".join(sorted(tags)) or NOTHING, "split": split_of(key)}
        )
    return rows


def write_clip(path: Path, frames: list[Image.Image], sound: Sound) -> None:
    """H.264 and AAC in an MP4."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "26", "preset": "veryfast"})
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        video.thread_count = 1
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        for start in range(0, len(samples), 1024):
            part = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], "s16", "mono")
            part.sample_rate, part.pts, part.time_base = SOUND_HZ, start, Fraction(1, SOUND_HZ)
            container.mux(audio.encode(part))
        container.mux(audio.encode())


def draw_frames(shown: set[str], chance: random.Random) -> list[Image.Image]:
    """A street over time."""
    sky, ground = chance.randrange(120, 230), chance.randrange(60, 130)
    horizon, tree = chance.randrange(26, 36), chance.randrange(8, WIDTH - 8)
    colour = tuple(chance.randrange(40, 230) for _ in range(3))
    coat = tuple(chance.randrange(30, 220) for _ in range(3))
    speed, start = chance.choice((-1, 1)) * chance.uniform(1.5, 4), chance.uniform(10, WIDTH - 10)
    walk, at = chance.choice((-1, 1)) * chance.uniform(0.4, 1.2), chance.uniform(10, WIDTH - 10)
    trot, dog = chance.choice((-1, 1)) * chance.uniform(0.8, 2), chance.uniform(10, WIDTH - 10)
    flakes = [(chance.uniform(0, WIDTH), chance.uniform(0, HEIGHT), chance.uniform(1.5, 4)) for _ in range(40)]
    frames = []
    for time in range(RATE * SECONDS):
        picture = Image.new("RGB", (WIDTH, HEIGHT), (sky - 40, sky - 20, sky))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, horizon, WIDTH, HEIGHT), fill=(ground, ground, ground))
        draw.rectangle((tree - 1, horizon - 14, tree + 1, horizon), fill=(80, 55, 30))
        draw.ellipse((tree - 7, horizon - 24, tree + 7, horizon - 8), fill=(40, 110, 50))
        if "car" in shown:
            x, y = (start + speed * time) % (WIDTH + 30) - 15, horizon + 8
            draw.rectangle((x - 12, y, x + 12, y + 8), fill=colour)
            draw.rectangle((x - 7, y - 6, x + 6, y), fill=colour)
            for wheel in (-7, 7):
                draw.ellipse((x + wheel - 3, y + 6, x + wheel + 3, y + 12), fill=(15, 15, 15))
        if "person" in shown:
            x, y = (at + walk * time) % (WIDTH + 12) - 6, horizon + 6
            swing = 3 * np.sin(time * 1.3)
            draw.ellipse((x - 2.5, y - 4, x + 2.5, y + 1), fill=(224, 172, 105))
            draw.rectangle((x - 2, y + 1, x + 2, y + 11), fill=coat)
            for leg in (-1, 1):
                draw.line((x, y + 11, x + leg * swing, y + 19), fill=(25, 25, 40), width=2)
        if BOTH in shown:
            x, y = (dog + trot * time) % (WIDTH + 16) - 8, horizon + 22
            side = 1 if trot > 0 else -1
            draw.rectangle((x - 5, y - 2, x + 5, y + 2), fill=(120, 75, 35))
            draw.ellipse((x + side * 6 - 2.5, y - 5, x + side * 6 + 2.5, y), fill=(120, 75, 35))
            for leg in (-4, 4):
                draw.line((x + leg, y + 2, x + leg + 1.5 * np.sin(time * 2), y + 6), fill=(90, 55, 25), width=1)
        if "snow" in shown:
            for left, top, fall in flakes:
                y = (top + fall * time) % HEIGHT
                draw.ellipse((left - 1, y - 1, left + 1, y + 1), fill=(250, 250, 250))
        frames.append(picture)
    return frames


def make_sound(played: set[str], chance: random.Random) -> Sound:
    """What is to be heard, with a hum below it."""
    noise = np.random.default_rng(chance.randrange(1 << 32))
    time = np.arange(SOUND_HZ * SECONDS) / SOUND_HZ
    sound = 0.02 * np.sin(2 * np.pi * chance.uniform(80, 140) * time) + 0.01 * noise.standard_normal(len(time))
    if "siren" in played:
        middle, width, pace = chance.uniform(700, 1100), chance.uniform(200, 350), chance.uniform(0.4, 1.0)
        sweep = middle + width * np.sin(2 * np.pi * pace * time + chance.uniform(0, 6))
        sound += chance.uniform(0.1, 0.25) * np.sin(2 * np.pi * np.cumsum(sweep) / SOUND_HZ)
    if "music" in played:
        root = chance.choice((220.0, 247.0, 262.0, 294.0, 330.0))
        for beat in range(SECONDS * 2):
            tone = root * chance.choice((1.0, 1.25, 1.5, 2.0))
            sound += 0.15 * _burst(time, beat / 2, 0.45) * np.sin(2 * np.pi * tone * time)
    if "speech" in played:
        pitch = chance.uniform(90, 220)
        for syllable in range(SECONDS * 4):
            if chance.random() < 0.7:
                vowel = chance.choice((500.0, 700.0, 300.0))
                # A buzz, loudest near one of a few vowels' formants.
                buzz = sum(
                    np.sin(2 * np.pi * pitch * part * time) * np.exp(-(((pitch * part - vowel) / 250) ** 2))
                    for part in range(1, 12)
                )
                sound += 0.12 * _burst(time, syllable / 4, 0.18) * buzz
    if BOTH in played:
        for bark in sorted(chance.uniform(0, SECONDS - 0.3) for _ in range(chance.randrange(2, 5))):
            rough = noise.standard_normal(len(time)) * np.sin(2 * np.pi * 450 * time)
            sound += 0.3 * _burst(time, bark, 0.12) * rough
    return sound


def _burst(time: Sound, start: float, length: float) -> Sound:
    """Rises and falls within so many seconds, and is 0 elsewhere."""
    inside = (time - start) / length
    return np.where((inside > 0) & (inside < 1), np.sin(np.pi * np.clip(inside, 0, 1)), 0.0)


def split_of(name: str) -> str:
    """The split that a name belongs to, whatever else is in the table."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


if __name__ == "__main__":
    main()
