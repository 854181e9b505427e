"""What the driver keeps while scored rows stream by. Its size depends on the classes and the subsets, not on the dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.evaluation.examples import Example, Extremes
from ray_mm.evaluation.subsets import Subset
from ray_mm.evaluation.tasks.base import PROBABILITIES, Rows, TaskEvaluation


class Tally:
    """Counts, sums, extremes.

    Args:
        task: of the model.
        fields: the input fields, sorted.
        subsets: the last one has all fields.
        examples: how many of the worst and of the best samples are kept.
    """

    def __init__(self, task: TaskEvaluation, fields: Sequence[str], subsets: Sequence[Subset], examples: int) -> None:
        self.num_seen = 0
        self.num_quarantined = 0
        self.num_unlabelled = 0
        self.num_scored = 0
        self.present = np.zeros(len(fields), np.int64)
        self.covered = np.zeros(len(subsets), np.int64)
        self.extremes = Extremes(examples)
        self.of_task = task.tally(len(subsets))
        self.lacking = task.lacking
        self._task = task
        self._fields = list(fields)
        self._members = np.array([[field in subset for field in fields] for subset in subsets])

    def add(self, rows: Rows, keys: Sequence[str]) -> None:
        """Takes note of a block of scored rows (see ``scorer``)."""
        readable = rows[WEIGHT] > 0
        scored = readable & self._task.counted(rows)
        self.num_seen += len(readable)
        self.num_quarantined += int((~readable).sum())
        self.num_unlabelled += int((readable & ~scored).sum())
        self.num_scored += int(scored.sum())
        chosen = np.flatnonzero(scored)
        if len(chosen) == 0:
            return
        there = np.stack([rows[presence_name(field)][chosen] for field in self._fields])
        self.present += there.sum(axis=1)
        self.covered += (self._members.astype(np.int64) @ there.astype(np.int64) > 0).sum(axis=1)
        found = {name: array[chosen] for name, array in rows.items()}
        losses = self.of_task.add(found)

        def example(row: int) -> Example:
            place = int(chosen[row])
            label, prediction = self.of_task.answers(found, row)
            return Example(
                position=int(rows[POSITION][place]),
                key=keys[place],
                loss=float(losses[row]),
                label=label,
                prediction=prediction,
                probabilities=tuple(found[PROBABILITIES][row].tolist()) if PROBABILITIES in found else (),
                presence={field: bool(there[index, row]) for index, field in enumerate(self._fields)},
            )

        self.extremes.add(losses, example)

    def running(self) -> dict[str, float]:
        """The main metric so far, for the progress bar."""
        return self.of_task.running() if self.num_scored else {}
