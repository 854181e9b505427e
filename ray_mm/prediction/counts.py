"""Rows of the files → the figures of ``result.json``. Counts only: a run that was continued says the same as one that was not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_mm.data.fields import presence_name
from ray_mm.prediction.rows import READABLE, PredictionRows


class Counts:
    """What a run predicted so far.

    Args:
        rows: what they look like.
    """

    def __init__(self, rows: PredictionRows) -> None:
        self.num_rows = 0
        self.num_quarantined = 0
        self.num_without_fields = 0
        """Predicted samples in which no field is there: the prediction is what the model makes of no information."""
        self.classes = {column: dict.fromkeys(classes, 0) for column, classes in rows.classes.items()}
        """Column → class → samples that were predicted to have it."""
        self._readable = rows.tells_readable
        self._presence = [presence_name(field) for field in rows.fields]

    @property
    def columns(self) -> list[str]:
        """What ``add`` looks at."""
        return [*dict.fromkeys([self._readable, *self.classes, *self._presence])]

    @property
    def num_predicted(self) -> int:
        """Samples with a prediction."""
        return self.num_rows - self.num_quarantined

    def add(self, table: pa.Table) -> None:
        """Takes note of some rows."""
        told = table.column(self._readable)
        unreadable = table.num_rows - pc.sum(told).as_py() if self._readable == READABLE else told.null_count
        self.num_rows += table.num_rows
        self.num_quarantined += unreadable
        there = np.zeros(table.num_rows, np.bool_)
        for name in self._presence:
            there |= table.column(name).to_numpy()
        # Of a sample that can't be read nothing is there, either.
        self.num_without_fields += int((~there).sum()) - unreadable
        for column, counts in self.classes.items():
            predicted = table.column(column)
            if pa.types.is_list(predicted.type):
                predicted = pc.list_flatten(predicted)
            for found in pc.value_counts(predicted.drop_null()).to_pylist():
                counts[found["values"]] += found["counts"]

    def told(self) -> dict[str, object]:
        """``classes`` of ``result.json``: class → samples, of several tasks task → these; nothing where there are no classes."""
        if not self.classes:
            return {}
        by_task = {column.rpartition(".")[0]: counts for column, counts in self.classes.items()}
        return {"classes": by_task.get("", by_task)}
