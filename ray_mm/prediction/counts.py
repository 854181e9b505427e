"""Rows of the files → the figures of ``result.json``. Counts only: a run that was continued says the same as one that was not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_mm.data.fields import presence_name
from ray_mm.prediction.rows import PREDICTION


class Counts:
    """What a run predicted so far.

    Args:
        fields: the model's input fields.
        classes: that it predicts, in the order of their numbers; None: it predicts a number.
    """

    def __init__(self, fields: Sequence[str], classes: Sequence[str] | None) -> None:
        self.num_rows = 0
        self.num_quarantined = 0
        self.num_without_fields = 0
        """Predicted samples in which no field is there: the prediction is what the model makes of no information."""
        self.classes: dict[str, int] | None = None if classes is None else dict.fromkeys(classes, 0)
        """Class → samples that were predicted to have it."""
        self._presence = [presence_name(field) for field in fields]

    @property
    def columns(self) -> list[str]:
        """What ``add`` looks at."""
        return [PREDICTION, *self._presence]

    @property
    def num_predicted(self) -> int:
        """Samples with a prediction."""
        return self.num_rows - self.num_quarantined

    def add(self, table: pa.Table) -> None:
        """Takes note of some rows."""
        predicted = table.column(PREDICTION)
        self.num_rows += table.num_rows
        self.num_quarantined += predicted.null_count
        there = np.zeros(table.num_rows, np.bool_)
        for name in self._presence:
            there |= table.column(name).to_numpy()
        # Of a sample that can't be read nothing is there, either.
        self.num_without_fields += int((~there).sum()) - predicted.null_count
        if self.classes is None:
            return
        if pa.types.is_list(predicted.type):
            predicted = pc.list_flatten(predicted)
        for found in pc.value_counts(predicted.drop_null()).to_pylist():
            self.classes[found["values"]] += found["counts"]
