"""Figures of merit from sums that can be merged: batch after batch, actor after actor, in any order.

    per-sample outputs [S, N] ─*_sums→ sums ─merge→ sums ─*_metrics→ {"accuracy": …} for each of S subsets of fields

Merging is exact: any order and any partition of the samples give the same sums to the last bit, and so the same metrics.
Counts are integers. Confidences and logarithms are rounded once, sample by sample, to a multiple of 2^-28 (below 2e-9) and
added as integers. The terms of a regression, of any magnitude, are added as integers in units of the smallest double.

Shapes: S subsets of fields, N samples, C classes, B confidence bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ray_mm.class_scores import f1_score, macro_f1

NUM_BINS = 15
"""Confidence bins of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""

PROBABILITY_FLOOR = float(np.finfo(np.float32).eps)
"""A probability below this counts as this in the logarithm: float32 softmax rounds smaller ones to 0."""

FIXED_POINT = 1 << 28  # a term of the log loss is at most 16 = 2^4: int64 holds the sum of 2^31 samples

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Metrics: TypeAlias = dict[str, float | None]


@dataclass(frozen=True)
class ClassificationSums:
    """What the figures of a classification need, for S subsets at once.

    Attributes:
        hits: int64 [S, C], samples of a class that were predicted as it.
        predicted: int64 [S, C], samples that were predicted as a class.
        support: int64 [C], samples of a class.
        bin_count: int64 [S, B], samples whose confidence lies in ((b)/B, (b+1)/B].
        bin_hits: int64 [S, B], those of them that were right.
        bin_confidence: int64 [S, B], sum of their confidences in units of 2^-28.
        log_loss: int64 [S], sum of -ln(probability of the true class) in units of 2^-28.
    """

    hits: Ints
    predicted: Ints
    support: Ints
    bin_count: Ints
    bin_hits: Ints
    bin_confidence: Ints
    log_loss: Ints

    @property
    def num_samples(self) -> int:
        """Samples that were added."""
        return int(self.support.sum())


def no_classification_sums(num_subsets: int, num_classes: int) -> ClassificationSums:
    """The sums of no sample."""
    per_class, per_bin = (num_subsets, num_classes), (num_subsets, NUM_BINS)
    shapes = (per_class, per_class, (num_classes,), per_bin, per_bin, per_bin, (num_subsets,))
    return ClassificationSums(*(np.zeros(shape, np.int64) for shape in shapes))


def classification_sums(
    labels: npt.ArrayLike,
    predictions: npt.ArrayLike,
    confidence: npt.ArrayLike,
    true_probability: npt.ArrayLike,
    num_classes: int,
) -> ClassificationSums:
    """The sums of some samples.

    Args:
        labels: class numbers [N].
        predictions: class numbers [S, N].
        confidence: probability of the predicted class [S, N].
        true_probability: probability of the true class [S, N].
        num_classes: C.
    """
    true = np.asarray(labels, np.int64)
    predicted = np.asarray(predictions, np.int64)
    certain = np.asarray(confidence, np.float64)
    num_subsets = len(predicted)
    right = predicted == true
    bins = bin_numbers(certain)
    row = np.arange(num_subsets)[:, None]

    def binned(values: npt.NDArray[np.generic]) -> Ints:
        sums = np.zeros((num_subsets, NUM_BINS), np.int64)
        np.add.at(sums, (row, bins), values)
        return sums

    return ClassificationSums(
        hits=_counts(np.where(right, true, -1), num_classes),
        predicted=_counts(predicted, num_classes),
        support=_counts(true[None], num_classes)[0],
        bin_count=binned(np.ones_like(bins)),
        bin_hits=binned(right),
        bin_confidence=binned(fixed_point(certain)),
        log_loss=fixed_point(sample_log_loss(true_probability)).sum(axis=1),
    )


def merge_classification(a: ClassificationSums, b: ClassificationSums) -> ClassificationSums:
    """The sums of the samples of both."""
    return ClassificationSums(*(getattr(a, each.name) + getattr(b, each.name) for each in fields(ClassificationSums)))


def sample_log_loss(true_probability: npt.ArrayLike) -> Floats:
    """-ln(probability) per sample, float64, same shape; at most -ln(2^-23), about 15.9."""
    clipped = np.clip(np.asarray(true_probability, np.float64), PROBABILITY_FLOOR, 1.0)
    # numpy's logarithm may differ in the last bit with the place of a value in its array; this one can't.
    values = np.fromiter(map(math.log, clipped.ravel().tolist()), np.float64, clipped.size)
    return -values.reshape(clipped.shape) + 0.0


def classification_metrics(sums: ClassificationSums) -> list[Metrics]:
    """Accuracy, macro F1, expected calibration error and log loss, for each subset. Needs a sample.

    Macro F1 is that of ``class_scores.macro_f1``, with the predictions of that subset.
    """
    count = sums.num_samples
    assert count > 0, "metrics of no sample"
    found: list[Metrics] = []
    for subset in range(len(sums.hits)):
        counts = (sums.hits[subset].tolist(), sums.predicted[subset].tolist(), sums.support.tolist())
        found.append(
            {
                "accuracy": int(sums.hits[subset].sum()) / count,
                "macro_f1": macro_f1(*counts),
                "ece": calibration_error(reliability(sums, subset)),
                "log_loss": int(sums.log_loss[subset]) / FIXED_POINT / count,
            }
        )
    return found


def majority_metrics(sums: ClassificationSums) -> Metrics:
    """What always predicting the most frequent class would score. Needs a sample."""
    accuracy = int(sums.support.max()) / sums.num_samples
    return {"accuracy": accuracy, "macro_f1": 2 * accuracy / (1 + accuracy) / int((sums.support > 0).sum())}


@dataclass(frozen=True)
class ClassFigures:
    """One class: None where nothing was predicted as it (precision), none occurs (recall), or neither (F1)."""

    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def per_class(hits: Ints, predicted: Ints, support: Ints) -> list[ClassFigures]:
    """Precision, recall and F1 of every class, in the order of their numbers.

    Args:
        hits: int64 [C], samples of a class that were predicted as it.
        predicted: int64 [C], samples that were predicted as a class.
        support: int64 [C], samples of a class.
    """
    return [
        ClassFigures(
            occurring,
            said,
            right / said if said else None,
            right / occurring if occurring else None,
            f1_score(right, said, occurring),
        )
        for right, said, occurring in zip(hits.tolist(), predicted.tolist(), support.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Bin:
    """One confidence bin: where it begins and ends, its samples, their mean confidence and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(sums: ClassificationSums, subset: int) -> list[Bin]:
    """The confidence bins that hold samples."""
    return filled_bins(sums.bin_count[subset], sums.bin_hits[subset], sums.bin_confidence[subset])


def filled_bins(counts: Ints, hits: Ints, confidence: Ints) -> list[Bin]:
    """The bins that hold something, from the sums of each, as in ``ClassificationSums``."""
    sums = zip(counts.tolist(), hits.tolist(), confidence.tolist(), strict=True)
    return [
        Bin(index / NUM_BINS, (index + 1) / NUM_BINS, count, certain / FIXED_POINT / count, right / count)
        for index, (count, right, certain) in enumerate(sums)
        if count
    ]


def bin_numbers(confidence: Floats) -> Ints:
    """The bin of each confidence. Guo's bins are open below: exactly 1/3 belongs to the bin that ends there."""
    return np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean gap between confidence and accuracy."""
    count = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.confidence) for each in bins) / count


def confusion_matrix(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int) -> Ints:
    """Counts, int64 [C, C]: a row per true class, a column per predicted class. Matrices of parts add up."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes).astype(np.int64)


_UNIT_EXPONENT = -1126  # frexp of the smallest double leaves 53 bits above 2^-1126
_LOW_BITS = 26


@dataclass(frozen=True)
class ExactSum:
    """A sum of doubles without any rounding.

    Attributes:
        units: the sum in units of 2^-1126: a whole number for every double.
    """

    units: int = 0

    @classmethod
    def of(cls, values: Floats) -> ExactSum:
        """The sum of finite values."""
        mantissas, exponents = np.frexp(values)
        whole = (mantissas * (1 << 53)).astype(np.int64)
        units = 0
        for exponent in np.unique(exponents).tolist():
            chosen = whole[exponents == exponent]
            # In halves, because 53 bits times many values would overflow.
            high, low = int((chosen >> _LOW_BITS).sum()), int((chosen & ((1 << _LOW_BITS) - 1)).sum())
            units += ((high << _LOW_BITS) + low) << (exponent - 53 - _UNIT_EXPONENT)
        return cls(units)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units + other.units)

    def fraction(self) -> Fraction:
        """The sum as a ratio of whole numbers."""
        return Fraction(self.units, 1 << -_UNIT_EXPONENT)


@dataclass(frozen=True)
class RegressionSums:
    """What the figures of a regression need, for S predictions at once.

    Attributes:
        num_samples: how many.
        absolute: sum of |prediction - label|, for each of S.
        squared: sum of (prediction - label)², for each of S.
        label: sum of the labels.
        label_squared: sum of their squares.
    """

    num_samples: int
    absolute: tuple[ExactSum, ...]
    squared: tuple[ExactSum, ...]
    label: ExactSum = field(default_factory=ExactSum)
    label_squared: ExactSum = field(default_factory=ExactSum)


def no_regression_sums(num_subsets: int) -> RegressionSums:
    """The sums of no sample."""
    return RegressionSums(0, (ExactSum(),) * num_subsets, (ExactSum(),) * num_subsets)


def regression_sums(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> RegressionSums:
    """The sums of some samples.

    Args:
        labels: float32 [N]; the square of a float32 is exact in float64, so R² does not suffer from a large mean.
        predictions: float32 [S, N].
    """
    true = np.asarray(labels, np.float32).astype(np.float64)
    errors = np.asarray(predictions, np.float32).astype(np.float64) - true
    return RegressionSums(
        len(true),
        tuple(ExactSum.of(np.abs(row)) for row in errors),
        tuple(ExactSum.of(row * row) for row in errors),
        ExactSum.of(true),
        ExactSum.of(true * true),
    )


def merge_regression(a: RegressionSums, b: RegressionSums) -> RegressionSums:
    """The sums of the samples of both."""
    return RegressionSums(
        a.num_samples + b.num_samples,
        tuple(x + y for x, y in zip(a.absolute, b.absolute, strict=True)),
        tuple(x + y for x, y in zip(a.squared, b.squared, strict=True)),
        a.label + b.label,
        a.label_squared + b.label_squared,
    )


def regression_metrics(sums: RegressionSums) -> list[Metrics]:
    """Mean absolute error, root mean squared error, and R² (None where all labels are equal), for each of S predictions."""
    count = sums.num_samples
    assert count > 0, "metrics of no sample"
    variation = sums.label_squared.fraction() - sums.label.fraction() ** 2 / count
    return [
        {
            "mae": float(absolute.fraction() / count),
            "rmse": math.sqrt(squared.fraction() / count),
            "r2": float(1 - squared.fraction() / variation) if variation > 0 else None,
        }
        for absolute, squared in zip(sums.absolute, sums.squared, strict=True)
    ]


def fixed_point(values: Floats) -> Ints:
    """In units of 2^-28, whose sums do not depend on their order."""
    return np.rint(values * FIXED_POINT).astype(np.int64)


def _counts(classes: Ints, num_classes: int) -> Ints:
    """How often each class stands in each row of [S, N]; -1 counts nowhere."""
    counts = np.zeros((len(classes), num_classes), np.int64)
    rows, columns = np.nonzero(classes >= 0)
    np.add.at(counts, (rows, classes[rows, columns]), 1)
    return counts
