"""What helps where some classes are rare: the plain loss beside four remedies, on generated data, with the same budget.

    python benchmarks/imbalance.py --docs docs/results.md

2,000 training samples of six manoeuvres, the commonest 20 times as frequent as the rarest, seen in a vector of 8 numbers and one
of 3; both are noisy, and some samples look like those of another class. Each model is scored at its end on 4,000 samples in which
the classes are as frequent as in the training, and on as many in which they are equally frequent, as is usual for long-tailed
data: nothing is chosen by them. Three seeds, which decide the first weights and the order of the samples. The data are the same
in all trainings, and so are all settings but those in ``REMEDIES``. The loop is that of a training, without Ray, whose start
would take longer than the training itself.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ingest
import numpy as np
import numpy.typing as npt
import torch
from inprocess import ALL, Figures, Held, fit, hold, score, told

from ray_mm.config.fields import LabelField, VectorField
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import ShardInfo, Statistics, write_dataset
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.preprocessing.writer import write_tar
from ray_mm.training.train import plan_training

CLASSES = ("cruise", "brake", "turn", "overtake", "swerve", "collide")
RATIO = 20
"""Samples of the first class for one of the last; those between fall geometrically."""
TRAIN, TEST, BATCH = 2000, 4000, 64
DISTANCE = 3.0
"""Of a class from the middle of all, in standard deviations of the noise."""
FIELDS = {"state": 8, "motion": 3}
"""Vector field → its size."""
REMEDIES: dict[str, dict[str, Any]] = {
    "plain cross entropy": {},
    "`loss: focal`": {"model.task.loss": "focal"},
    "`class_weights: balanced`": {"model.task.class_weights": "balanced"},
    "`logit_adjustment: 1`": {"model.task.logit_adjustment": 1.0},
    "`data.balance`": {"data.balance": {"label": "manoeuvre"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/imbalance"), help="folder that gets the datasets")
    parser.add_argument("--output", type=Path, default=Path("runs/imbalance"), help="folder for the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", nargs="+", type=int, default=[60, 600], help="budgets: steps of a training")
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for number, (name, count) in enumerate({"train": TRAIN, "test": TEST, "equal": TEST}.items()):
        make_dataset(args.data / name, class_counts(count, 1 if name == "equal" else RATIO), number)
    found = {
        (name, steps): [run(name, steps, seed, args.data, args.output) for seed in args.seeds]
        for steps in args.steps
        for name in REMEDIES
    }
    section = markdown(found, args.steps)
    print(section)
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "imbalance", section))


def make_dataset(folder: Path, counts: Sequence[int], seed: int) -> None:
    """Writes a dataset, once."""
    if (folder / "dataset.json").is_file():
        return
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    centres = np.random.default_rng(0).normal(size=(len(CLASSES), sum(FIELDS.values())))
    centres *= DISTANCE / np.linalg.norm(centres, axis=1, keepdims=True)
    random = np.random.default_rng([1, seed])
    labels = random.permutation(np.repeat(np.arange(len(CLASSES)), counts)).astype(np.int32)
    samples = []
    for row, label in enumerate(labels):
        seen = np.split(centres[label] + random.normal(size=centres.shape[1]), np.cumsum(list(FIELDS.values()))[:-1])
        members = {f"{field}.npy": _npy(part) for field, part in zip(FIELDS, seen, strict=True)}
        samples.append((f"{row:06d}", members | {"manoeuvre.cls": str(label).encode()}))
    path = folder / "shards" / "000000.tar"
    index = write_tar(path, samples)
    write_index(index_path(path), replace(index, labels={"manoeuvre": labels}))
    name = "shards/000000"
    write_dataset(
        folder,
        name=f"imbalance/{folder.name}",
        shards=[ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(labels), path.stat().st_size, index.version)],
        fields={
            **{field: VectorField(size=size) for field, size in FIELDS.items()},
            "manoeuvre": LabelField(classes=CLASSES),
        },
        members={**{field: (f"{field}.npy",) for field in FIELDS}, "manoeuvre": ("manoeuvre.cls",)},
        presence=dict.fromkeys((*FIELDS, "manoeuvre"), len(labels)),
        label_counts={"manoeuvre": dict(zip(CLASSES, counts, strict=True))},
        statistics={field: Statistics(mean=(0.0,) * size, std=(1.0,) * size) for field, size in FIELDS.items()},
    )


def _npy(array: npt.NDArray[np.float64]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array.astype(np.float32))
    return stream.getvalue()


def class_counts(total: int, ratio: float) -> list[int]:
    """Samples of each class, the commonest first."""
    shares = ratio ** -(np.arange(len(CLASSES)) / (len(CLASSES) - 1))
    return [round(total * share) for share in shares / shares.sum()]


def run(name: str, steps: int, seed: int, data: Path, output: Path) -> Figures:
    """Trains, and returns the figures of the last weights."""
    job = load_job(
        {
            "kind": "train",
            "name": "imbalance",
            "data": {
                "train": str(data / "train"),
                "batch_size": BATCH,
                # One long epoch, in which the samples come round again and again.
                "epoch_samples": steps * BATCH,
            },
            "model": {
                "fields": {field: {} for field in FIELDS},
                "fusion": {"method": "gated", "dim": 64},
                "task": {"type": "classify", "label": "manoeuvre"},
            },
            "train": {"epochs": 1, "modality_dropout": 0.0},
            "seed": seed,
            "output": str(output / f"{list(REMEDIES).index(name)}-steps-{steps}-seed-{seed}"),
        },
        REMEDIES[name],
    )
    assert isinstance(job, TrainJob)
    preprocessor = plan_training(job).preprocessor
    training = fit(job, hold(str(data / "train"), preprocessor))
    figures = {test: figures_of(training.run, hold(str(data / test), preprocessor)) for test in ("test", "equal")}
    print(f"{name}, {steps} steps, seed {seed}: {figures}", flush=True)
    return {
        "accuracy": figures["test"]["accuracy"],
        "macro F1": figures["test"]["macro_f1"],
        "macro F1, equally frequent": figures["equal"]["macro_f1"],
    }


def figures_of(run: Path, test: Held) -> Figures:
    """Accuracy and macro F1 of a training's last weights on a dataset."""
    return score(run, test, [sorted(FIELDS)])[ALL]


def markdown(found: Mapping[tuple[str, int], Sequence[Figures]], budgets: Sequence[int]) -> str:
    """The table: a line per remedy, three columns per budget."""
    figures = list(found[next(iter(found))][0])
    columns = [f"{steps:,} steps: {figure}" for steps in budgets for figure in figures]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in REMEDIES:
        cells = [told([of_seed[figure] for of_seed in found[name, steps]]) for steps in budgets for figure in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
