"""Inputs, said again. What the actors find:

score.targets   float32 [N, numbers]: what is to be said of all fields, NaN where nothing is known (see ``data.targets``)
score.errors    float32 [N, S × F]: sums of squared errors, for each of S subsets of the inputs and F reconstructed fields

The driver keeps sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_mm.data.fields import presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import target_sizes
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.metrics import Metrics
from ray_mm.evaluation.report.content import ReconstructionDetails
from ray_mm.evaluation.tasks.base import ERRORS, TARGETS, Array, Rows
from ray_mm.models.targets import Targets
from ray_mm.reconstruction_scores import explained, variation

Floats = npt.NDArray[np.float64]


class ReconstructEvaluation:
    """See ``base.TaskEvaluation``.

    Args:
        names: the fields that are reconstructed, sorted.
        preprocessor: of the model.
    """

    def __init__(self, names: Sequence[str], preprocessor: Preprocessor) -> None:
        self._names = list(names)
        self._sizes = target_sizes(names, preprocessor.fields)
        self._targets = Targets(names, preprocessor)

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def lacking(self) -> str:
        return f"none of {', '.join(self._names)}"

    def counted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = np.any([rows[presence_name(name)] for name in self._names], axis=0)
        return found

    def targets(self, batch: Rows) -> npt.NDArray[np.float32]:
        """What is to be said of some samples, [N, numbers]."""
        names = [*(array for arrays in self._targets.arrays.values() for array in arrays)]
        names += [presence_name(name) for name in self._names]
        # Copied: torch warns of arrays that it could not write to, such as views of Arrow's memory.
        found: npt.NDArray[np.float32] = self._targets(
            {name: torch.from_numpy(np.array(batch[name])) for name in names}
        ).numpy()
        return found

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        targets = self.targets(batch)
        errors = np.stack([per_field(np.square(output - targets), self._sizes) for output in outputs], axis=1)
        return {TARGETS: targets, ERRORS: errors.reshape(len(targets), -1).astype(np.float32)}

    def tally(self, num_subsets: int) -> ReconstructTally:
        return ReconstructTally(self._names, self._sizes, num_subsets)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        return [(error_column(name), pa.float32()) for name in self._names]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        errors, counts = of_all_inputs(rows, self._sizes)
        means = errors / np.maximum(counts, 1)
        return {
            error_column(name): pa.array(means[:, place], pa.float32(), mask=counts[:, place] == 0)
            for place, name in enumerate(self._names)
        }


def error_column(name: str) -> str:
    """Name of the column with a field's mean squared error."""
    return f"error.{name}"


def per_field(values: npt.NDArray[np.float32], sizes: Sequence[int]) -> Floats:
    """Sums over the numbers of each field, NaN left out: [N, numbers] → float64 [N, F]."""
    edges = np.cumsum([0, *sizes])
    sums = [np.nansum(values[:, start:stop], axis=1, dtype=np.float64) for start, stop in pairwise(edges)]
    return np.stack(sums, axis=1)


def of_all_inputs(rows: Rows, sizes: Sequence[int]) -> tuple[Floats, Floats]:
    """Of each sample and field the sum of squared errors with all inputs, and over how many numbers it goes: [N, F] each."""
    counts = per_field((~np.isnan(rows[TARGETS])).astype(np.float32), sizes)
    return rows[ERRORS][:, -len(sizes) :].astype(np.float64), counts


class ReconstructTally:
    """See ``base.TaskTally``."""

    def __init__(self, names: Sequence[str], sizes: Sequence[int], num_subsets: int) -> None:
        self._names = list(names)
        self._sizes = list(sizes)
        self._errors = np.zeros((num_subsets, len(names)))
        self._sums = np.zeros((3, sum(sizes)))
        self._losses = 0.0
        self._num_samples = 0

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        targets = rows[TARGETS].astype(np.float64)
        self._errors += rows[ERRORS].sum(axis=0, dtype=np.float64).reshape(self._errors.shape)
        self._sums += np.stack(
            [(~np.isnan(targets)).sum(0), np.nansum(targets, axis=0), np.nansum(np.square(targets), axis=0)]
        )
        errors, counts = of_all_inputs(rows, self._sizes)
        losses: npt.NDArray[np.float64] = (errors / np.maximum(counts, 1)).sum(1) / np.maximum((counts > 0).sum(1), 1)
        self._losses += losses.sum()
        self._num_samples += len(losses)
        return losses

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        # Nothing that stands in a cell: what is said, and what it should be, is drawn from the sample itself.
        return 0.0, 0.0

    def metrics(self) -> list[Metrics]:
        return [self._figures(errors) for errors in self._errors]

    def baseline(self) -> Metrics:
        # What is constant explains nothing of what varies, at the best.
        return {name: None if value is None else 0.0 for name, value in self._figures(self._errors[-1]).items()}

    def running(self) -> dict[str, float]:
        return {"r2": float(self._figures(self._errors[-1])["r2"] or 0.0)}

    def details(self) -> ReconstructionDetails:
        return ReconstructionDetails(tuple(self._names), self._losses / self._num_samples)

    def _figures(self, errors: Floats) -> Metrics:
        return explained(errors, variation(self._sums, self._sizes), self._names)
