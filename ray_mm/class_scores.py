"""Counts per class → F1 scores, histograms → average precision: one definition for a validation and for an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def f1_score(hits: int, predicted: int, support: int) -> float | None:
    """The harmonic mean of precision and recall of a class. None: it neither occurs nor is predicted.

    Args:
        hits: samples of the class that were predicted as it.
        predicted: samples that were predicted as it.
        support: samples of it.
    """
    return 2 * hits / (predicted + support) if predicted + support else None


def macro_f1(hits: Sequence[int], predicted: Sequence[int], support: Sequence[int]) -> float:
    """The mean of the classes' F1 scores, each counting alike.

    It is over the classes that occur among the labels or among the predictions; a class that does neither is left out (as
    scikit-learn does), one that does only one of the two counts with 0. Where none does either, it is 0.

    Args:
        hits: of each class, as for ``f1_score``; ``predicted`` and ``support`` likewise.
    """
    scores = [f1_score(*counts) for counts in zip(hits, predicted, support, strict=True)]
    found = [score for score in scores if score is not None]
    return math.fsum(found) / len(found) if found else 0.0


def intersection_over_union(hits: int, predicted: int, support: int) -> float | None:
    """The intersection over union (IoU, Jaccard index) of a class. None: it neither occurs nor is predicted.

    Args:
        hits: cells of the class that were predicted as it.
        predicted: cells that were predicted as it.
        support: cells of it.
    """
    union = predicted + support - hits
    return hits / union if union else None


def mean_iou(hits: Sequence[int], predicted: Sequence[int], support: Sequence[int]) -> float:
    """The mean of the classes' IoU, over those that occur among the labels or among the predictions; 0 where none does.

    Args:
        hits: of each class, as for ``intersection_over_union``; ``predicted`` and ``support`` likewise.
    """
    scores = [intersection_over_union(*counts) for counts in zip(hits, predicted, support, strict=True)]
    found = [score for score in scores if score is not None]
    return math.fsum(found) / len(found) if found else 0.0


_FINE = 5
LOWEST_BITS = (127 - 24) << _FINE
HALF_BITS = (127 - 1) << _FINE
"""What is left of the bits of 2^-24 and of ½."""
BITS_SHIFT = 23 - _FINE
"""Bits of a float32 that a bin does not tell apart."""
NUM_SCORE_BINS = 2 * (HALF_BITS - LOWEST_BITS) + 2
"""Bins of a probability: 32 in each factor of two below ½, down to 2^-24, and as many above it for its distance from 1."""
OVER_HALF = HALF_BITS - LOWEST_BITS + 1
"""From this bin on a probability is more than ½: the class is predicted."""


def score_bins(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """The bin of each probability, by its bits alone: the same wherever and however it is reckoned; int16, same shape.

    A higher probability is never in a lower bin. Two of one bin differ by at most 3% of themselves, or of their distance from 1
    where that is smaller.
    """
    scores = np.asarray(probabilities, np.float32)
    near = np.minimum(scores, 1 - scores)
    steps = np.clip(near.view(np.int32) >> BITS_SHIFT, LOWEST_BITS, HALF_BITS) - LOWEST_BITS
    bins: npt.NDArray[np.int16] = np.where(scores > 0.5, NUM_SCORE_BINS - 1 - steps, steps).astype(np.int16)
    return bins


def average_precisions(histograms: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The average precision of each class: Σ (Rₙ − Rₙ₋₁) Pₙ over falling scores, as scikit-learn has it.

    Scores of one bin count as equal: it is exact but for the order of samples whose probabilities are nearly the same.

    Args:
        histograms: samples that lack a class and that have it, by the bins of ``score_bins``: int64 [..., 2, NUM_SCORE_BINS].

    Returns:
        float64 [...]; NaN where no sample has the class.
    """
    having = histograms[..., 1, ::-1]
    found = having.cumsum(axis=-1)
    asked = found + histograms[..., 0, ::-1].cumsum(axis=-1)
    total = found[..., -1]
    summed: npt.NDArray[np.float64] = (having * (found / np.maximum(asked, 1))).sum(axis=-1)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)


def mean_average_precision(histograms: npt.NDArray[np.int64]) -> float:
    """The mean of ``average_precisions`` [C] over the classes that a sample has; 0 where there is none."""
    found = average_precisions(histograms)
    found = found[~np.isnan(found)]
    return math.fsum(found.tolist()) / len(found) if len(found) else 0.0
