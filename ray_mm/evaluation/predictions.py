"""``predictions.parquet``: a row per readable sample, in the order of the dataset, written while the samples stream by.

key             string
label           string (class) or float32; null where the sample has none
prediction      string (class) or float32
correct         bool, or error: float32 (prediction - label); null where there is no label
probabilities   list<float32>, of the classes in the order of their numbers; not for a regression
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
from ray_mm.evaluation.scorer import PREDICTIONS, PROBABILITIES, Rows

_ROW_GROUP = 16_384


class PredictionsWriter:
    """Collects rows into row groups.

    Args:
        path: the file; whoever made the writer makes it appear at once.
        label: the label field.
        fields: the input fields, sorted.
        classes: of the label; None for a regression.
    """

    def __init__(self, path: Path, label: str, fields: Sequence[str], classes: Sequence[str] | None) -> None:
        self._label = label
        self._fields = list(fields)
        self._classes = None if classes is None else pa.array(classes, pa.string())
        value = pa.float32() if classes is None else pa.string()
        columns = [("key", pa.string()), ("label", value), ("prediction", value)]
        columns += (
            [("error", pa.float32())]
            if classes is None
            else [("correct", pa.bool_()), ("probabilities", pa.list_(pa.float32()))]
        )
        columns += [(presence_name(field), pa.bool_()) for field in self._fields]
        self._schema = pa.schema(columns)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def add(self, rows: Rows, keys: Sequence[str]) -> None:
        """Adds a block of scored rows (see ``scorer``); quarantined ones are left out."""
        chosen = np.flatnonzero(rows[WEIGHT] > 0)
        absent = ~rows[presence_name(self._label)][chosen]
        labels, predictions = rows[self._label][chosen], rows[PREDICTIONS][chosen, -1]
        columns: dict[str, pa.Array] = {"key": pa.array([keys[row] for row in chosen.tolist()], pa.string())}
        if self._classes is None:
            columns["label"] = pa.array(labels, pa.float32(), mask=absent)
            columns["prediction"] = pa.array(predictions, pa.float32())
            columns["error"] = pa.array(predictions - labels, pa.float32(), mask=absent)
        else:
            columns["label"] = self._classes.take(pa.array(labels, pa.int64(), mask=absent))
            columns["prediction"] = self._classes.take(pa.array(predictions, pa.int64()))
            columns["correct"] = pa.array(predictions == labels, mask=absent)
            probabilities = rows[PROBABILITIES][chosen]
            offsets = np.arange(len(chosen) + 1, dtype=np.int32) * probabilities.shape[1]
            columns["probabilities"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(probabilities.reshape(-1)))
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
def predictions_writer(
    path: Path, label: str, fields: Sequence[str], classes: Sequence[str] | None
) -> Iterator[PredictionsWriter]:
    """A writer whose file takes its place only if the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        writer = PredictionsWriter(temporary, label, fields, classes)
        try:
            yield writer
        finally:
            writer.close()
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
