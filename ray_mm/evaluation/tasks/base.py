"""What every task brings to an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.metrics import Metrics
from ray_mm.evaluation.report.content import Details

PREDICTIONS = "score.predictions"
CONFIDENCE = "score.confidence"
TRUE_PROBABILITY = "score.true_probability"
PROBABILITIES = "score.probabilities"
BINS = "score.bins"
LOSS = "score.loss"
"""Names of what the actors find of each sample; each task says which of them it has. No name of a field holds a dot."""

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = Mapping[str, Array]
"""Scored rows, name → array."""


class TaskEvaluation(Protocol):
    """A task of one model."""

    def scored(self, outputs: npt.NDArray[np.float32], labels: Array) -> dict[str, Array]:
        """What the driver needs of some samples, by the names above, a row for each.

        Args:
            outputs: of ``Predictor.outputs``, for S subsets of the fields: [S, N, …].
            labels: of the batch [N, …]; zeros where there is none.
        """

    def tally(self, num_subsets: int) -> TaskTally:
        """The sums of no sample, for so many subsets of the fields; the last one has all of them."""

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        """The columns of ``predictions.parquet`` that are the task's own."""

    def arrays(self, labels: Array, absent: npt.NDArray[np.bool_], found: Rows) -> dict[str, pa.Array]:
        """These columns.

        Args:
            labels: of some samples [N, …].
            absent: which have none, bool [N].
            found: what ``scored`` gave for them.
        """


class TaskTally(Protocol):
    """The sums of a task over the labelled samples that stream by."""

    def add(self, labels: Array, found: Rows) -> npt.NDArray[np.float64]:
        """Takes some samples.

        Args:
            labels: [N, …].
            found: what ``TaskEvaluation.scored`` gave for them.

        Returns:
            What each costs with all fields, float64 [N]: by it the worst and the best samples are found.
        """

    def answers(self, labels: Array, found: Rows, row: int) -> tuple[Answer, Answer]:
        """The label and the prediction of one of these samples."""

    def metrics(self) -> list[Metrics]:
        """For each subset; needs a sample."""

    def baseline(self) -> Metrics:
        """What a constant prediction scores; needs a sample."""

    def running(self) -> dict[str, float]:
        """The main metric so far, for the progress bar; needs a sample."""

    def details(self) -> Details:
        """What the report shows of this task alone."""
