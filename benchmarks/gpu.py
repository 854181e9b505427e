"""Training on a GPU: through the loader beside the same step on one resident batch, with MFU and what the GPU waited for.

    python benchmarks/gpu.py

Pictures of 224×224 through ViT-B/16, texts through a transformer, and sensor series, made here; a batch of 256, bf16. Every
line is a process of its own that has the GPU alone. The resident line trains on one batch that lies on the GPU again and again:
nothing can be faster with that model. The others are whole trainings, as ``ray-mm run`` does them; counted are the steps of their
second half. MFU counts the products that a forward pass needs three times, against the peak that the maker gives for bf16.
Without a GPU, --tiny shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ingest
import torch
from labelled import make_labelled

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.loader import LoadedBatch
from ray_mm.session import ray_session
from ray_mm.training.feeding import plan_feed
from ray_mm.training.flops import forward_flops, peak_flops, training_flops
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks, resolve_precision, use_precision
from ray_mm.training.probe_data import probe_data
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training, run_train


@dataclass(frozen=True)
class Size:
    """How much is done."""

    samples: int = 8192
    side: int = 224
    batch: int = 256
    epochs: int = 6
    dim: int = 768
    encoders: str = "base"
    seconds: float = 20.0


TINY = Size(samples=64, side=32, batch=16, epochs=2, dim=16, encoders="small", seconds=0.5)
AUGMENT = {
    "fields": {
        "image": {"color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, "erase": 0.25},
        "imu": {"noise": 0.1, "scale": 0.1, "time_mask": 0.2},
    }
}
LINES: dict[str, dict[str, Any]] = {
    "one resident batch": {},
    "through the loader": {},
    "one resident batch, compiled": {"train.compile": True},
    "through the loader, compiled": {"train.compile": True},
    "one resident batch, augmented": {"train.augment": AUGMENT},
    "through the loader, augmented": {"train.augment": AUGMENT},
}
"""Line → what differs in its job."""


def make_job(data: Path, run: Path, size: Size, overrides: dict[str, Any]) -> TrainJob:
    """The training of a line."""
    job = load_job(
        {
            "kind": "train",
            "name": "gpu",
            "data": {"train": str(data), "batch_size": size.batch, "prefetch_batches": 4},
            "model": {
                "fields": {
                    "image": {"encoder": "vit", "size": size.encoders},
                    "caption": {"encoder": "transformer", "size": size.encoders},
                    "imu": {"encoder": "cnn", "size": size.encoders},
                },
                "fusion": {"method": "latent", "dim": size.dim},
                "task": {"type": "classify", "label": "label"},
            },
            "train": {"epochs": size.epochs, "precision": "auto"},
            "resources": {"workers": 1, "gpus_per_worker": 1 if torch.cuda.is_available() else 0},
            "output": str(run),
        },
        overrides,
    )
    assert isinstance(job, TrainJob)
    return job


def resident(job: TrainJob, size: Size) -> dict[str, Any]:
    """Steps on one batch, without a loader and without Ray."""
    training = plan_training(job)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    use_precision(job.train.precision, device)
    arrays = _one_batch(training)
    host = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors = {name: tensor.to(device) for name, tensor in host.items()}
    learner = Learner(training, Ranks(0, 1, device))
    item = training.schedule.item(0)
    batch = LoadedBatch(item, tensors, [], item.start, item.stop, wait_s=0.0, host=host)
    flops = sum(forward_flops(learner.model.train(), tensors).values())

    def steps(seconds: float) -> float:
        _synchronize(device)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds or done < 2:
            for _ in range(4):
                # Asked for now and then: a queue without end would take memory, and the last step's end is what counts.
                learner.train(batch)
            done += 4
            _synchronize(device)
        return done / (time.perf_counter() - started)

    steps(size.seconds / 4)
    rate = steps(size.seconds) * size.batch
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    precision = resolve_precision(job.train.precision, device)
    peak = peak_flops(name, precision)
    mfu = None if peak is None else rate * training_flops({"all": flops}, ()) / peak
    return {"samples_per_s": rate, "mfu": mfu, "device": name, "precision": precision, "forward_flops": flops}


def through_loader(job: TrainJob, size: Size) -> dict[str, Any]:
    """A whole training; counted is its second half."""
    with ray_session():
        run_train(job)
    lines = [line for line in read_metrics(Path(job.output)) if line["kind"] == "train"]
    counted = lines[len(lines) // 2 :]
    before = lines[len(lines) // 2 - 1]["seconds"] if len(lines) > 1 else 0.0
    spans = [
        line["seconds"] - start
        for line, start in zip(counted, [before, *(line["seconds"] for line in counted)], strict=False)
    ]

    def mean(key: str) -> float | None:
        if key not in counted[0]:
            return None
        return sum(line[key] * span for line, span in zip(counted, spans, strict=True)) / sum(spans)

    keys = ("samples_per_s", "data_wait", "data_transfer", "checkpoint_wait", "mfu")
    return {key: mean(key) for key in keys}


def _one_batch(training: Any) -> dict[str, Any]:
    from ray_mm.data.blocks import to_arrays

    feed = plan_feed(training, 1, 0)
    arrays = to_arrays(probe_data(feed, 0.01)[2])
    return {name: array[: feed.batch_rows].copy() for name, array in arrays.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The medians as Markdown."""

    def median(name: str, key: str) -> float | None:
        values = [run[key] for run in found[name] if run.get(key) is not None]
        return statistics.median(values) if values else None

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "| training | samples/s | of the resident batch | MFU | waited for data | waited for copies |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in found:
        rate = median(name, "samples_per_s")
        best = name.replace("through the loader", "one resident batch")
        limit = median(best, "samples_per_s") if best in found else None
        ratio = rate / limit if rate is not None and limit and best != name else None
        shares = [cell(median(name, key), ".2%") for key in ("mfu", "data_wait", "data_transfer")]
        lines.append(f"| {name} | {cell(rate, ',.0f')} | {cell(ratio, '.3f')} | {' | '.join(shares)} |")
    about = next((runs[0] for runs in found.values() if "device" in runs[0]), None)
    if about is not None:
        lines += [
            "",
            f"{about['device']}, {about['precision']}, {about['forward_flops'] / 1e9:,.2f} GFLOP forward per sample, "
            f"torch {torch.__version__}, {os.cpu_count()} CPUs.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/gpu"), help="folder for 400 MB of samples")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(LINES), default=list(LINES), help="lines of the table")
    parser.add_argument("--tiny", action="store_true", help="in seconds, on any machine, only to see that it runs")
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    parser.add_argument("--child", nargs=2, metavar=("LINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = TINY if args.tiny else Size()
    data = args.data.absolute() / f"{size.samples}-{size.side}"
    if args.child is not None:
        line, folder = args.child
        job = make_job(data, Path(folder) / "run", size, LINES[line])
        print(json.dumps(resident(job, size) if line.startswith("one") else through_loader(job, size)))
        return
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --tiny runs anywhere, and its figures mean nothing")
    make_labelled(data, size.samples, size.side)
    found: dict[str, list[dict[str, Any]]] = {line: [] for line in args.only}
    for number in range(args.rounds):
        for line in args.only:
            found[line].append(_in_process(line, args))
            print(f"round {number + 1}: {line}: {found[line][-1]}", file=sys.stderr, flush=True)
    section = table(found)
    print(section)
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "gpu", section))


def _in_process(line: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--data", str(args.data), "--child", line, folder]
        done = subprocess.run(
            [*command, *(["--tiny"] if args.tiny else [])],
            env=os.environ | {"PYTHONPATH": str(ingest.ROOT), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{line} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


if __name__ == "__main__":
    main()
