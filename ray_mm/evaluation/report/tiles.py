"""The headline figures of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_mm.evaluation.report.content import (
    ClassificationDetails,
    MapDetails,
    MultilabelDetails,
    ReconstructionDetails,
    RegressionDetails,
    ReportContent,
    RetrievalDetails,
)
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.evaluation.report.tables import metric_text

_MAX_TILES = 4


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    name: str
    text: str
    note: str


def tiles(content: ReportContent) -> list[Tile]:
    """The headline figures."""
    metrics = content.metrics
    if isinstance(content.details, ClassificationDetails):
        low, high = content.details.interval
        occurring = sum(figures.support > 0 for figures in content.details.figures)
        return [
            Tile(
                "Accuracy",
                metric_text("accuracy", metrics["accuracy"]),
                f"95% interval {percent(low)} to {percent(high)}",
            ),
            Tile("Macro F1", metric_text("macro_f1", metrics["macro_f1"]), "mean over the classes, each counts alike"),
            Tile("Calibration error", metric_text("ece", metrics["ece"]), "mean gap between confidence and accuracy"),
            Tile(
                "Log loss",
                metric_text("log_loss", metrics["log_loss"]),
                f"guessing would cost {figure(math.log(occurring))}",
            ),
        ]
    if isinstance(content.details, MultilabelDetails):
        return _multilabel_tiles(content, content.details)
    if isinstance(content.details, RetrievalDetails):
        return _retrieval_tiles(content, content.details)
    if isinstance(content.details, ReconstructionDetails):
        return _reconstruction_tiles(content, content.details)
    if isinstance(content.details, MapDetails):
        return _map_tiles(content)
    baseline = figure(float(content.baseline["mae"] or 0))
    return [
        _regression_tile(content, "Mean absolute error", "mae", f"{baseline} for a constant prediction"),
        _regression_tile(content, "Root mean squared error", "rmse", "large errors weigh more"),
        _regression_tile(content, "R²", "r2", "share of the variation that is explained"),
    ]


def _retrieval_tiles(content: ReportContent, details: RetrievalDetails) -> list[Tile]:
    tiles = []
    for name, title in (
        ("recall_at_1", "Recall at 1"),
        ("recall_at_5", "Recall at 5"),
        ("recall_at_10", "Recall at 10"),
        ("mrr", "MRR"),
    ):
        low, high = details.intervals[name]
        chance = metric_text(name, content.baseline[name])
        tiles.append(
            Tile(
                title,
                metric_text(name, content.metrics[name]),
                f"95% interval {percent(low)} to {percent(high)}; {chance} by chance",
            )
        )
    return tiles


def _reconstruction_tiles(content: ReportContent, details: ReconstructionDetails) -> list[Tile]:
    several = len(details.fields) > 1
    mean = [Tile("R²", metric_text("r2", content.metrics["r2"]), "mean over the fields")] if several else []
    return [
        *mean,
        *(
            Tile(
                f"R² of {name}",
                metric_text("r2", content.metrics[f"r2/{name}"]),
                "share of the variation that is explained",
            )
            for name in details.fields[:_MAX_TILES]
        ),
        Tile("Mean squared error", figure(details.loss), "of standardised values, mean over the fields"),
    ]


def _map_tiles(content: ReportContent) -> list[Tile]:
    metrics, baseline = content.metrics, content.baseline
    return [
        Tile("Mean IoU", metric_text("miou", metrics["miou"]), "mean over the classes, each counts alike"),
        Tile(
            "Cells that are right",
            metric_text("pixel_accuracy", metrics["pixel_accuracy"]),
            f"{metric_text('pixel_accuracy', baseline['pixel_accuracy'])} are of the most frequent class",
        ),
        Tile(
            "Log loss",
            metric_text("log_loss", metrics["log_loss"]),
            "mean over the cells of a sample, then the samples",
        ),
    ]


def _multilabel_tiles(content: ReportContent, details: MultilabelDetails) -> list[Tile]:
    metrics, baseline = content.metrics, content.baseline
    note = "all classes together, predicted from ½ on"
    if details.interval is not None:
        low, high = details.interval
        note = f"95% interval {percent(low)} to {percent(high)}; {note}"
    return [
        Tile("Micro F1", metric_text("micro_f1", metrics["micro_f1"]), note),
        Tile("Macro F1", metric_text("macro_f1", metrics["macro_f1"]), "mean over the classes, each counts alike"),
        Tile(
            "Mean average precision",
            metric_text("map", metrics["map"]),
            f"{metric_text('map', baseline['map'])} if all samples looked alike",
        ),
        Tile("Calibration error", metric_text("ece", metrics["ece"]), "mean gap between probability and share"),
        Tile(
            "Log loss",
            metric_text("log_loss", metrics["log_loss"]),
            f"mean over the classes; a sample has {details.classes_per_sample:.3g} of {len(details.classes)}",
        ),
    ]


def _regression_tile(content: ReportContent, name: str, metric: str, note: str) -> Tile:
    assert isinstance(content.details, RegressionDetails)
    interval = content.details.intervals.get(metric)
    if interval is not None:
        low, high = (metric_text(metric, edge) for edge in interval)
        note = f"95% interval {low} to {high}; {note}"
    return Tile(name, metric_text(metric, content.metrics[metric]), note)
