"""What ``ray-mm doctor JOB`` foretells, and what the training then does.

    python benchmarks/doctor.py                       four generated jobs, each limited by something else
    python benchmarks/doctor.py --jobs JOB [JOB ...]  jobs of one's own; their outputs are left alone

In every round each job is examined and then trained, alternating, because machines are noisy; the training's speed is the
median over its lines of metrics, the first left out. A table on stdout: predicted and real samples per second (medians over
the rounds), the least and the greatest ratio of a round, and the limit that was named.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from ray_mm.demo.files import write_files
from ray_mm.demo.jobs import write_jobs

WITHIN = 0.25
"""How far a prediction may be off."""
_SETTLED_LINES = 2


def generated(folder: Path) -> list[Path]:
    """Job files over generated data: the demo's, dear pictures, many small vectors with a small and with a large model."""
    demo = folder / "demo"
    write_files(demo / "raw", 3_000)
    jobs = write_jobs(demo)
    _run(jobs["preprocess"])
    found = [jobs["train"]]
    pictures = _preprocessed(folder / "pictures", _pictures, "picture: {type: image}")
    found.append(
        _train_job(folder / "pictures.yaml", pictures, "{picture: {}}", 32, "picture: {height: 24, width: 32}", 8)
    )
    small = vectors(folder)
    found.append(_train_job(folder / "vectors.yaml", small, "{vector: {}}", 256, "", 4))
    found.append(_train_job(folder / "large.yaml", small, "{vector: {size: base}}", 256, "", 1, dim=2048))
    return found


def vectors(folder: Path) -> Path:
    """A dataset of 40,000 small vectors, made if it is not there."""
    return _preprocessed(folder / "vectors", _vectors, "vector: {type: vector}")


def _pictures(folder: Path, count: int = 600) -> str:
    """PNGs of 640×480, which must be unpacked whole however small they are wanted."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        shapes = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:06d}.png"), shapes)
        rows.append({"picture": f"{number:06d}.png", "label": "ab"[number % 2]})
    return _table(folder / "table.csv", rows)


def _vectors(folder: Path, count: int = 40_000) -> str:
    values = np.random.default_rng(0).standard_normal((count, 8)).round(4).tolist()
    return _table(folder / "table.csv", [{"vector": json.dumps(row), "label": "ab"[row[0] > 0]} for row in values])


def _table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def _preprocessed(folder: Path, make_table: Callable[[Path], str], field: str) -> Path:
    job, output = folder / "preprocess.yaml", folder / "dataset"
    if not (output / "train" / "dataset.json").exists():
        job.parent.mkdir(parents=True, exist_ok=True)
        job.write_text(
            f"kind: preprocess\nname: made\ntable: {make_table(folder)}\n"
            f"fields: {{{field}, label: {{type: label}}}}\n"
            f"splits: {{by: hash, fractions: {{train: 1.0}}}}\noutput: {output}\n"
        )
        _run(job)
    return output / "train"


def _train_job(path: Path, data: Path, inputs: str, batch_size: int, fields: str, epochs: int, dim: int = 16) -> Path:
    overrides = f", fields: {{{fields.replace('{', '{type: image, ')}}}" if fields else ""
    path.write_text(
        f"kind: train\nname: {path.stem}\ndata: {{train: {data}, batch_size: {batch_size}{overrides}}}\n"
        f"model: {{fields: {inputs}, fusion: {{method: gated, dim: {dim}}}, task: {{type: classify, label: label}}}}\n"
        f"train: {{epochs: {epochs}}}\noutput: {path.with_suffix('')}\n"
    )
    return path


def examined(job: Path, seconds: float) -> dict[str, Any]:
    """What doctor says of the training."""
    found: dict[str, Any] = json.loads(_ray_mm("doctor", str(job), "--json", "--seconds", str(seconds)))
    training: dict[str, Any] = found["training"]
    return training


def trained(job: Path) -> float:
    """Samples per second of a training into a folder of its own."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        _run(job, f"output={output}")
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        rates = [line["samples_per_s"] for line in lines if line["kind"] == "train"]
        return statistics.median(rates[_SETTLED_LINES:] or rates)


def _run(job: Path, *overrides: str) -> None:
    _ray_mm("run", str(job), *(part for override in overrides for part in ("--set", override)))


def _ray_mm(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "ray_mm", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ray-mm {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", nargs="+", type=Path, help="train jobs; unset: generated ones")
    parser.add_argument("--data", type=Path, default=Path("data/doctor"), help="folder for what is generated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="per stage")
    args = parser.parse_args()
    jobs = args.jobs or generated(args.data.absolute())
    figures: dict[Path, list[tuple[float, float, str]]] = {job: [] for job in jobs}
    for number in range(args.rounds):
        for job in jobs:
            said, did = examined(job, args.seconds), trained(job)
            figures[job].append((said["samples_per_s"], did, said["limit"]))
            print(
                f"round {number + 1}: {job.stem}: {said['samples_per_s']:.0f} said, {did:.0f} done; {said['sentence']}",
                file=sys.stderr,
            )
    print(
        "| job | limit named | predicted, samples/s | real, samples/s | ratio (least, most) |\n|---|---|---:|---:|---:|"
    )
    for job, found in figures.items():
        said, did = (statistics.median(each[place] for each in found) for place in (0, 1))
        ratios = sorted(each[0] / each[1] for each in found)
        named = Counter(each[2] for each in found).most_common(1)[0][0]
        far = "" if abs(said / did - 1) <= WITHIN else f" (more than {WITHIN:.0%} off)"
        print(
            f"| {job.stem} | {named} | {said:,.0f} | {did:,.0f} | {said / did:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}){far} |"
        )


if __name__ == "__main__":
    main()
