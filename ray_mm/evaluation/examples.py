"""The samples that a model does worst and best on, kept in bounded memory while results stream by."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Answer: TypeAlias = float | tuple[int, ...] | npt.NDArray[np.uint8]
"""The number of a class, those of several, a value, or the numbers of a map's cells [H, W]."""


@dataclass(frozen=True)
class Example:
    """One scored sample.

    Attributes:
        position: its place in the dataset.
        key: its key.
        loss: what it costs, such as -ln(probability of the true class), or |prediction - label|.
        label: what is true.
        prediction: what the model says.
        probabilities: of every class; empty for a regression.
        presence: field → was it there?
    """

    position: int
    key: str
    loss: float
    label: Answer
    prediction: Answer
    probabilities: tuple[float, ...]
    presence: dict[str, bool]


class Extremes:
    """The samples with the largest and with the smallest loss. Of equal losses, the earlier position goes first.

    Args:
        size: how many of each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # Heaps with what would be dropped first at the top; positions differ, so examples are never compared.
        self._worst: list[tuple[float, int, Example]] = []
        self._best: list[tuple[float, int, Example]] = []

    def add(self, losses: npt.NDArray[np.float64], make: Callable[[int], Example]) -> None:
        """Takes note of a batch.

        Args:
            losses: float64 [N].
            make: row of the batch → its example; called only for rows that are kept.
        """
        if self._size == 0:
            return
        for heap, sign in ((self._worst, 1.0), (self._best, -1.0)):
            signed = sign * losses
            # Only the extremes of the batch can matter; sorting is stable, so the earlier of equals comes first.
            for row in np.argsort(-signed, kind="stable")[: self._size].tolist():
                if len(heap) == self._size and signed[row] < heap[0][0]:
                    break
                example = make(row)
                entry = (float(signed[row]), -example.position, example)
                if len(heap) < self._size:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)

    def worst(self) -> list[Example]:
        """By falling loss."""
        return [example for _, _, example in sorted(self._worst, reverse=True)]

    def best(self) -> list[Example]:
        """By rising loss, without those that are among the worst: a small dataset has too few for both."""
        shown = {example.position for example in self.worst()}
        found = [example for _, _, example in sorted(self._best, reverse=True)]
        return [example for example in found if example.position not in shown]
