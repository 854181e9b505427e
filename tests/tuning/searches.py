"""Small searches for tests: job contents, and trials that were never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_mm.config.load import load_job
from ray_mm.config.tune import TuneJob
from ray_mm.storage import write_json
from ray_mm.tuning.table import State, Table

LR = {"log_uniform": [1e-4, 1e-1]}


def tune_job(folder: Path, search: dict[str, Any] | None = None, **overrides: Any) -> TuneJob:
    """A search over a small training on the datasets ``train`` and ``validation`` in a folder."""
    content: dict[str, Any] = {
        "kind": "tune",
        "name": "small-search",
        "job": {
            "kind": "train",
            "name": "small",
            "data": {"train": str(folder / "train"), "validation": str(folder / "validation"), "batch_size": 32},
            "model": {
                "fields": {"vector": {}},
                "fusion": {"method": "gated", "dim": 16},
                "task": {"type": "classify", "label": "label"},
            },
            "train": {"epochs": 4},
            "output": str(folder / "unused"),
        },
        "search": search or {"train.optimizer.lr": LR},
        "trials": 3,
        "output": str(folder / "search"),
    }
    job = load_job(content, overrides)
    assert isinstance(job, TuneJob)
    return job


def validation(epoch: int, accuracy: float, loss: float = 1.0) -> dict[str, Any]:
    """A line of a training's metrics."""
    return {
        "kind": "validation",
        "step": 10 * epoch,
        "epoch": epoch,
        "loss": loss,
        "accuracy": accuracy,
        "num_samples": 40,
    }


def make_table(job: TuneJob, curves: list[list[float]], states: list[State] | None = None) -> Table:
    """A table of trials with these accuracies after each epoch, all done where nothing else is said."""
    Path(job.output).mkdir(parents=True, exist_ok=True)
    table = Table(job, Path(job.output))
    from ray_mm.tuning.draw import next_settings

    for number, curve in enumerate(curves, 1):
        trial = table.begin(next_settings(job, table))
        run = table.run(trial)
        run.mkdir(parents=True)
        write_json(run / "job.json", {})
        for epoch, accuracy in enumerate(curve, 1):
            table.add_validation(number, validation(epoch, accuracy))
        state = State.DONE if states is None else states[number - 1]
        if state is not State.BEGUN:
            stopped = state is State.STOPPED
            table.settle(number, state, "" if state is State.DONE else "because", len(curve) if stopped else None)
    return table
