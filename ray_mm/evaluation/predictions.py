"""``predictions.parquet``: a row per readable sample, in the order of the dataset, written while the samples stream by.

key             string
label           string (class), list<string> (any number of classes) or float32; null where the sample has none
prediction      likewise
correct         bool (all of its classes, and no other), or error: float32 (prediction - label); null where there is no label
probabilities   list<float32>, of the classes in the order of their numbers; not for a regression
embedding.<tower>   list<float32>, of length 1; null where the tower has none of its fields. A retrieval has these alone
presence.<field>   bool
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.evaluation.tasks.base import Rows, TaskEvaluation

_ROW_GROUP = 16_384


class PredictionsWriter:
    """Collects rows into row groups.

    Args:
        path: the file; whoever made the writer makes it appear at once.
        fields: the input fields, sorted.
        task: of the model.
    """

    def __init__(self, path: Path, fields: Sequence[str], task: TaskEvaluation) -> None:
        self._fields = list(fields)
        self._task = task
        columns = [("key", pa.string()), *task.columns]
        columns += [(presence_name(field), pa.bool_()) for field in self._fields]
        self._schema = pa.schema(columns)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def add(self, rows: Rows, keys: Sequence[str]) -> None:
        """Adds a block of scored rows (see ``scorer``); quarantined ones are left out."""
        chosen = np.flatnonzero(rows[WEIGHT] > 0)
        columns: dict[str, pa.Array] = {"key": pa.array([keys[row] for row in chosen.tolist()], pa.string())}
        columns |= self._task.arrays({name: array[chosen] for name, array in rows.items()})
        for field in self._fields:
            columns[presence_name(field)] = pa.array(rows[presence_name(field)][chosen])
        self._waiting.append(pa.table(columns, schema=self._schema))
        if sum(table.num_rows for table in self._waiting) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes what is left, and the file's footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []


@contextlib.contextmanager
def predictions_writer(path: Path, fields: Sequence[str], task: TaskEvaluation) -> Iterator[PredictionsWriter]:
    """A writer whose file takes its place only if the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        writer = PredictionsWriter(temporary, fields, task)
        try:
            yield writer
        finally:
            writer.close()
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
