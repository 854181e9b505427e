"""Radar recordings of people who move → data/tables/radhar/table.csv, a row per two seconds.

    python jobs/radhar/make_table.py --data FOLDER --output data/tables/radhar

FOLDER holds the unpacked archive: ``radhar_test/Data/Test/<activity>/*.txt``, 30 recordings of five activities (RadHAR, Singh et
al. 2019), as the radar's ROS messages in text. Each window of two seconds becomes

    points/<key>.npy   float32 [points, 6]: x, y, z in metres, velocity in m/s, intensity in dB, seconds since the window's start
    motion/<key>.npy   float32 [frames, 8]: of each frame the number of points, and of their x, y, z, velocity the mean, of y, z,
                       velocity the standard deviation; 30 frames a second, about

Windows begin every half second, so neighbours share three quarters of what they show. A recording lies in one split as a whole:
of the six of each activity, in the order of their names, the second and the fifth are the test, the third validates.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

WINDOW_S, STEP_S = 2.0, 0.5
SPLITS = ("train", "test", "validation", "train", "test", "train")
COLUMNS = ("key", "points", "motion", "activity", "recording", "split")
CHANNELS = ("x", "y", "z", "velocity", "intensity")

FloatArray = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with radhar_test/")
    parser.add_argument(
        "--output", type=Path, default=Path("data/tables/radhar"), help="folder for table.csv and arrays"
    )
    args = parser.parse_args()
    output: Path = args.output
    for folder in ("points", "motion"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for activity, recordings in find_recordings(args.data / "radhar_test" / "Data" / "Test").items():
        for number, path in enumerate(recordings):
            points, frames = read_recording(path)
            for start in np.arange(0.0, points[-1, -1] - WINDOW_S, STEP_S).tolist():
                key = f"{activity}-{number}-{round(start * 1000):06}"
                window, motion = cut(points, frames, start)
                if len(motion) == 0:
                    # The radar paused: nothing to tell.
                    continue
                np.save(output / "points" / f"{key}.npy", window)
                np.save(output / "motion" / f"{key}.npy", motion)
                files = {"points": f"points/{key}.npy", "motion": f"motion/{key}.npy"}
                of = {"activity": activity, "recording": path.stem, "split": SPLITS[number % len(SPLITS)]}
                rows.append({"key": key, **files, **of})
    with (output / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for split, count in Counter(row["split"] for row in rows).items():
        recordings_of = {row["recording"] + row["activity"] for row in rows if row["split"] == split}
        print(f"{split:10} {count:6,} windows of {len(recordings_of)} recordings")
    print(output / "table.csv")


def find_recordings(folder: Path) -> dict[str, list[Path]]:
    """Activity → its recordings, in the order of their names."""
    found = {path.name: sorted(path.glob("*.txt")) for path in sorted(folder.glob("*")) if path.is_dir()}
    if not found:
        sys.exit(f"{folder}: has no recordings; unpack radhar.tar.gz into the folder that --data names")
    return found


def read_recording(path: Path) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """One recording.

    Returns:
        float64 [points, 6], in the order of time, the last column in seconds since the first point; int64 [points], the number of
        each point's frame. A frame begins with point 0.
    """
    values: dict[str, list[float]] = {name: [] for name in (*CHANNELS, "secs", "nsecs", "point_id")}
    with path.open() as stream:
        for line in stream:
            name, _, value = line.strip().partition(": ")
            if value and name in values:
                values[name].append(float(value))
    counts = {name: len(found) for name, found in values.items()}
    if len(set(counts.values())) > 1:
        sys.exit(f"{path}: its messages are not complete, {counts}")
    # Whole seconds and nanoseconds apart: a double of both together is right to a quarter of a microsecond only.
    seconds = np.array(values["secs"]) - values["secs"][0] + (np.array(values["nsecs"]) - values["nsecs"][0]) * 1e-9
    points = np.stack([np.array(values[name]) for name in CHANNELS] + [seconds], axis=1)
    return points, np.cumsum(np.array(values["point_id"]) == 0)


def cut(
    points: FloatArray, frames: npt.NDArray[np.int64], start: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a window shows: its points, float32 [points, 6], and how they move, float32 [frames, 8]."""
    chosen = (points[:, -1] >= start) & (points[:, -1] < start + WINDOW_S)
    window = points[chosen].copy()
    window[:, -1] -= start
    motion = []
    for frame in np.unique(frames[chosen]).tolist():
        of_frame = window[frames[chosen] == frame]
        mean, std = of_frame[:, :4].mean(axis=0), of_frame[:, 1:4].std(axis=0)
        motion.append([len(of_frame), *mean, *std])
    return window.astype(np.float32), np.array(motion, np.float32).reshape(-1, 8)


if __name__ == "__main__":
    main()
