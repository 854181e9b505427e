"""What the training loop costs: beside a hand-written one, beside batches that lie in memory, on two workers, with checkpoints.

    python benchmarks/train_loop.py

    loop         our loop and a hand-written PyTorch loop that does the same maths, on the same batches in memory: steps/s
    goodput      the same training on tars through Ray, and on batches in memory, with a core each for data and model
    scaling      one worker and two, batches in memory: with as many samples per worker, and with as many in all
    checkpoints  share of the time in which a training stands still for its checkpoints, one an epoch, as is the default

Every figure is of processes of their own with one thread for the model, which take turns; medians over the rounds. Steps are
counted from the twentieth on. On a busy machine look at the CPU seconds, too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ingest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from labelled import make_labelled

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.epochs import Epochs
from ray_mm.data.loader import LoadedBatch, Loader
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import rank_size, rank_slice
from ray_mm.data.reader import BatchReader
from ray_mm.data.samples import open_planned
from ray_mm.data.source import feed_dataset
from ray_mm.models.multimodal import build_model
from ray_mm.training.feeding import plan_feed
from ray_mm.training.optim import build_optimizer, learning_rate
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, current_attempt
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from ray_mm.training.worker import run_worker

RESIDENT = 8
"""Batches in memory, used in turn."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        samples: of the dataset.
        side: of its pictures.
        batch: samples per step.
        steps: of a run on batches in memory.
        warm: first steps, which are not counted.
        small_steps: of the small model.
    """

    samples: int = 4096
    side: int = 96
    batch: int = 32
    steps: int = 90
    warm: int = 20
    small_steps: int = 1500


TINY = Size(samples=64, side=32, batch=8, steps=12, warm=3, small_steps=12)
MODELS: dict[str, tuple[str, ...]] = {"pictures, texts, series": ("image", "caption", "imu"), "series": ("imu",)}
"""Name of a model → its fields: one whose steps are long, one whose steps are short."""


def make_training(data: Path, run: Path, size: Size, fields: Iterable[str], steps: int, **overrides: Any) -> Training:
    """A training of so many steps, in one epoch if nothing else is said."""
    job = load_job(
        {
            "kind": "train",
            "name": "loop",
            "data": {"train": str(data), "batch_size": size.batch, "epoch_samples": size.batch * steps},
            "model": {
                "fields": {name: {"dropout": 0.0} for name in fields},
                "fusion": {"method": "gated", "dim": 128, "dropout": 0.0},
                "task": {"type": "classify", "label": "label"},
            },
            # What differs between the two loops by chance would differ in the loss.
            "train": {"epochs": 1, "modality_dropout": 0.0, "precision": "fp32"},
            "output": str(run),
        },
        overrides,
    )
    assert isinstance(job, TrainJob)
    return plan_training(job)


class Clock:
    """Passes items on, and times what is done with them from the ``warm``-th on."""

    def __init__(self, items: Iterator[Any], warm: int) -> None:
        self._items, self._warm = items, warm
        self.steps, self.wall_s, self.cpu_s, self.waited_s = 0, 0.0, 0.0, 0.0

    def __iter__(self) -> Iterator[Any]:
        started = (0.0, 0.0)
        for number in itertools.count():
            asked = time.perf_counter()
            if number == self._warm:
                started = (asked, time.process_time())
            item = next(self._items, None)
            if number >= self._warm:
                self.waited_s += time.perf_counter() - asked
            if item is None:
                self.steps = number - self._warm
                self.wall_s, self.cpu_s = time.perf_counter() - started[0], time.process_time() - started[1]
                return
            yield item

    def found(self) -> dict[str, float]:
        """The figures."""
        return {
            "steps_per_s": self.steps / self.wall_s,
            "cpu_s_per_step": self.cpu_s / self.steps,
            "waited": self.waited_s / self.wall_s,
        }


def resident(training: Training, rank: int = 0, world_size: int = 1) -> Iterator[LoadedBatch]:
    """A rank's share of every batch of a training; only the first few are read, and used in turn."""
    shuffle = training.job.data.shuffle
    mixed = Shuffle(training.job.seed, training.train.digest, shuffle.chunk_samples, shuffle.window_chunks)
    epochs = Epochs(open_planned(training.train), training.train, mixed)
    reader = BatchReader(epochs.datasets, training.preprocessor, training.quarantine)
    size, made = training.job.data.batch_size, []
    for number in range(min(RESIDENT, training.schedule.num_items)):
        item = training.schedule.item(number)
        start, stop = rank_slice(item, size, rank, world_size)
        arrays, keys = reader.read(epochs.places(start, stop, 0), start, rank_size(size, world_size))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        made.append(LoadedBatch(item, tensors, keys, start, stop, wait_s=0.0))
    for number in range(training.schedule.num_items):
        item = training.schedule.item(number)
        start, stop = rank_slice(item, size, rank, world_size)
        yield replace(made[number % len(made)], item=item, start=start, stop=stop)


def ours(
    training: Training, size: Size, batches: Iterator[LoadedBatch] | None = None, ranks: Ranks | None = None
) -> Clock:
    """Our loop."""
    ranks = ranks or Ranks(0, 1, CPU)
    clock = Clock(batches or resident(training, ranks.rank, ranks.world_size), size.warm)
    run_worker(training, ranks, current_attempt(training.run), iter(clock))
    return clock


def by_hand(training: Training, size: Size, log: Path) -> Clock:
    """The same maths, as one writes it down: the same model, loss, optimizer, clipping and schedule; the loss every ten steps."""
    job = training.job
    torch.manual_seed(job.seed)
    model = build_model(job.model, training.preprocessor).train()
    optimizer = build_optimizer(model, job.train.optimizer)
    clock = Clock(resident(training), size.warm)
    losses = torch.zeros(())
    with log.open("w", buffering=1) as stream:
        for step, batch in enumerate(clock, start=1):
            lr = learning_rate(job.train.optimizer.lr, job.train.schedule, step, training.schedule.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(model(batch.tensors), batch.tensors["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.train.clip_norm or 1e9)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses += loss.detach()
            if step % job.train.log_every_steps == 0 or step == training.schedule.num_steps:
                since = step % job.train.log_every_steps or job.train.log_every_steps
                stream.write(json.dumps({"step": step, "loss": losses.item() / since}) + "\n")
                losses.zero_()
    return clock


def mean_losses(lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Step → mean loss from the first step to it. Each line is the mean since the one before, and on a slow machine our loop
    writes more of them."""
    found, total, before = dict[int, float](), 0.0, 0
    for line in lines:
        total += line["loss"] * (line["step"] - before)
        before = line["step"]
        found[before] = total / before
    return found


# --- what runs in a process of its own


def loop(data: Path, size: Size, folder: Path, number: int) -> dict[str, Any]:
    """Both loops with both models; which comes first changes from round to round."""
    found: dict[str, Any] = {}
    for place, (model, fields) in enumerate(MODELS.items()):
        steps = size.small_steps if len(fields) == 1 else size.steps
        training = make_training(data, folder / f"run-{place}", size, fields, steps)
        begin_attempt(training.run, training.data_digest)
        log = folder / f"by-hand-{place}.jsonl"
        runs: dict[str, Callable[[], Clock]] = {
            "ours": lambda training=training: ours(training, size),
            "by hand": lambda training=training, log=log: by_hand(training, size, log),
        }
        clocks = {name: runs[name]() for name in sorted(runs, reverse=bool(number % 2))}
        found[model] = {name: clock.found() for name, clock in clocks.items()}
        by_us = mean_losses(line for line in read_metrics(training.run) if line["kind"] == "train")
        other = mean_losses(map(json.loads, log.read_text().splitlines()))
        # Otherwise it would not be the same maths.
        found[model]["difference"] = max(abs(by_us[step] - loss) for step, loss in other.items())
    return found


def goodput(data: Path, size: Size, folder: Path, number: int) -> dict[str, Any]:
    """Batches in memory, and through Ray, which gets one CPU: the other one is the model's."""
    import ray

    from ray_mm.auth import protect_token
    from ray_mm.session import ray_session

    fields = next(iter(MODELS.values()))
    found = {}

    def from_memory() -> Clock:
        training = make_training(data, folder / "memory", size, fields, size.steps)
        begin_attempt(training.run, training.data_digest)
        return ours(training, size)

    def through_ray() -> Clock:
        training = make_training(data, folder / "ray", size, fields, 2 * size.steps)
        begin_attempt(training.run, training.data_digest)
        protect_token()
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            with ray_session():
                feed = plan_feed(training, 1, 0)
                (split,) = feed_dataset(feed).streaming_split(1, equal=False, locality_hints=None)
                loader = Loader(split, feed, rank=0, device=CPU, prefetch_batches=training.job.data.prefetch_batches)
                # While Ray starts, the worker reads by itself, on the model's core: a start, and no goodput.
                return ours(training, replace(size, warm=size.steps), iter(loader))
        finally:
            ray.shutdown()

    runs = {"memory": from_memory, "ray": through_ray}
    for name in sorted(runs, reverse=bool(number % 2)):
        found[name] = runs[name]().found()
    return found


def scaling(data: Path, size: Size, folder: Path, number: int) -> dict[str, Any]:
    """One worker; two that share its batch; two with a batch each. All in processes of their own."""
    cases = {"one": (1, size), "shared": (2, size), "each": (2, replace(size, batch=2 * size.batch))}
    found = {}
    for name in sorted(cases, reverse=bool(number % 2)):
        world_size, of_case = cases[name]
        training = make_training(data, folder / name, of_case, next(iter(MODELS.values())), size.steps)
        begin_attempt(training.run, training.data_digest)
        place = folder / f"{name}.json"
        torch.multiprocessing.spawn(_rank, (world_size, training, size, folder / f"at-{name}", place), world_size)
        found[name] = json.loads(place.read_text())
    return found


def _rank(rank: int, world_size: int, training: Training, size: Size, rendezvous: Path, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    clock = ours(training, size, ranks=Ranks(rank, world_size, CPU))
    if rank == 0:
        place.write_text(json.dumps(clock.found()))
    dist.destroy_process_group()


def checkpoints(data: Path, size: Size, folder: Path, number: int) -> dict[str, Any]:
    """Three epochs, each with its checkpoint, and as many steps with one at the end alone, which is not counted."""
    fields, found = next(iter(MODELS.values())), {}
    for name in ("an epoch", "none") if number % 2 == 0 else ("none", "an epoch"):
        epochs = 3 if name == "an epoch" else 1
        training = make_training(
            data, folder / name.replace(" ", "-"), size, fields, 3 * size.steps // epochs, **{"train.epochs": epochs}
        )
        begin_attempt(training.run, training.data_digest)
        found[name] = ours(training, size).found()
        if epochs > 1:
            lines = [line for line in read_metrics(training.run) if line["kind"] == "train"]
            # A share of the time since the line before; the one of the last checkpoint is not written down any more.
            ends = [0.0, *(line["seconds"] for line in lines)]
            stood = [
                line["checkpoint_wait"] * (end - start) for line, start, end in zip(lines, ends, ends[1:], strict=False)
            ]
            found[name]["stood_still"] = sum(stood) / (2 / 3 * ends[-1])
    return found


PARTS = {"loop": loop, "goodput": goodput, "scaling": scaling, "checkpoints": checkpoints}


# --- the table


def rows(found: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, ...]]:
    """What, how fast each, their ratio, the goal."""

    def median(part: str, *path: str) -> float:
        return statistics.median(float(functools.reduce(operator.getitem, path, each)) for each in found[part])

    for model in MODELS if "loop" in found else ():
        us, other = (median("loop", model, who, "steps_per_s") for who in ("ours", "by hand"))
        cpu = [median("loop", model, who, "cpu_s_per_step") for who in ("ours", "by hand")]
        name = f"our loop and one by hand: {model}"
        yield name, f"{us:,.1f} and {other:,.1f} steps/s", f"{us / other:.3f}", "≥ 0.97"
        yield "… CPU per step", f"{1e3 * cpu[0]:,.2f} and {1e3 * cpu[1]:,.2f} ms", f"{cpu[0] / cpu[1]:.3f}", "–"
        yield "… largest difference of their mean losses", f"{median('loop', model, 'difference'):.1e}", "–", "–"
    if "goodput" in found:
        us, other = (median("goodput", who, "steps_per_s") for who in ("ray", "memory"))
        name = "through Ray and from memory, a core for data"
        yield name, f"{us:,.1f} and {other:,.1f} steps/s", f"{us / other:.3f}", "≥ 0.95"
        yield "… waited for data", "", f"{median('goodput', 'ray', 'waited'):.2%}", "< 2%"
    if "scaling" in found:
        one, each, shared = (median("scaling", name, "steps_per_s") for name in ("one", "each", "shared"))
        name = "two workers with a batch each, and one"
        yield name, f"{2 * each:,.1f} and {one:,.1f} batches/s", f"{each / one:.3f} of twice", "≥ 0.85"
        name = "two workers that share a batch, and one"
        yield name, f"{shared:,.1f} and {one:,.1f} batches/s", f"{shared / one / 2:.3f} of twice", "–"
    if "checkpoints" in found:
        with_them, without = (median("checkpoints", name, "steps_per_s") for name in ("an epoch", "none"))
        stood = median("checkpoints", "an epoch", "stood_still")
        name = "with a checkpoint an epoch and without"
        yield name, f"{with_them:,.1f} and {without:,.1f} steps/s", f"{with_them / without:.3f}", "–"
        yield "… stood still for them", "", f"{stood:.2%}", "≤ 2%"


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The medians as Markdown."""
    lines = ["| what | each | ratio or share | goal |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows(found))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/labelled"), help="folder for 40 MB of samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="in seconds, only to see that it runs")
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    parser.add_argument("--child", nargs=3, metavar=("PART", "ROUND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = TINY if args.tiny else Size()
    data = args.data.absolute() / f"{size.samples}-{size.side}"
    if args.child is not None:
        torch.set_num_threads(1)
        part, number, folder = args.child
        print(json.dumps(PARTS[part](data, size, Path(folder), int(number))))
        return
    make_labelled(data, size.samples, size.side)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in args.only}
    for number, part in itertools.product(range(args.rounds), args.only):
        found[part].append(_in_process(part, number, args))
        print(f"round {number + 1}: {part}: {found[part][-1]}", file=sys.stderr, flush=True)
    section = table(found)
    print(section)
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "loop", section))


def _in_process(part: str, number: int, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--data", str(args.data), "--child", part, str(number), folder]
        done = subprocess.run(
            [*command, *(["--tiny"] if args.tiny else [])],
            env=os.environ | {"PYTHONPATH": str(ingest.ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


if __name__ == "__main__":
    main()
