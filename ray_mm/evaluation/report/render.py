"""A report's content → one HTML file."""

from __future__ import annotations

from pathlib import Path

from ray_mm.evaluation.report import plots, tables
from ray_mm.evaluation.report.content import (
    ClassificationDetails,
    MapDetails,
    MultilabelDetails,
    ReconstructionDetails,
    RegressionDetails,
    ReportContent,
    RetrievalDetails,
)
from ray_mm.evaluation.report.frame import style, template
from ray_mm.evaluation.report.reconstructions import said_rows
from ray_mm.evaluation.report.tiles import tiles
from ray_mm.evaluation.report.words import WORDS
from ray_mm.storage import write_atomic


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the report, whole or not at all."""
    write_atomic(path, render(content))


def render(content: ReportContent) -> str:
    """The report as HTML."""
    details = content.details
    values: dict[str, object] = {
        "content": content,
        "words": WORDS[content.main],
        "style": style(),
        "presence": tables.presence_text(content.presence),
        "tiles": tiles(content),
        "summary": tables.summary(content),
        "subsets": tables.subset_table(content),
        "contributions": tables.contribution_rows(content),
        "classify": None,
        "multilabel": None,
        "regress": None,
        "retrieve": None,
        "reconstruct": None,
        "maps": None,
        "searches": [],
        "loss_plot": plots.loss_plot(content.curves) if content.curves else None,
        "metric_plot": plots.metric_plot(content.curves)
        if content.curves and content.curves.validation_metric
        else None,
    }
    if isinstance(details, ClassificationDetails):
        rows, left_out = tables.class_rows(details)
        values["classify"] = {
            "matrix": tables.matrix(details),
            "confusions": tables.confusions(details),
            "rows": rows,
            "left_out": left_out,
            "num_classes": len(details.classes),
            "reliability": plots.reliability_plot(details.bins),
            "confidence": plots.confidence_plot(details.bins),
        }
    elif isinstance(details, MultilabelDetails):
        rows, left_out = tables.class_rows(details)
        reliability = plots.reliability_plot(details.bins, of_classes=True)
        values["multilabel"] = {"rows": rows, "left_out": left_out, "reliability": reliability}
    elif isinstance(details, MapDetails):
        values["maps"] = tables.map_rows(details)
    elif isinstance(details, RetrievalDetails):
        values["retrieve"] = {"ways": tables.way_rows(details)}
        values["searches"] = [
            (
                "worst",
                "Worst searches",
                "Where the right one comes last: what do the two sides not tell?",
                details.worst,
            ),
            (
                "even",
                "Searches",
                "Taken evenly over the dataset, each with what it finds, the nearest first.",
                details.even,
            ),
        ]
    elif isinstance(details, ReconstructionDetails):
        values["reconstruct"] = {
            "fields": details.fields,
            "rows": said_rows(content, details),
            "worst": details.worst,
            "best": details.best,
        }
    elif isinstance(details, RegressionDetails):
        values["regress"] = {
            "scatter": plots.scatter_plot(details.true, details.predicted),
            "errors": plots.error_plot(details.true, details.predicted),
            "drawn": len(details.true),
        }
    return template("report.html").render(values)
