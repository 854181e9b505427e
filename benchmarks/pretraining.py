"""What pretraining without labels is worth where labels are few: real data, a tenth of the labels, with fresh weights and with
the encoders of an autoencoder that has seen all training samples.

    ray-mm run jobs/avdigits/preprocess.yaml       (and jobs/radhar/preprocess.yaml; their first lines say what they need)
    python benchmarks/pretraining.py --docs docs/results.md

Each seed decides the first weights and the order of the samples, of the autoencoder too. The samples with labels are the same in
all trainings (``data.train.fraction``), and so are steps, batches and all settings but ``train.init_from``. Models are scored at
their end on the test split, with all fields and with each alone; nothing is chosen by it. The loop is that of a training, without
Ray, whose start would take longer than the training itself. What an earlier call has trained is not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ingest
import torch
from inprocess import Figures, Held, finished, fit, hold, keep, score, told

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training

FRESH, PRETRAINED, ALL_LABELS = "fresh weights", "pretrained without labels", "fresh weights, all labels"


@dataclass(frozen=True)
class Scenario:
    """A folder in jobs/.

    Attributes:
        fields: of the model, with their encoders.
        label: that is predicted.
        batch_size: of all trainings.
        steps: of a training with labels.
        pretrain_steps: of the autoencoder.
    """

    fields: Mapping[str, Mapping[str, Any]]
    label: str
    batch_size: int
    steps: int
    pretrain_steps: int


SCENARIOS = {
    "avdigits": Scenario({"image": {"encoder": "cnn"}, "audio": {"encoder": "mel_cnn"}}, "digit", 32, 150, 800),
    "radhar": Scenario(
        {"points": {"encoder": "pointnet"}, "motion": {"encoder": "recurrent"}}, "activity", 32, 150, 800
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=sorted(SCENARIOS))
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder with <scenario>/train and <scenario>/test"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/pretraining"), help="folder for the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.01], help="of the samples that have labels")
    parser.add_argument("--steps", type=int, help="of a training with labels")
    parser.add_argument("--pretrain-steps", type=int, help="of the autoencoder")
    parser.add_argument("--label", help="that is predicted, if the data have another one")
    parser.add_argument("--mask", type=float, default=0.5, help="model.task.mask of the autoencoder")
    parser.add_argument("--pretrain-dropout", type=float, default=0.5, help="train.modality_dropout of the autoencoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="page to write the tables into")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tables = []
    for name in args.only:
        scenario, data, output = SCENARIOS[name], args.data / name, args.output / name
        steps, pretrain_steps = args.steps or scenario.steps, args.pretrain_steps or scenario.pretrain_steps
        fields, classify = sorted(scenario.fields), {"type": "classify", "label": args.label or scenario.label}
        plan = plan_training(job_of(scenario, data, output / "plan", classify, 0, steps))
        samples = {part: hold(str(data / part), plan.preprocessor) for part in ("train", "test")}
        found: dict[tuple[str, float, int], list[Figures]] = {}
        explained = []
        for seed in args.seeds:
            before = output / f"reconstruct-seed-{seed}"
            task = {"type": "reconstruct", "mask": args.mask}
            dropout = args.pretrain_dropout
            trained(
                job_of(scenario, data, before, task, seed, pretrain_steps, modality_dropout=dropout), samples["train"]
            )
            explained.append(figures_of(before, samples["test"], fields)[-1])
            print(f"{name}, seed {seed}: explained {explained[-1]}", flush=True)
            for share, arm in [
                *((share, arm) for share in args.shares for arm in (FRESH, PRETRAINED)),
                (1.0, ALL_LABELS),
            ]:
                folder = output / f"{arm.replace(' ', '-').replace(',', '')}-{share:g}-seed-{seed}"
                settings = {"train.init_from": str(before / "last")} if arm == PRETRAINED else {}
                job = job_of(scenario, data, folder, classify, seed, steps, share, settings)
                num_samples = trained(job, samples["train"])
                *alone, together = (each["accuracy"] for each in figures_of(folder, samples["test"], fields))
                figures = {
                    "all fields": together,
                    **{f"{n} alone": a for n, a in zip(fields, alone, strict=True)},
                }
                found.setdefault((arm, share, num_samples), []).append(figures)
                print(f"{name}, {arm}, {share:g} of the labels, seed {seed}: {figures}", flush=True)
        tables.append(
            f"**{name}**: {steps:,} steps with labels, {pretrain_steps:,} without.\n\n{markdown(found, explained)}"
        )
    section = "\n\n".join(tables)
    print(section)
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "pretraining", section))


def job_of(
    scenario: Scenario,
    data: Path,
    output: Path,
    task: Mapping[str, Any],
    seed: int,
    steps: int,
    share: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    modality_dropout: float = 0.2,
) -> TrainJob:
    """A training of one long epoch, in which the samples come round again and again."""
    job = load_job(
        {
            "kind": "train",
            "name": "pretraining",
            "data": {
                "train": {"path": str(data / "train"), **({"fraction": share} if share < 1 else {})},
                "batch_size": scenario.batch_size,
                "epoch_samples": steps * scenario.batch_size,
            },
            "model": {
                "fields": {name: dict(encoder) for name, encoder in scenario.fields.items()},
                "fusion": {"method": "gated", "dim": 128},
                "task": dict(task),
            },
            "train": {"epochs": 1, "modality_dropout": modality_dropout},
            "seed": seed,
            "output": str(output),
        },
        dict(settings or {}),
    )
    assert isinstance(job, TrainJob)
    return job


def trained(job: TrainJob, data: Held) -> int:
    """Trains, unless an earlier call has done just this; returns the number of samples that it draws from."""
    done = finished(job, "trained")
    if done is None:
        training = fit(job, data)
        (*_, last) = read_metrics(training.run)
        print(f"  {training.run.name}: training loss {last['loss']:.4f}", flush=True)
        done = {"num_samples": training.train.selections[0].num_samples}
        keep(job, done, "trained")
    return int(done["num_samples"])


def figures_of(run: Path, test: Held, fields: Sequence[str]) -> list[Figures]:
    """The figures of a training's last weights, given each field alone, in the order of their names, then all of them."""
    return [*score(run, test, [*([field] for field in fields), fields]).values()]


def markdown(found: Mapping[tuple[str, float, int], Sequence[Figures]], explained: Sequence[Figures]) -> str:
    """The table: a line for each way of beginning and number of labels; and what the autoencoder came to."""
    names = list(next(iter(found.values()))[0])
    lines = [
        f"| labels | begins with | {' | '.join(f'accuracy, {name}' for name in names)} |",
        f"|---:|---|{'---:|' * len(names)}",
    ]
    for (arm, share, num_samples), figures in found.items():
        cells = [told([each[name] for each in figures]) for name in names]
        lines.append(f"| {num_samples:,} ({100 * share:g}%) | {arm} | {' | '.join(cells)} |")
    parts = [f"{name.partition('/')[2] or 'mean'} {told([each[name] for each in explained])}" for name in explained[0]]
    return "\n".join([*lines, "", f"R² of the reconstruction on the test split, given all fields: {', '.join(parts)}."])


if __name__ == "__main__":
    main()
