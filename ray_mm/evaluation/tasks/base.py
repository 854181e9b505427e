"""What every task brings to an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.data.fields import presence_name
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.metrics import Metrics
from ray_mm.evaluation.report.content import Details

PREDICTIONS = "score.predictions"
CONFIDENCE = "score.confidence"
TRUE_PROBABILITY = "score.true_probability"
PROBABILITIES = "score.probabilities"
BINS = "score.bins"
EMBEDDINGS = "score.embeddings"
CELLS = "score.cells"
LOSS = "score.loss"
TARGETS = "score.targets"
ERRORS = "score.errors"
"""Names of what the actors find of each sample; each task says which of them it has. No name of a field holds a dot."""

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = Mapping[str, Array]
"""Scored rows, name → array."""


class OfLabel:
    """What the evaluations of all tasks with a label have in common.

    Args:
        label: its name.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @property
    def reads(self) -> tuple[str, ...]:
        return self.label, presence_name(self.label)

    @property
    def lacking(self) -> str:
        return f"no label {self.label!r}"

    def counted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        return rows[presence_name(self.label)]


class TaskEvaluation(Protocol):
    """A task of one model."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of a batch that the driver needs, too: the label and its presence. Weight, position and the presence of all
        inputs it has anyway."""

    @property
    def lacking(self) -> str:
        """What a sample that can't be scored lacks, such as ``no label 'steering'``."""

    def counted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of some readable rows can be scored, bool [N]."""

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        """What the driver needs of some samples, by the names above, a row for each.

        Args:
            outputs: of ``Predictor.outputs``, for S subsets of the fields: [S, N, …].
            batch: of the same samples; a label is zero where there is none.
        """

    def tally(self, num_subsets: int) -> TaskTally:
        """The sums of no sample, for so many subsets of the fields; the last one has all of them."""

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        """The columns of ``predictions.parquet`` that are the task's own."""

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        """These columns, of some rows that may lack a label."""


class TaskTally(Protocol):
    """The sums of a task over the samples that stream by and can be scored."""

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Takes some samples: what ``TaskEvaluation`` reads of them, and what it gave for them.

        Returns:
            What each costs with all fields, float64 [N]: by it the worst and the best samples are found.
        """

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        """The label and the prediction of one of these samples."""

    def metrics(self) -> list[Metrics]:
        """For each subset; needs a sample."""

    def baseline(self) -> Metrics:
        """What a constant prediction scores; needs a sample."""

    def running(self) -> dict[str, float]:
        """The main metric so far, for the progress bar; needs a sample."""

    def details(self) -> Details:
        """What the report shows of this task alone."""
