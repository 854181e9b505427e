"""Seconds to the first batch: at the start of an epoch and at 90 % of it, with new and with warm worker processes.

    python benchmarks/resume.py

Reads the samples of ``ingest.py`` and makes them if they are not there. Ray is running; WebDataset resumes by skipping, as
its users do: it has no other way. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import ingest

_OURS = """
import json, sys, time
from pathlib import Path
import argparse, ours, ray
from ray_mm.session import ray_session
args = argparse.Namespace(data=sys.argv[1])
found = {}
with ray_session():
    for name, share in (("new", 0.0), ("warm", 0.0), ("warm, 90 %", 0.9), ("warm again", 0.0), ("warm, 90 % again", 0.9)):
        started = time.perf_counter()
        batches = iter(ours.make_loader(args, Path(sys.argv[2]), share))
        next(batches)
        found[name] = time.perf_counter() - started
        del batches
        time.sleep(5)  # what was read ahead is still being decoded
print(json.dumps(found))
"""
_WEBDATASET = """
import argparse, itertools, json, sys, time
import wds, common
args = argparse.Namespace(data=sys.argv[1])
found = {}
for name, skipped in (("start", 0), ("90 %", int(sys.argv[2]))):
    started = time.perf_counter()
    next(itertools.islice(iter(wds.make_loader(args, common.decode_jpeg)), skipped, None))
    found[name] = time.perf_counter() - started
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ingest"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = args.data.absolute()
    ingest.make_samples(data, ingest.SAMPLES)
    skipped = str(int(0.9 * ingest.SAMPLES / 64))
    figures: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, code, argument in (("ray_mm", _OURS, str(data / "quarantine")), ("WebDataset", _WEBDATASET, skipped)):
            for case, seconds in _run(code, str(data), argument).items():
                figures.setdefault(f"{name}: {case.removesuffix(' again')}", []).append(seconds)
    print("| first batch | seconds (median) | least | most |\n|---|---:|---:|---:|")
    for name, seconds in figures.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")


def _run(code: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ingest.LOADERS,
        env=ingest.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = ingest.json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
