"""Mean and standard deviation per channel, from parts that are merged.

Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ray_mm.config.base import Config
from ray_mm.data.manifest import Statistics


class Moments(Config):
    """Count, mean and sum of squared deviations, per channel."""

    count: int
    """Values per channel."""
    mean: tuple[float, ...]
    """One value per channel."""
    squares: tuple[float, ...]
    """Sum of squared deviations from the mean, one value per channel."""


class RunningMoments:
    """Collects moments value by value. float64 throughout.

    The result depends on the order of ``add``, in the last digits: feed it in a fixed order.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: npt.NDArray[np.float64] = np.zeros(0)
        self._squares: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Takes values [N, C]; the number of channels never changes."""
        if not len(values):
            return
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        self._merge(len(wide), mean, ((wide - mean) ** 2).sum(axis=0))

    def merge(self, part: Moments) -> None:
        """Takes the moments of another part of the data."""
        if part.count:
            self._merge(part.count, np.array(part.mean), np.array(part.squares))

    def _merge(self, count: int, mean: npt.NDArray[np.float64], squares: npt.NDArray[np.float64]) -> None:
        if not self._count:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        apart = mean - self._mean
        self._mean = self._mean + apart * (count / total)
        self._squares = self._squares + squares + apart**2 * (self._count * count / total)
        self._count = total

    def moments(self) -> Moments | None:
        """What was collected; None if nothing was."""
        if not self._count:
            return None
        return Moments(count=self._count, mean=tuple(self._mean.tolist()), squares=tuple(self._squares.tolist()))


def to_statistics(moments: Moments) -> Statistics:
    """Mean and population standard deviation. A channel that never changes has standard deviation 1, not 0."""
    deviations = [math.sqrt(squares / moments.count) for squares in moments.squares]
    # Rounding leaves a constant channel a tiny deviation; dividing by it would blow noise up to the size of a signal.
    std = [std if std > _FLOAT32_STEP * abs(mean) else 1.0 for std, mean in zip(deviations, moments.mean, strict=True)]
    return Statistics(mean=moments.mean, std=tuple(std))


_FLOAT32_STEP = float(np.finfo(np.float32).eps)
