"""Seconds from a command to the first optimizer step, and from the death of a worker to the next new one.

    python benchmarks/restart.py

A tiny model trains on small vectors, so that all of the time is start-up. Beside ray_mm stands the shortest script that does the
same with Ray Train: with Ray Data, as its guide has it, and with ``--resident`` one more, whose data is in memory. Each begins
with a private Ray and on one that runs. Then a worker of ray_mm is killed (SIGKILL) while it trains: how long until a step is
done that was not done before, and how many are done twice, counted from the ledger. Rounds alternate; the table has medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import doctor
import psutil
from ray.cluster_utils import Cluster

EVERY_STEPS = 20
_PATIENCE_S = 300.0
_SCRIPT = """
import sys
from pathlib import Path
import numpy as np, ray, ray.train, ray.train.torch, torch
from torch import nn

def loop(config):
    model = ray.train.torch.prepare_model(
        nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 16), nn.Linear(16, 2))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if config["resident"]:
        vectors = torch.from_numpy(make())
        batches = ({"vector": part, "label": (part[:, 0] > 0).long()} for part in vectors.split(32))
    else:
        batches = ray.train.get_dataset_shard("train").iter_torch_batches(batch_size=32)
    for batch in batches:
        loss = nn.functional.cross_entropy(model(batch["vector"]), batch["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        Path(config["mark"]).touch()

def make():
    return np.random.default_rng(0).standard_normal((40_000, 8)).astype(np.float32)

mark, resident, address = sys.argv[1], sys.argv[2] == "resident", sys.argv[3]
ray.init(address=address, log_to_driver=False)
datasets = {}
if not resident:
    vectors = make()
    rows = [{"vector": row, "label": int(row[0] > 0)} for row in vectors[:4000]]
    datasets = {"train": ray.data.from_items(rows)}
ray.train.torch.TorchTrainer(
    loop,
    train_loop_config={"mark": mark, "resident": resident},
    scaling_config=ray.train.ScalingConfig(num_workers=1),
    run_config=ray.train.RunConfig(storage_path=str(Path(mark).parent), name="ray_train"),
    datasets=datasets,
).fit()
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/doctor"), help="folder for what is generated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resident", action="store_true", help="a script whose data is in memory, too")
    args = parser.parse_args()
    data = doctor.vectors(args.data.absolute())
    scripts = ("Ray Train with Ray Data", *(["Ray Train, data in memory"] if args.resident else []))
    starts: dict[tuple[str, str], list[float]] = {}
    deaths: list[float] = []
    twice: list[int] = []
    for number in range(args.rounds):
        for where in ("a private Ray", "a Ray that runs"):
            with _running() if where == "a Ray that runs" else contextlib.nullcontext() as address:
                for name in ("ray_mm", *scripts):
                    with TemporaryDirectory() as folder:
                        run = Path(folder) / "run"
                        seconds = _start_ray_mm(data, run, address) if name == "ray_mm" else _start(name, run, address)
                    starts.setdefault((name, where), []).append(seconds)
                    print(f"round {number + 1}: {name}, {where}: {seconds:.1f} s", file=sys.stderr)
        with TemporaryDirectory() as folder:
            death, again = _kill_worker(data, Path(folder) / "run")
        deaths.append(death)
        twice.append(again)
        print(f"round {number + 1}: {death:.1f} s after a death, {again} steps twice", file=sys.stderr)
    _print(starts, deaths, twice)


def _print(starts: dict[tuple[str, str], list[float]], deaths: list[float], twice: list[int]) -> None:
    found = {key: statistics.median(seconds) for key, seconds in starts.items()}
    print("| from the command to the first step, s | ray_mm | a script | ratio |\n|---|---:|---:|---:|")
    for (name, where), seconds in found.items():
        if name != "ray_mm":
            ours = found["ray_mm", where]
            print(f"| {where}; {name} | {ours:.1f} | {seconds:.1f} | {ours / seconds:.2f} |")
    start, death = found["ray_mm", "a private Ray"], statistics.median(deaths)
    print("\n| after a worker's death | | of the start |\n|---|---:|---:|")
    print(f"| to the next new step, s | {death:.1f} | {death / start:.2f} |")
    print(f"| steps done twice, at the most; a checkpoint every {EVERY_STEPS} | {max(twice)} | |")


def _start_ray_mm(data: Path, run: Path, address: str | None) -> float:
    with _command(data, run, *(["--address", address] if address else [])) as (started, process):
        _wait(lambda: _items(run, 1) > 0, process)
        return time.monotonic() - started


def _start(name: str, run: Path, address: str | None) -> float:
    run.mkdir()
    kind = "resident" if "memory" in name else "data"
    command = [sys.executable, "-c", _SCRIPT, str(run / "mark"), kind, address or "local"]
    with _process(command, run / "log") as (started, process):
        _wait((run / "mark").exists, process)
        return time.monotonic() - started


def _kill_worker(data: Path, run: Path) -> tuple[float, int]:
    """Seconds to the next new step, and steps done twice."""
    with _command(data, run) as (_, process):
        _wait(lambda: _items(run, 1) > 3 * EVERY_STEPS, process)
        (worker,) = [
            child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in _name(child)
        ]
        worker.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        worker.wait(30)
        done = _items(run, 1)
        _wait(lambda: (run / "attempts" / "0002.json").exists(), process)
        first = int(json.loads((run / "attempts" / "0002.json").read_text())["first_item"])
        _wait(lambda: first + _items(run, 2) > done, process)
        return time.monotonic() - killed, done - first


def _items(run: Path, attempt: int) -> int:
    """Steps that a start of the workers did; there is no validation."""
    ledger = run / "ledger" / f"attempt-{attempt:04d}-rank-0000.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def _command(data: Path, run: Path, *arguments: str) -> Iterator[tuple[float, subprocess.Popen[bytes]]]:
    job = run.with_suffix(".yaml")
    job.write_text(
        f"kind: train\nname: restart\ndata: {{train: {data}, batch_size: 32}}\n"
        "model: {fields: {vector: {}}, fusion: {method: gated, dim: 16}, task: {type: classify, label: label}}\n"
        f"train: {{epochs: 1000, checkpoints: {{every_steps: {EVERY_STEPS}}}}}\noutput: {run}\n"
    )
    command = [sys.executable, "-m", "ray_mm", "run", str(job), *arguments]
    with _process(command, run.with_suffix(".log")) as started:
        yield started


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[tuple[float, subprocess.Popen[bytes]]]:
    """Runs a command, and ends what it started afterwards."""
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        )
    try:
        yield started, process
    except TimeoutError as error:
        raise SystemExit(f"{error}:\n{log.read_text()[-3000:]}") from None
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        # Ray's processes notice that their driver is gone; what is left of them must not slow down the next one.
        _, left = psutil.wait_procs(children, timeout=20)
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()


@contextlib.contextmanager
def _running() -> Iterator[str]:
    """The address of a Ray that runs for the block, and has been used: what the first to come starts stays."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": os.cpu_count(), "include_dashboard": False})
    try:
        with TemporaryDirectory() as folder:
            _start("Ray Train with Ray Data", Path(folder) / "run", str(cluster.address))
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        if process.poll() is not None:
            raise TimeoutError(f"ended too early with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing within {_PATIENCE_S:.0f} s")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
