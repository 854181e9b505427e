"""Where the processors go between tars and batches: milliseconds of CPU per sample of each process, for some sizes of blocks
and some numbers of readers.

    python benchmarks/ingest_cpu.py
    python benchmarks/ingest_cpu.py --start      where they go until the first 4,000 samples are there, in seconds

Reads the samples of ``ingest.py`` with two CPUs, and makes them if they are not there. Counted is between a sixth and five
sixths of the samples, as there. Readers are the processes that run read tasks; what they tell of reading and decoding is wall
time, which grows where several share a CPU. Of a start, new processes are told apart from those of an epoch before; what the
worker read by itself and what is decoded already but not yet its turn are among the readers' and the worker's seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ingest
import psutil

ROLES = ("readers", "hands blocks out", "worker", "the rest of Ray")
_QUIET_S = 2.0
"""Until what an epoch before has left to do is done."""


def cpu_seconds() -> dict[int, tuple[str, float]]:
    """Process → its role and its seconds of CPU so far, of this process and all below it."""
    me, found = psutil.Process(), {}
    for process in [me, *me.children(recursive=True)]:
        try:
            times, command = process.cpu_times(), process.cmdline() or [""]
        except psutil.Error:
            continue
        role = "the rest of Ray"
        if process.pid == me.pid:
            role = "worker"
        elif "SplitCoordinator" in command[0]:
            role = "hands blocks out"
        elif "ReadPlan" in command[0] or "IDLE" in command[0]:
            role = "readers"
        found[process.pid] = (role, times.user + times.system)
    return found


def one_start(data: Path, warm: bool) -> None:
    """Prints a row: what the first samples of an epoch take."""
    sys.path.insert(0, str(ingest.LOADERS))
    import ours

    from ray_mm.session import ray_session

    arguments = argparse.Namespace(data=str(data))
    with tempfile.TemporaryDirectory() as folder, ray_session():
        if warm:
            for _ in ours.make_loader(arguments, Path(folder), start=0.5, head_samples=None):
                pass
        time.sleep(_QUIET_S)
        before, began, seen = cpu_seconds(), time.perf_counter(), 0
        for batch in ours.make_loader(arguments, Path(folder), head_samples=None):
            seen += batch.stop - batch.start
            if seen >= ingest.FIRST:
                break
        wall, after = time.perf_counter() - began, cpu_seconds()
        spent = dict.fromkeys(ROLES, 0.0)
        for process, (role, seconds) in after.items():
            spent[role] += seconds - before.get(process, (role, 0.0))[1]
        num_new = len(after.keys() - before.keys())
        cells = " | ".join(f"{spent[role]:.1f}" for role in ROLES)
        print(
            f"| {'warm' if warm else 'new'} | {seen / wall:,.0f} | {wall:.1f} | {sum(spent.values()) / wall:.2f} | {num_new} | "
            f"{cells} |",
            flush=True,
        )
        # The epoch is not over, and its threads would outlive Ray.
        os._exit(0)


def one_run(data: Path, block_mib: int, readers_per_cpu: float) -> None:
    """Prints a row."""
    sys.path.insert(0, str(ingest.LOADERS))
    import ours

    from ray_mm.data import source
    from ray_mm.session import ray_session

    source.READERS_PER_CPU = readers_per_cpu
    with tempfile.TemporaryDirectory() as folder, ray_session():
        batches = list[tuple[float, float, float]]()
        total = -(-ingest.SAMPLES // 64)
        for number, batch in enumerate(
            ours.make_loader(argparse.Namespace(data=str(data)), Path(folder), block_bytes=block_mib << 20)
        ):
            batches.append((time.perf_counter(), batch.read_s, batch.decode_s))
            if number == total // 6:
                before = cpu_seconds()
            if number == total * 5 // 6:
                after = cpu_seconds()
                break
    counted = batches[total // 6 + 1 :]
    samples = 64 * len(counted)
    spent: dict[str, float] = {}
    for process, (role, seconds) in after.items():
        spent[role] = spent.get(role, 0.0) + seconds - before.get(process, (role, 0.0))[1]
    wall = batches[-1][0] - batches[total // 6][0]
    cells = [f"{1e3 * spent.get(role, 0.0) / samples:.2f}" for role in ROLES]
    told = [f"{1e3 * sum(batch[part] for batch in counted) / samples:.2f}" for part in (1, 2)]
    rate, cores = samples / wall, sum(spent.values()) / wall
    print(f"| {block_mib} | {readers_per_cpu:g} | {rate:,.0f} | {cores:.2f} | {' | '.join(cells + told)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ingest"))
    parser.add_argument("--block-mib", type=int, nargs="+", default=[2, 24, 48, 96])
    parser.add_argument("--readers-per-cpu", type=float, nargs="+", default=[2.0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--start", action="store_true", help="what the first samples take, with new and with warm processes"
    )
    parser.add_argument("--one-start", choices=["new", "warm"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = args.data.absolute()
    if args.one_start:
        one_start(data, args.one_start == "warm")
    if args.start:
        ingest.make_samples(data, ingest.SAMPLES)
        print(
            "| processes | samples/s | seconds | busy cores | new processes | readers | hands out | worker | rest of Ray |"
        )
        print("|---" + "|---:" * 8 + "|", flush=True)
        for processes in ["new", "warm"] * args.rounds:
            command = [sys.executable, __file__, "--data", str(data), "--one-start", processes]
            subprocess.run(command, env=ingest.environment(), check=True)
        return
    cases = list(itertools.product(args.block_mib, args.readers_per_cpu))
    if len(cases) * args.rounds == 1:
        one_run(data, *cases[0])
        return
    ingest.make_samples(data, ingest.SAMPLES)
    print(
        "| block, MiB | readers per CPU | samples/s | busy cores | readers | hands out | worker | rest of Ray | told: read | "
        "told: decode |"
    )
    print("|" + "---:|" * 10, flush=True)
    for block_mib, readers in cases * args.rounds:
        command = [sys.executable, __file__, "--data", str(data), "--block-mib", str(block_mib)]
        subprocess.run([*command, "--readers-per-cpu", str(readers)], env=ingest.environment(), check=True)


if __name__ == "__main__":
    main()
