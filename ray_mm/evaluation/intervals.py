"""Where a figure is likely to lie on more such samples: 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from ray_mm.evaluation.metrics import Floats, Metrics

Interval: TypeAlias = tuple[float, float]
_RESAMPLES = 1000


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): where the accuracy on more such samples is likely to lie."""
    z = 1.959963984540054
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def ratio_interval(numerator: int, denominator: int, squares: Sequence[int], count: int) -> tuple[float, float] | None:
    """The 95% interval of a ratio of two sums over samples (linearised, Cochran 1977, section 2.11), such as a micro F1.

    Args:
        numerator: the sum of n_i.
        denominator: the sum of d_i.
        squares: the sums of n_i², of n_i d_i and of d_i².
        count: samples.

    Returns:
        Within 0 and 1. None where the ratio is the same in all samples, which tells nothing of others.
    """
    if count < 2 or not denominator:
        return None
    ratio = Fraction(numerator, denominator)
    residual = squares[0] - 2 * ratio * squares[1] + ratio * ratio * squares[2]
    half = 1.959963984540054 * math.sqrt(residual * count / (count - 1)) / denominator
    return (max(0.0, float(ratio) - half), min(1.0, float(ratio) + half)) if half else None


def bootstrap_intervals(true: Floats, predicted: Floats, num_samples: int, metrics: Metrics) -> dict[str, Interval]:
    """The 95% intervals of a regression's figures (percentile bootstrap, Efron 1979), always the same for the same values.

    Args:
        true: float64 [n], of samples drawn at random, or of all.
        predicted: float64 [n], of the same.
        num_samples: of which they were drawn: the spread of n is narrowed to that of so many.
        metrics: over all of them; what is None there has no interval.
    """
    count = len(true)
    error = predicted - true
    rows = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    squared = (error * error)[rows].mean(axis=1)
    variance = true[rows].var(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = {
            "mae": np.abs(error)[rows].mean(axis=1),
            "rmse": np.sqrt(squared),
            "r2": 1 - squared / variance,
        }
    narrowed = math.sqrt(count / num_samples)
    intervals = {}
    for name, values in resampled.items():
        metric, found = metrics.get(name), values[np.isfinite(values)]
        if metric is None or not len(found):
            continue
        middle = float(np.median(found))
        low, high = (metric + narrowed * (float(edge) - middle) for edge in np.percentile(found, (2.5, 97.5)))
        intervals[name] = (low, min(1.0, high)) if name == "r2" else (max(0.0, low), high)
    return intervals
