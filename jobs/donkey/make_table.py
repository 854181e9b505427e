"""A model car's drives → data/tables/donkey/table.csv, a row per moment: what the camera saw, what was steered before and now.

    python jobs/donkey/make_table.py --data FOLDER --output data/tables/donkey

FOLDER holds the unpacked archive: ``donkey_yuki_mit/data`` with its catalogs, 18,116 records at 20 a second. A row has

    camera               the picture, or nothing: 1,260 records lack theirs, and stay in
    history/<key>.npy    float32 [steps, 2]: steering angle and throttle of the second before, 20 steps at the most, the present
                         left out; nothing where a drive has just begun
    angle                what the model is to predict: the steering, from −1 (left) to 1 (right)

The records of one drive follow each other; a new one begins where a number is left out or more than a second has passed. A drive
lies in one split as a whole: of every five, in the order of time, the third is the test and the fifth validates.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

HISTORY = 20
PAUSE_MS = 1000
SPLITS = ("train", "train", "test", "train", "validation")
COLUMNS = ("key", "camera", "history", "angle", "drive", "split")

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with donkey_yuki_mit/")
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/donkey"), help="folder for table.csv and arrays"
    )
    args = parser.parse_args()
    source, output = args.data.resolve() / "donkey_yuki_mit" / "data", args.output.resolve()
    (output / "history").mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for number, drive in enumerate(find_drives(source))
        for row in rows_of(drive, number, source / "images", output)
    ]
    with (output / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    by_split: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_split[row["split"]].append(row)
    for split in ("train", "validation", "test"):
        of_split = by_split[split]
        without = sum(not row["camera"] for row in of_split)
        drives = len({row["drive"] for row in of_split})
        print(f"{split:10} {len(of_split):6,} records of {drives} drives, {without:,} without a picture")
    mean = statistics.mean(float(row["angle"]) for row in by_split["train"])
    print(f"mean absolute error in the test of what needs no model: {baselines(by_split['test'], mean)}")
    print(output / "table.csv")


def find_drives(folder: Path) -> list[list[Record]]:
    """The records, drive by drive, each in the order of time."""
    paths = sorted(folder.glob("catalog_*.catalog"))
    if not paths:
        sys.exit(f"{folder}: has no catalogs; unpack donkey.tar.gz into the folder that --data names")
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    records.sort(key=lambda record: int(record["_index"]))
    drives = [records[:1]]
    for before, record in itertools.pairwise(records):
        follows = record["_index"] == before["_index"] + 1
        if not follows or record["_timestamp_ms"] - before["_timestamp_ms"] > PAUSE_MS:
            drives.append([])
        drives[-1].append(record)
    return drives


def rows_of(drive: list[Record], number: int, pictures: Path, output: Path) -> list[dict[str, str]]:
    """The rows of one drive; writes their histories."""
    steered = np.array([[record["user/angle"], record["user/throttle"]] for record in drive], np.float32)
    rows = []
    for place, record in enumerate(drive):
        key, picture = f"{record['_index']:05}", pictures / record["cam/image_array"]
        row = {"key": key, "camera": "", "history": "", "drive": str(number), "split": SPLITS[number % len(SPLITS)]}
        if picture.is_file():
            # Relative, so that table and files can be moved together.
            row["camera"] = os.path.relpath(picture, output)
        if place:
            row["history"] = f"history/{key}.npy"
            np.save(output / row["history"], steered[max(0, place - HISTORY) : place])
        rows.append(row | {"angle": f"{record['user/angle']:.6f}"})
    return rows


def baselines(test: list[dict[str, str]], mean: float) -> dict[str, float]:
    """Mean absolute errors of always saying the mean of the training, and of saying what was steered just before."""
    angles = [float(row["angle"]) for row in test]
    before = [mean if not row["history"] else angles[place - 1] for place, row in enumerate(test)]
    return {
        "mean": round(statistics.mean(abs(angle - mean) for angle in angles), 4),
        "the angle before": round(
            statistics.mean(abs(angle - last) for angle, last in zip(angles, before, strict=True)), 4
        ),
    }


if __name__ == "__main__":
    main()
