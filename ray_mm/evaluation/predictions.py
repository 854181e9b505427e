"""``predictions.parquet``: a row per readable sample, in the order of the dataset, written while the samples stream by.

key             string
label           string (class), list<string> (any number of classes) or float32; null where the sample has none
prediction      likewise
correct         bool (all of its classes, and no other), or error: float32 (prediction - label); null where there is no label
probabilities   list<float32>, of the classes in the order of their numbers; not for a regression
miou            float32, of the sample's map, over the classes that it has or that are predicted; null where there is no label
pixel_accuracy  float32, likewise: which of its cells are right. A map has these two alone
embedding.<tower>   list<float32>, of length 1; null where the tower has none of its fields. A retrieval has these alone
error.<field>   float32, mean squared error of a reconstruction; null where the field is absent. A reconstruction has these alone
<field>.presence   bool
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.evaluation.tasks.base import Rows, TaskEvaluation
from ray_mm.storage.tables import TableFile, table_file


class PredictionsWriter:
    """Makes rows of what the actors found.

    Args:
        file: takes them.
        schema: of the rows.
        fields: the input fields, sorted.
        task: of the model.
    """

    def __init__(self, file: TableFile, schema: pa.Schema, fields: Sequence[str], task: TaskEvaluation) -> None:
        self._file = file
        self._schema = schema
        self._fields = list(fields)
        self._task = task

    def add(self, rows: Rows, keys: Sequence[str]) -> None:
        """Adds a block of scored rows (see ``scorer``); quarantined ones are left out."""
        chosen = np.flatnonzero(rows[WEIGHT] > 0)
        columns: dict[str, pa.Array] = {"key": pa.array([keys[row] for row in chosen.tolist()], pa.string())}
        columns |= self._task.arrays({name: array[chosen] for name, array in rows.items()})
        for field in self._fields:
            columns[presence_name(field)] = pa.array(rows[presence_name(field)][chosen])
        self._file.add(pa.table(columns, schema=self._schema))


@contextlib.contextmanager
def predictions_writer(path: Path, fields: Sequence[str], task: TaskEvaluation) -> Iterator[PredictionsWriter]:
    """A writer whose file takes its place only if the block ends without an error."""
    columns = [("key", pa.string()), *task.columns]
    columns += [(presence_name(field), pa.bool_()) for field in fields]
    schema = pa.schema(columns)
    with table_file(path, schema) as file:
        yield PredictionsWriter(file, schema, fields, task)
