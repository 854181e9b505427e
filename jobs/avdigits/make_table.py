"""Spoken and handwritten digits → data/tables/avdigits/table.csv, a row per pair of a recording and a picture of the same digit.

    python jobs/avdigits/make_table.py --data FOLDER --output data/tables/avdigits

FOLDER holds the unpacked archives: ``fsdd/recordings`` (Free Spoken Digit Dataset) and ``mnist_png`` (the 10,000 pictures
of MNIST's test set, as PNG). The splits follow the recordings, whose own test split is index 0–4:

    test         index 0–4     300 recordings, each with 4 pictures
    validation   index 5–9     300 recordings, each with 2 pictures
    train        index 10–49   2,400 recordings; every picture that is left, once, so 2 to 4 per recording

A picture occurs once in the whole table, so no split has seen another's. Four pictures for each test recording, because
one alone makes the result depend on which picture it happened to get. The pairs depend on ``--seed`` alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

PICTURES_PER_RECORDING = {"test": 4, "validation": 2}
COLUMNS = ("key", "image", "audio", "digit", "speaker", "split")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with fsdd/ and mnist_png/")
    parser.add_argument("--output", type=Path, default=Path("data/tables/avdigits"), help="folder for table.csv")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    args = parser.parse_args()
    data, output = args.data.resolve(), args.output.resolve()
    rows = make_rows(find_recordings(data / "fsdd" / "recordings"), find_pictures(data / "mnist_png"), args.seed)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for row in rows:
            # Relative, so that table and files can be moved together.
            writer.writerow(row | {field: os.path.relpath(row[field], output) for field in ("image", "audio")})
    counts = Counter(row["split"] for row in rows)
    for split in ("train", "validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        print(f"{split:10} {counts[split]:6,} pairs, {len({row['audio'] for row in of_split}):5,} recordings")
    print(output / "table.csv")


def find_recordings(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """(split, digit) → its recordings, in the order of their names."""
    recordings: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_[a-z]+_(\d+)", path.stem)
        if match is None:
            sys.exit(f"{path}: expected a name such as 7_jackson_32.wav")
        index = int(match[2])
        split = "test" if index < 5 else "validation" if index < 10 else "train"
        recordings[split, match[1]].append(path)
    if not recordings:
        sys.exit(f"{folder}: has no recordings; unpack fsdd.tar.gz into the folder that --data names")
    return recordings


def find_pictures(folder: Path) -> dict[str, list[Path]]:
    """Digit → its pictures, in the order of the list that comes with them."""
    listing = folder / "mnist_10k_test_images.csv"
    if not listing.is_file():
        sys.exit(f"{listing}: no such file; unpack mnist_test.tar.gz into the folder that --data names")
    pictures: dict[str, list[Path]] = defaultdict(list)
    with listing.open(newline="") as stream:
        for row in csv.DictReader(stream):
            pictures[row["target"]].append(folder / row["file"])
    return pictures


def make_rows(
    recordings: dict[tuple[str, str], list[Path]], pictures: dict[str, list[Path]], seed: int
) -> list[dict[str, str]]:
    """Pairs of the same digit; see the module's docstring for the rule."""
    rows = []
    rng = np.random.default_rng(seed)
    for digit in sorted(pictures):
        left = [pictures[digit][place] for place in rng.permutation(len(pictures[digit]))]
        for split in ("test", "validation", "train"):
            of_split = recordings[split, digit]
            wanted = PICTURES_PER_RECORDING.get(split, 0) * len(of_split) or len(left)
            used, left = left[:wanted], left[wanted:]
            order = rng.permutation(len(of_split))
            for number, picture in enumerate(used):
                recording = of_split[order[number % len(of_split)]]
                rows.append(
                    {
                        "key": f"{recording.stem}-{picture.stem}",
                        "image": str(picture),
                        "audio": str(recording),
                        "digit": digit,
                        "speaker": recording.stem.split("_")[1],
                        "split": split,
                    }
                )
    return rows


if __name__ == "__main__":
    main()
