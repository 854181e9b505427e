"""The report's plots: learning curves, calibration, predicted against true, errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ray_mm.evaluation.metrics import Bin
from ray_mm.evaluation.report.curves import Curves
from ray_mm.evaluation.report.svg import Frame, Range, number, percent, picture, short_percent, span
from ray_mm.evaluation.report.words import WORDS

Floats = npt.NDArray[np.float64]

_FEW_DOTS = 300
_BINS = (5, 41)


def loss_plot(curves: Curves) -> Markup:
    """Training and validation loss over the steps."""
    points = (*curves.train_loss, *curves.validation_loss)
    values = sorted(value for _, value in points)
    # The first steps of a training may tower over everything else: the top of the plot is where 98% lie below.
    top = values[min(len(values) - 1, int(0.98 * len(values)))]
    low, high = span([*values[: int(0.98 * len(values)) + 1], top])
    frame = Frame(_steps(points), (max(0.0, low) if values[0] >= 0 else low, high))
    clipped = [(step, min(value, high)) for step, value in curves.train_loss]
    parts = [frame.axes("step", "loss"), frame.line(clipped, "line train")]
    parts += _with_dots(frame, [(step, min(value, high)) for step, value in curves.validation_loss])
    last = f", validation loss {number(curves.validation_loss[-1][1])}" if curves.validation_loss else ""
    end = f"training loss {number(curves.train_loss[-1][1])}" if curves.train_loss else ""
    return picture(parts, f"Loss over the training steps; at the end {end}{last}.")


def metric_plot(curves: Curves) -> Markup:
    """The validation metric over the steps."""
    points = curves.validation_metric
    low, high = span(value for _, value in points)
    words = WORDS[curves.metric]
    share = words.is_share
    frame = Frame(
        _steps((*points, *curves.train_loss)), (max(0.0, low), min(1.0, high)) if share else (max(0.0, low), high)
    )
    show = short_percent if share else number
    parts = [frame.axes("step", f"validation {words.heading}", y_format=show), *_with_dots(frame, points)]
    final = percent(points[-1][1]) if share else number(points[-1][1])
    return picture(parts, f"Validation {words.name} over the training steps; {final} at the end.")


def reliability_plot(bins: Sequence[Bin], of_classes: bool = False) -> Markup:
    """Accuracy over confidence: bars on the dashed diagonal are trustworthy, bars below it are over-confident.

    Args:
        bins: that hold something.
        of_classes: whether they are of each class's probability, and not of the predicted one's alone.
    """
    what, certain, right = ("samples", "confidence", "accuracy")
    if of_classes:
        what, certain, right = ("pairs of sample and class", "probability", "share that has the class")
    frame = Frame((0.0, 1.0), (0.0, 1.0), height=300)
    parts = [frame.axes(certain, right, short_percent, short_percent)]
    for each in bins:
        tip = (
            f"{each.count:,} {what} with {certain} {percent(each.low)} to {percent(each.high)}: "
            f"mean {certain} {percent(each.confidence)}, {right} {percent(each.accuracy)}"
        )
        parts.append(frame.bar(each.low, each.high, each.accuracy, "bar", tip))
    parts.append(frame.line([(0, 0), (1, 1)], "line reference"))
    parts.append(frame.dots([(each.confidence, each.accuracy) for each in bins], "validation", 2.5))
    return picture(
        parts,
        f"{right[0].upper()}{right[1:]} in each bin of {certain}, with the diagonal of perfect calibration.",
        height=300,
    )


def confidence_plot(bins: Sequence[Bin]) -> Markup:
    """How many samples have which confidence."""
    total = sum(each.count for each in bins)
    highest = max(each.count for each in bins) / total
    frame = Frame((0.0, 1.0), (0.0, highest * 1.08), height=300)
    parts = [frame.axes("confidence", "share of samples", short_percent, short_percent)]
    for each in bins:
        tip = f"{each.count:,} samples with confidence {percent(each.low)} to {percent(each.high)}"
        parts.append(frame.bar(each.low, each.high, each.count / total, "bar", tip))
    mean = sum(each.confidence * each.count for each in bins) / total
    accuracy = sum(each.accuracy * each.count for each in bins) / total
    for value, css in ((mean, "line mark"), (accuracy, "line reference")):
        parts.append(frame.line([(value, 0), (value, highest * 1.08)], css))
    return picture(
        parts,
        f"Histogram of the confidence; its mean is {percent(mean)}, the accuracy is {percent(accuracy)}.",
        height=300,
    )


def scatter_plot(true: Floats, predicted: Floats) -> Markup:
    """Predicted over true values, with the diagonal of perfect prediction."""
    low, high = span([*true.tolist(), *predicted.tolist()])
    frame = Frame((low, high), (low, high), height=300)
    parts = [
        frame.axes("true value", "predicted value"),
        frame.line([(low, low), (high, high)], "line reference"),
        # Few dots are large enough to be seen one by one; of many, the dense places must show.
        frame.dots(
            list(zip(true.tolist(), predicted.tolist(), strict=True)),
            "sample few" if len(true) <= _FEW_DOTS else "sample",
            4 if len(true) <= _FEW_DOTS else 2.5,
        ),
    ]
    return picture(parts, "Predicted over true values, with the diagonal of perfect prediction.", height=300)


def error_plot(true: Floats, predicted: Floats) -> Markup:
    """Histogram of predicted less true."""
    errors = predicted - true
    reach = float(np.abs(errors).max()) or 1.0
    counts, edges = np.histogram(errors, bins=_num_bins(errors, 2 * reach), range=(-reach, reach))
    shares = counts / max(len(errors), 1)
    frame = Frame((-reach, reach), (0.0, float(shares.max()) * 1.08), height=300)
    parts = [frame.axes("predicted − true", "share of samples", y_format=short_percent)]
    for low, high, share in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True):
        if share:
            parts.append(frame.bar(low, high, share, "bar", f"{number(low)} to {number(high)}: {percent(share)}"))
    parts.append(frame.line([(0, 0), (0, float(shares.max()) * 1.08)], "line reference"))
    return picture(parts, f"Histogram of the errors; their median is {number(float(np.median(errors)))}.", height=300)


def _num_bins(values: Floats, reach: float) -> int:
    """Bins as wide as the number of values deserves (Freedman and Diaconis 1981); odd, so that one is centred on 0."""
    low, high = np.percentile(values, (25, 75))
    width = 2 * float(high - low) / np.cbrt(len(values))
    wanted = reach / width if width > 0 else 1.0
    return int(min(max(wanted, _BINS[0]), _BINS[1])) // 2 * 2 + 1


def _steps(points: Sequence[tuple[float, float]]) -> Range:
    low, high = min(step for step, _ in points), max(step for step, _ in points)
    return (0.0 if low < 0.2 * high else low, high) if high > low else (low - 1, high + 1)


def _with_dots(frame: Frame, points: Sequence[tuple[float, float]]) -> list[Markup]:
    if not points:
        return []
    parts = [frame.line(points, "line validation")]
    return [*parts, frame.dots(points, "validation", 2.5)] if len(points) <= 60 else parts
