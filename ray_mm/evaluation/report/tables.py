"""The rows of the report's tables: subsets of fields, what each field adds, classes, confusions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from ray_mm.evaluation.report.content import (
    ClassificationDetails,
    LabelFigures,
    MapDetails,
    MultilabelDetails,
    ReportContent,
    RetrievalDetails,
    SubsetScore,
)
from ray_mm.evaluation.report.masks import legend
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.evaluation.report.words import SHARES, WORDS

MAX_MATRIX = 20
"""More classes than this make a matrix that nobody can read."""

_MAX_CLASSES = 20
_MAX_CONFUSIONS = 8
_MAX_SUBSETS = 24


@dataclass(frozen=True)
class SubsetRow:
    """A bar: ``share`` of the width that it fills, 0 … 1; ``first``: of those with more fields than the rows before."""

    fields: tuple[str, ...]
    share: float
    text: str
    change: str
    covered: str
    full: bool
    first: bool


@dataclass(frozen=True)
class SubsetTable:
    """Bars over the subsets, and where the baseline stands among them."""

    fields: tuple[str, ...]
    rows: tuple[SubsetRow, ...]
    more: tuple[SubsetRow, ...]
    baseline_share: float
    baseline_text: str


def subset_table(content: ReportContent) -> SubsetTable:
    """The subsets by number of fields; of very many, singles, leave-one-outs and the full set come first."""
    is_share = WORDS[content.main].is_share
    values = [_value(score, content.main) for score in content.subsets]
    baseline = float(content.baseline[content.main] or 0.0)
    top = 1.0 if is_share else max([*values, baseline]) * 1.05 or 1.0
    full = content.subsets[-1]
    whole = _value(full, content.main)
    rows = [
        SubsetRow(
            score.fields,
            max(value / top, 0.0),
            metric_text(content.main, value),
            "" if score is full else _change(value - whole, is_share),
            "" if score.coverage == 1 else f"{percent(score.coverage)} of the samples have any of it",
            score is full,
            before is not None and len(before.fields) < len(score.fields),
        )
        for before, score, value in zip([None, *content.subsets], content.subsets, values, strict=False)
    ]
    shown = rows
    if len(rows) > _MAX_SUBSETS:
        count = len(full.fields)
        shown = [row for row in rows if len(row.fields) in (1, count - 1, count)]
    return SubsetTable(
        full.fields,
        tuple(shown),
        tuple(row for row in rows if row not in shown),
        max(min(baseline / top, 1.0), 0.0),
        metric_text(content.main, baseline),
    )


@dataclass(frozen=True)
class ContributionRow:
    """What a field adds: ``share`` of the longest bar, signed."""

    field: str
    share: float
    text: str


def contribution_rows(content: ReportContent) -> list[ContributionRow]:
    """By falling contribution."""
    shares = content.contributions or {}
    longest = max((abs(value) for value in shares.values()), default=0.0) or 1.0
    return [
        ContributionRow(name, value / longest, _change(value, WORDS[content.main].is_share))
        for name, value in sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    ]


@dataclass(frozen=True)
class ClassRow:
    """One class; ``None`` where a figure does not exist."""

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None = None


def class_rows(details: ClassificationDetails | MultilabelDetails) -> tuple[list[ClassRow], int]:
    """The classes that occur or are predicted, and how many of them are left out: of many, the lowest F1 are shown."""
    rows = [
        ClassRow(
            name,
            figures.support,
            figures.precision,
            figures.recall,
            figures.f1,
            figures.average_precision if isinstance(figures, LabelFigures) else None,
        )
        for name, figures in zip(details.classes, details.figures, strict=True)
        if figures.f1 is not None
    ]
    if len(rows) <= _MAX_CLASSES:
        return rows, 0
    lowest = sorted(rows, key=lambda row: (row.f1 or 0.0, -row.support, row.name))[:_MAX_CLASSES]
    return lowest, len(rows) - len(lowest)


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another: samples, and their share of the true class."""

    true: str
    predicted: str
    count: int
    share: str


def confusions(details: ClassificationDetails) -> list[Confusion]:
    """The most frequent mistakes."""
    if details.confusion is None:
        return []
    found = []
    for true, row in enumerate(details.confusion.tolist()):
        found += [(count, true, predicted) for predicted, count in enumerate(row) if count and predicted != true]
    found.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [
        Confusion(
            details.classes[true],
            details.classes[predicted],
            count,
            percent(count / int(details.confusion[true].sum())),
        )
        for count, true, predicted in found[:_MAX_CONFUSIONS]
    ]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix. ``shade``: 0 … 1."""

    count: int
    shade: float
    tip: str
    diagonal: bool


def matrix(details: ClassificationDetails) -> list[tuple[str, list[Cell]]] | None:
    """A row of cells per true class; None where there are too many classes to read."""
    if details.confusion is None or len(details.classes) > MAX_MATRIX:
        return None
    rows = []
    for true, counts in enumerate(details.confusion.tolist()):
        total = max(sum(counts), 1)
        cells = [
            Cell(
                count,
                # Few mistakes must still be seen: their shade grows with the root of their share.
                count / total if true == predicted else math.sqrt(count / total),
                f"true {details.classes[true]}, predicted {details.classes[predicted]}: {count:,} ({percent(count / total)})",
                true == predicted,
            )
            for predicted, count in enumerate(counts)
        ]
        rows.append((details.classes[true], cells))
    return rows


def way_rows(details: RetrievalDetails) -> list[tuple[str, ...]]:
    """Of each way: by what, among what, queries, candidates, and the figures as texts."""
    return [
        (
            way.query,
            way.candidate,
            f"{way.num_queries:,}",
            f"{way.num_candidates:,}",
            *(metric_text(name, way.figures[name]) for name in ("recall_at_1", "recall_at_5", "recall_at_10", "mrr")),
            figure(way.figures["median_rank"]),
        )
        for way in details.ways
    ]


@dataclass(frozen=True)
class MapRow:
    """The cells of one class; ``legend``: its colour and its name."""

    legend: Markup
    share: str
    predicted: str
    iou: float | None


def map_rows(details: MapDetails) -> list[MapRow]:
    """A row for each class that occurs or is predicted."""
    total = max(sum(figures.support for figures in details.figures), 1)
    return [
        MapRow(
            legend(details.classes, [number]), percent(each.support / total), percent(each.predicted / total), each.iou
        )
        for number, each in enumerate(details.figures)
        if each.iou is not None
    ]


def summary(content: ReportContent) -> str:
    """Two sentences that say what the figures mean."""
    words = WORDS[content.main]
    full = metric_text(content.main, content.metrics[content.main])
    baseline = metric_text(content.main, content.baseline[content.main])
    singles = [score for score in content.subsets if len(score.fields) == 1]
    inputs = content.subsets[-1].fields
    who = "The model" if len(inputs) == 1 else f"With all {len(inputs)} fields the model"
    more = ""
    if len(content.subsets) > 1:
        best = (max if words.is_share else min)(singles, key=lambda score: _value(score, content.main))
        alone = metric_text(content.main, best.metrics[content.main])
        more = f"; with its best single field, {best.fields[0]}, {words.preposition}{' ' if words.preposition else ''}{alone}"
    if isinstance(content.details, RetrievalDetails):
        who = "The model"
    return f"{who} {words.verb} {full}{words.object}{more}. {words.always} {words.constant} {baseline}."


def presence_text(presence: dict[str, float]) -> str:
    """Which fields are not always there."""
    rare = [f"{name} in {percent(share)}" for name, share in presence.items() if 0 < share < 1]
    never = [name for name, share in presence.items() if share == 0]
    parts = [f"fields present: {', '.join(rare)}"] if rare else []
    parts += [f"in no sample: {', '.join(never)}"] if never else []
    return "; ".join(parts) or "every field is always present"


def metric_text(name: str, value: float | None) -> str:
    """A metric as it is shown."""
    if value is None:
        return "–"
    return percent(value) if name in SHARES else figure(value)


def _value(score: SubsetScore, metric: str) -> float:
    return float(score.metrics[metric] or 0.0)


def _change(value: float, points: bool) -> str:
    text = f"{100 * abs(value):.1f}" if points else figure(abs(value))
    sign = "±" if float(text.replace(",", "").replace("−", "-")) == 0 else "+" if value > 0 else "−"
    return f"{sign}{text}{' points' if points else ''}"
