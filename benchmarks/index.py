"""Seconds per member: ``ray-mm index`` and Python's ``tarfile``, on the same tars, in turn.

    python benchmarks/index.py [--members 60000] [--repeats 5]

Goal: at least eight times as fast. Both walk the headers of tars that are in the page cache; the index is also written to disk
and ``tarfile`` only lists its members.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ray_mm.data.index import index_shard
from ray_mm.data.sidecar import index_path, write_index

_SUFFIXES = ("jpg", "json", "cls")
_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'tar':<8}{'tarfile':>12}{'ray_mm':>12}{'ratio':>8}   µs per member, median of {arguments.repeats} in turn"
        )
        for name, format in _FORMATS.items():
            tar = make_tar(Path(folder) / f"{name}.tar", arguments.members, format)
            theirs, ours = [], []
            for _ in range(arguments.repeats):
                theirs.append(seconds(lambda tar=tar: list_members(tar)))
                ours.append(seconds(lambda tar=tar: index(tar)))
            per_member = [1e6 * statistics.median(times) / arguments.members for times in (theirs, ours)]
            print(f"{name:<8}{per_member[0]:>12.2f}{per_member[1]:>12.2f}{per_member[0] / per_member[1]:>8.1f}")
            tar.unlink()


def make_tar(path: Path, num_members: int, format: int) -> Path:
    """Samples of three members; names as usual, and times with a fraction, which pax writes in a header of its own."""
    with tarfile.open(path, "w", format=format) as tar:
        for number in range(num_members):
            suffix = _SUFFIXES[number % len(_SUFFIXES)]
            info = tarfile.TarInfo(f"train/sample{number // len(_SUFFIXES):08d}.{suffix}")
            info.size = 4000 if suffix == "jpg" else 40
            info.mtime = 1_700_000_000.25 if format == tarfile.PAX_FORMAT else 1_700_000_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def list_members(tar: Path) -> None:
    with tarfile.open(tar) as opened:
        for _ in opened:
            pass


def index(tar: Path) -> None:
    write_index(index_path(tar), index_shard(tar))


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds, so that what else the machine does is left out."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
