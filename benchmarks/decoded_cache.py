"""How fast an epoch is once the one before has left its decoded samples on the disk.

    python benchmarks/decoded_cache.py --data data/ingest

The samples of benchmarks/ingest.py, in batches of 64, all shuffled, on two CPUs: ray_mm without the cache and with an empty one,
end to end through Ray; and the idea of FFCV without Ray or anything else around it, a memory map of decoded rows of one size that
two processes copy batches from, in random order. The files stay in memory, as they do on a machine that has enough of it.
An epoch counts from the last batch of the one before to its own last batch, the first one from the making of the loader, with
Ray running. Each contestant is a process of its own and runs once per round; figures are medians. Then what one process takes
for a sample, without Ray: to decode it, to read it from the cache, and to read it when it has to come from the disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ingest import environment, make_samples, replace_section

sys.path.insert(0, str(Path(__file__).parent / "loaders"))
from common import BATCH, SERIES, SIZE, WORKERS

EPOCHS = 4
ROW = np.dtype([("image", np.uint8, (SIZE, SIZE, 3)), ("caption", np.int32, 16), ("imu", np.float32, SERIES)])
COSTS = (
    "decoded",
    "decoded and kept",
    "from the cache, in memory",
    "from the cache, on the disk",
    "from the cache, on the disk, asked for 5 batches ahead",
    "of these, the CRC32C",
)
NAMES = {"none": "ray_mm, no cache", "decoded": "ray_mm, decoded cache", "rows": "rows in a memory map, no Ray"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/ingest"), help="folder of benchmarks/ingest.py's samples"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    parser.add_argument(
        "--one", choices=[*NAMES, "costs"], help="run this contestant here, and print its figures as JSON"
    )
    args = parser.parse_args()
    data = args.data.absolute()
    if args.one is not None:
        print(json.dumps(measure(args.one, data, args.samples)))
        return
    make_samples(data, args.samples)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for number in range(args.rounds):
        for name in (*NAMES,)[number % 3 :] + (*NAMES,)[: number % 3]:
            found[name].append(_run(name, data, args.samples))
            print(f"round {number + 1}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    taken = [_run("costs", data, args.samples) for _ in range(args.rounds)]
    section = (
        f"{table(found)}\n\n{costs_table({key: statistics.median(run[key] for run in taken) for key in taken[0]})}"
    )
    print(section)
    if args.docs is not None:
        args.docs.write_text(replace_section(args.docs.read_text(), "decoded", section))


def measure(name: str, data: Path, samples: int) -> dict[str, float]:
    """One run of a contestant, in this process."""
    if name == "rows":
        return rows(samples)
    return costs(data) if name == "costs" else epochs(data, name == "decoded")


def _run(name: str, data: Path, samples: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--data", str(data), "--samples", str(samples)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| samples/s | epoch 1, with the start | epoch 1, steady | epoch 2 | epochs 3 and 4 | of epoch 2, kept |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def median(name: str, key: str) -> str:
        values = [run[key] for run in found[name] if key in run]
        return f"{statistics.median(values):,.0f}" if values else "–"

    for name, title in NAMES.items():
        kept = [run["kept"] for run in found[name] if "kept" in run]
        cells = [median(name, key) for key in ("first", "steady", "second", "later")]
        lines.append(f"| {title} | {' | '.join(cells)} | {f'{statistics.median(kept):.0%}' if kept else '–'} |")
    return "\n".join(lines)


def costs_table(found: dict[str, float]) -> str:
    """What a sample takes, as Markdown."""
    lines = ["| a sample, one process | µs of CPU | µs |", "|---|---:|---:|"]
    lines += [f"| {name} | {found[f'{name}, cpu']:.0f} | {found[name]:.0f} |" for name in COSTS]
    return "\n".join(lines)


def costs(data: Path) -> dict[str, float]:
    """Microseconds of a sample."""
    import google_crc32c

    from ray_mm.config.cache import DecodedCache
    from ray_mm.data.epochs import Epochs
    from ray_mm.data.manifest import open_dataset
    from ray_mm.data.order import Shuffle
    from ray_mm.data.preprocessor import preprocessor_for
    from ray_mm.data.reader import BatchReader
    from ray_mm.data.row_cache import RowCache
    from ray_mm.data.samples import all_of

    dataset = open_dataset(data / "tars")
    samples, preprocessor = all_of(dataset), preprocessor_for(dataset, {}, ["image", "caption", "imu"])
    order = Epochs([dataset], samples, Shuffle(seed=0, digest=samples.digest, chunk_samples=256, window_chunks=64))
    batches = [order.places(start, start + BATCH) for start in range(0, order.num_samples - BATCH, BATCH)]
    folder = Path(tempfile.mkdtemp(prefix="decoded", dir=data))
    cache = DecodedCache(folder=str(folder), size=10**10)
    found: dict[str, float] = {}

    def read(name: str, cached: bool, ahead: int = 0) -> None:
        rows = RowCache(cache, [dataset], preprocessor) if cached else None
        reader = BatchReader([dataset], preprocessor, None, None, rows)
        found[name], found[f"{name}, cpu"] = _timed(lambda: _read_all(reader, batches, ahead), len(batches) * BATCH)

    try:
        for name, cached in zip(COSTS[:3], (False, True, True), strict=True):
            read(name, cached)
        for name, ahead in zip(COSTS[3:5], (0, 5), strict=True):
            for path in folder.rglob("content"):
                with path.open("r+b") as stream:
                    os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            read(name, cached=True, ahead=ahead)
    finally:
        shutil.rmtree(folder)
    row = np.random.default_rng(0).integers(0, 256, ROW.itemsize, np.uint8)
    found[COSTS[5]], found[f"{COSTS[5]}, cpu"] = _timed(
        lambda: [google_crc32c.extend(0, row) for _ in range(1000)], 1000
    )
    return found


def _read_all(reader: Any, batches: list[Any], ahead: int) -> None:
    for number, places in enumerate(batches):
        if ahead:
            for later in batches[: ahead + 1] if number == 0 else batches[number + ahead : number + ahead + 1]:
                reader.prefetch(later)
        reader.read(places, number * BATCH, BATCH)


def _timed(work: Callable[[], Any], count: int) -> tuple[float, float]:
    """Microseconds and microseconds of CPU of each of so many."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e6 * (time.perf_counter() - wall) / count, 1e6 * (time.process_time() - cpu) / count


def epochs(data: Path, cached: bool) -> dict[str, float]:
    """Samples per second of four epochs through Ray, and the share of the second one that was kept."""
    import ray
    import torch

    from ray_mm.config.cache import DecodedCache
    from ray_mm.config.source import Source
    from ray_mm.data.feed import Feed
    from ray_mm.data.loader import Loader
    from ray_mm.data.order import Shuffle
    from ray_mm.data.plan import Schedule
    from ray_mm.data.preprocessor import preprocessor_for
    from ray_mm.data.samples import select_all
    from ray_mm.data.source import feed_dataset
    from ray_mm.session import ray_session

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="decoded", dir=data))
    try:
        with ray_session():
            assert ray.cluster_resources()["CPU"] == WORKERS, "two CPUs for everyone"
            started = time.perf_counter()
            dataset, samples = select_all(Source(path=str(data / "tars")), "data")
            schedule = Schedule(samples.epoch_samples, 0, BATCH, epochs=EPOCHS)
            feed = Feed(
                train=samples,
                validation=None,
                preprocessor=preprocessor_for(dataset, {}, ["image", "caption", "imu"]),
                shuffle=Shuffle(seed=0, digest=samples.digest, chunk_samples=256, window_chunks=64),
                schedule=schedule,
                world_size=1,
                first_item=0,
                quarantine=folder / "quarantine",
                decoded=DecodedCache(folder=str(folder / "cache"), size=10**10) if cached else None,
            )
            (split,) = feed_dataset(feed).streaming_split(1, equal=False, locality_hints=None)
            loader = Loader(split, feed, rank=0, device=torch.device("cpu"), prefetch_batches=2)
            arrivals = [
                (time.perf_counter() - started, batch.item.epoch, batch.stop - batch.start, batch.num_cached)
                for batch in loader
            ]
    finally:
        shutil.rmtree(folder)
    total = samples.epoch_samples
    assert sum(size for _, _, size, _ in arrivals) == EPOCHS * total
    ends = [max(at for at, epoch, _, _ in arrivals if epoch == number) for number in range(EPOCHS)]
    first, rest = arrivals[0], [size for _, epoch, size, _ in arrivals[1:] if epoch == 0]
    return {
        "first": total / ends[0],
        "steady": sum(rest) / (ends[0] - first[0]),
        "second": total / (ends[1] - ends[0]),
        "later": (EPOCHS - 2) * total / (ends[-1] - ends[1]),
        **({"kept": sum(kept for _, epoch, _, kept in arrivals if epoch == 1) / total} if cached else {}),
        "first_batch_s": first[0],
    }


def rows(samples: int) -> dict[str, float]:
    """Samples per second of two processes that copy batches out of one map of rows."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as stream:
        content = np.random.default_rng(0).integers(0, 256, ROW.itemsize, np.uint8)
        for _ in range(samples):
            stream.write(content.data)
        stream.flush()
        context = multiprocessing.get_context("fork")
        ready, done = context.Barrier(WORKERS), context.Queue()
        processes = [
            context.Process(target=_copy, args=(stream.name, number, ready, done)) for number in range(WORKERS)
        ]
        for process in processes:
            process.start()
        found = [done.get() for _ in processes]
        for process in processes:
            process.join()
    return {"second": sum(rate for rate, _ in found), "later": sum(rate for _, rate in found)}


def _copy(path: str, number: int, ready: Any, done: Any) -> None:
    table = np.memmap(path, ROW, "r")
    rates = []
    ready.wait()
    for epoch in range(1, 3):
        mine = np.random.default_rng(epoch).permutation(len(table))[number::WORKERS]
        started = time.perf_counter()
        for first in range(0, len(mine), BATCH):
            chosen = mine[first : first + BATCH]
            batch = {name: np.empty((len(chosen), *ROW[name].shape), ROW[name].base) for name in ROW.names or ()}
            for place, row in enumerate(chosen.tolist()):
                for name, array in batch.items():
                    array[place] = table[name][row]
        rates.append(len(mine) / (time.perf_counter() - started))
    done.put(rates)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
