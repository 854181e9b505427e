"""A train run's ``metrics.jsonl`` → the points of its learning curves, thinned to what a plot can show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mm.config.tasks import FIGURES

_MAX_POINTS = 240

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Learning curves: (step, value) pairs by rising step.

    Attributes:
        train_loss: means over neighbouring steps where there are too many to draw.
        validation_loss: once an epoch; empty without validation.
        validation_metric: the main figure of the task, such as the accuracy, once an epoch.
        metric: its name, or nothing.
        epochs: number of the last epoch that was written, counted from 1.
    """

    train_loss: Points
    validation_loss: Points
    validation_metric: Points
    metric: str
    epochs: int


def read_curves(checkpoint: Path, task: str = "") -> Curves | None:
    """The curves of the run that a checkpoint folder lies in; None if it lies in none, or nothing was written.

    Args:
        checkpoint: its folder.
        task: name of the task, where the model has several.
    """
    path = checkpoint.parent / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    # A run that was resumed has written some steps twice: the later line counts.
    records: dict[str, dict[int, Mapping[str, Any]]] = {"train": {}, "validation": {}}
    epochs = 0
    for line in lines:
        try:
            record = json.loads(line)
            records[record["kind"]][int(record["step"])] = record
            epochs = max(epochs, int(record.get("epoch", 0)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the last line of a run that was killed may be cut
    before = f"{task}." if task else ""
    mains = [figures.main for figures in FIGURES.values() if figures.main != "loss"]
    metric = next(
        (main for main in mains if any(before + main in record for record in records["validation"].values())), ""
    )
    curves = Curves(
        _points(records["train"], "loss"),
        _points(records["validation"], "loss"),
        _points(records["validation"], before + metric),
        metric,
        epochs,
    )
    return curves if curves.train_loss or curves.validation_loss else None


def _points(records: Mapping[int, Mapping[str, Any]], name: str) -> Points:
    found = [
        (float(step), float(record[name]))
        for step, record in sorted(records.items())
        if isinstance(record.get(name), (int, float)) and math.isfinite(record[name])
    ]
    stride = -(-len(found) // _MAX_POINTS)
    if stride <= 1:
        return tuple(found)
    groups = [found[start : start + stride] for start in range(0, len(found), stride)]
    return tuple((group[len(group) // 2][0], math.fsum(value for _, value in group) / len(group)) for group in groups)
