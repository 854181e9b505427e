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
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ingest
import torch

from ray_mm.config.load import load_job
from ray_mm.config.source import Source
from ray_mm.config.train import TrainJob
from ray_mm.data.epochs import Epochs
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.order import Shuffle
from ray_mm.data.reader import BatchReader, read_batches
from ray_mm.data.samples import open_planned, select_all
from ray_mm.evaluation.tasks import evaluated_task
from ray_mm.predictor import load_predictor
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from ray_mm.training.worker import run_worker

FRESH, PRETRAINED, ALL_LABELS = "fresh weights", "pretrained without labels", "fresh weights, all labels"
Figures = Mapping[str, float]


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
        found: dict[tuple[str, float, int], list[Figures]] = {}
        explained = []
        for seed in args.seeds:
            before = output / f"reconstruct-seed-{seed}"
            task = {"type": "reconstruct", "mask": args.mask}
            dropout = args.pretrain_dropout
            fit(job_of(scenario, data, before, task, seed, pretrain_steps, modality_dropout=dropout))
            explained.append(score(before, data / "test")[-1])
            print(f"{name}, seed {seed}: explained {explained[-1]}", flush=True)
            for share, arm in [
                *((share, arm) for share in args.shares for arm in (FRESH, PRETRAINED)),
                (1.0, ALL_LABELS),
            ]:
                folder = output / f"{arm.replace(' ', '-').replace(',', '')}-{share:g}-seed-{seed}"
                classify = {"type": "classify", "label": args.label or scenario.label}
                settings = {"train.init_from": str(before / "last")} if arm == PRETRAINED else {}
                job = job_of(scenario, data, folder, classify, seed, steps, share, settings)
                num_samples = fit(job).train.selections[0].num_samples
                *alone, together = (each["accuracy"] for each in score(folder, data / "test"))
                figures = {
                    "all fields": together,
                    **{f"{n} alone": a for n, a in zip(sorted(scenario.fields), alone, strict=True)},
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


def fit(job: TrainJob) -> Training:
    """Trains in this process, unless an earlier call has done just this."""
    done = Path(job.output) / "job.json"
    if done.is_file() and done.read_text() == job.model_dump_json():
        return plan_training(job)
    shutil.rmtree(job.output, ignore_errors=True)
    training = plan_training(job)
    attempt = begin_attempt(training.run, training.data_digest)
    run_worker(training, Ranks(0, 1, torch.device("cpu")), attempt, batches(training))
    done.write_text(job.model_dump_json())
    (*_, last) = read_metrics(training.run)
    print(f"  {training.run.name}: training loss {last['loss']:.4f}", flush=True)
    return training


def batches(training: Training) -> Iterator[LoadedBatch]:
    """Every batch, read in this process."""
    shuffle = training.job.data.shuffle
    mixed = Shuffle(training.job.seed, training.train.digest, shuffle.chunk_samples, shuffle.window_chunks)
    epochs = Epochs(open_planned(training.train), training.train, mixed)
    reader = BatchReader(epochs.datasets, training.preprocessor, training.quarantine)
    for number in range(training.schedule.num_items):
        item = training.schedule.item(number)
        places = epochs.places(item.start, item.stop, item.epoch)
        arrays, keys = reader.read(places, item.start, training.job.data.batch_size)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield LoadedBatch(item, tensors, keys, item.start, item.stop, wait_s=0.0)


def score(run: Path, folder: Path) -> list[Figures]:
    """The figures of a training's last weights, given each field alone, in the order of their names, then all of them."""
    predictor = load_predictor(run / "last", device="cpu")
    fields = predictor.input_fields
    subsets = [*(frozenset({name}) for name in fields), frozenset(fields)]
    task = evaluated_task(predictor)
    tally = task.tally(len(subsets))
    dataset, samples = select_all(Source(path=str(folder)), "data")
    for batch in read_batches(Epochs([dataset], samples, None), predictor.preprocessor, 256):
        rows = {**batch, **task.scored(predictor.outputs(batch, subsets), batch)}
        counted = task.counted(rows)
        tally.add({name: array[counted] for name, array in rows.items()})
    return [{name: value for name, value in found.items() if value is not None} for found in tally.metrics()]


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


def told(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
