"""Names and units of the figures in ``result.json``, for people; docs/jobs.md explains each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Format = Callable[[float], str]


def plain(value: float) -> str:
    """A number without a unit: whole, or four digits."""
    if isinstance(value, int) or (abs(value) >= 100 and float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(value: float) -> str:
    """A share, such as ``98.7%``."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares, such as ``0.4 points``."""
    return f"{100 * value:.1f} points"


def times(value: float) -> str:
    """A ratio of speeds, such as ``2.41×``."""
    return f"{value:.2f}×"


def rate(value: float) -> str:
    """Samples per second, such as ``312/s``."""
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"


def size(value: float) -> str:
    """Bytes, such as ``1.3 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} bytes"


FIGURES: dict[str, tuple[str, Format]] = {
    "accuracy": ("accuracy", percent),
    "macro_f1": ("macro F1", percent),
    "micro_f1": ("micro F1", percent),
    "map": ("mean average precision (mAP)", percent),
    "ece": ("calibration error (ECE)", percent),
    "log_loss": ("log loss", plain),
    "recall_at_1": ("recall at 1", percent),
    "recall_at_5": ("recall at 5", percent),
    "recall_at_10": ("recall at 10", percent),
    "mrr": ("mean reciprocal rank (MRR)", percent),
    "median_rank": ("median rank", plain),
    "num_queries": ("queries", plain),
    "num_candidates": ("candidates", plain),
    "miou": ("mean IoU", percent),
    "iou": ("IoU", percent),
    "pixel_accuracy": ("cells that are right", percent),
    "mae": ("mean absolute error (MAE)", plain),
    "rmse": ("root mean squared error (RMSE)", plain),
    "r2": ("R², share of the variation explained", percent),
    "r2_alone": ("R² of all given it alone", percent),
    "r2_added": ("R² of all that it adds", points),
    "accuracy_alone": ("accuracy given it alone", percent),
    "accuracy_added": ("what it adds to the others", points),
    "micro_f1_alone": ("micro F1 given it alone", percent),
    "micro_f1_added": ("what it adds to the others", points),
    "miou_alone": ("mean IoU given it alone", percent),
    "miou_added": ("what it adds to the others", points),
    "mae_alone": ("MAE given it alone", plain),
    "mae_added": ("what it takes off the others' MAE", plain),
    "loss_alone": ("loss given it alone", plain),
    "loss_added": ("what it takes off the others' loss", plain),
    "coverage": ("samples with any of them", percent),
    "loss": ("validation loss", plain),
    "train_loss": ("training loss at the end", plain),
    "best_step": ("best checkpoint at step", plain),
    "steps": ("steps", plain),
    "num_samples": ("samples scored", plain),
    "num_rows": ("samples", plain),
    "num_predicted": ("samples predicted", plain),
    "num_without_fields": ("of them without any of the fields", plain),
    "num_files": ("files", plain),
    "num_quarantined": ("unreadable samples", plain),
    "num_unlabelled": ("samples without the label", plain),
    "num_shards": ("shards", plain),
    "num_empty": ("rows without any field, left out", plain),
    "samples_per_s": ("samples per second", rate),
    "samples_per_second": ("samples per second", rate),
    "data_wait": ("time spent waiting for data", percent),
    "starts": ("starts of the workers", plain),
    "size_bytes": ("size", size),
    "size_ratio": ("size, relative to the original", percent),
    "metric": ("metric that the gate watches", plain),
    "num_new_samples": ("new samples", plain),
    "num_new_shards": ("new shards", plain),
    "num_set_aside": ("shards set aside", plain),
    "metric_drop": ("drop of that metric", percent),
    "speedup_p50": ("speed-up, the smallest over the batch sizes", times),
    "gate": ("gate", plain),
    "best_trial": ("the best trial", plain),
    "best_epoch": ("its best epoch", plain),
    "num_trials": ("trials", plain),
    "num_stopped": ("stopped early", plain),
    "num_failed": ("failed", plain),
    "num_epochs": ("epochs trained, of all trials together", plain),
    "num_quantized": ("operators on 8-bit integers", plain),
    "num_float": ("operators left in floating point", plain),
    "error": ("error", plain),
}
"""Key in ``metrics`` → what it is called, and how its value is written."""


def label(name: str) -> str:
    """What a figure is called; ``r2/<field>`` is that of a field, ``<task>.<figure>`` that of one of several tasks."""
    task, dot, figure = name.rpartition(".")
    if dot and figure in FIGURES:
        return f"{task}: {FIGURES[figure][0]}"
    figure, _, field = name.partition("/")
    if figure == "r2" and field:
        return f"R² of {field}"
    return FIGURES[name][0] if name in FIGURES else name.replace("_", " ")


def text(name: str, value: Any) -> str:
    """A figure's value with its unit; – where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    figure = "r2" if name.startswith("r2/") else name.rpartition(".")[2]
    return FIGURES[figure][1](value) if figure in FIGURES else plain(value)
