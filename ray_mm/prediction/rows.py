"""Answers → the rows of ``predictions/part-NNNNN.parquet``: one per sample, in the order of the dataset.

key                string
prediction         string (class), list<string> (any number of classes), float32 (number, in the label's own unit), or of a map
                   binary: a PNG with the number of the class of each cell; null where the sample can't be read
probabilities      list<float32>, of the classes in the order of their numbers; null likewise; not of a number and a map
<field>.presence   bool, of every input field; false where the sample can't be read

Of several tasks there are ``<task>.prediction`` and ``<task>.probabilities``. Of a retrieval, instead of these:

readable           bool
embedding.<tower>  list<float32>, of length 1; null where the tower has none of its fields, or the sample can't be read
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import assert_never

from ray_mm.actors.columns import EMBEDDING, embedding_columns, list_column, names_column, towers_there
from ray_mm.actors.model_actor import Rows
from ray_mm.answers import Answers
from ray_mm.config.fields import LabelField
from ray_mm.data.decode.mask import encode_mask
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.prediction.answerer import ANSWERS

KEY = "key"
PREDICTION = "prediction"
PROBABILITIES = "probabilities"
READABLE = "readable"


class PredictionRows:
    """What the rows of one model look like.

    Args:
        answers: of the model.
        fields: its input fields, sorted.

    Attributes:
        schema: the columns.
        classes: column of predictions → the classes that may stand in it; nothing of a number and a map.
    """

    def __init__(self, answers: Answers, fields: Sequence[str]) -> None:
        self._answers = answers
        self.fields = list(fields)
        columns = [(KEY, pa.string())]
        self.classes: dict[str, tuple[str, ...]] = {}
        for task, label in answers.labels.items():
            columns += [(_of(task, name), kind) for name, kind in _columns(label)]
            if label.classes and label.target != "mask":
                self.classes[_of(task, PREDICTION)] = label.classes
        if answers.towers is not None:
            columns.append((READABLE, pa.bool_()))
            columns += [(EMBEDDING + tower, pa.list_(pa.float32())) for tower in answers.towers]
        self.schema = pa.schema(columns + [(presence_name(field), pa.bool_()) for field in fields])

    @property
    def tells_readable(self) -> str:
        """The column that says which samples could be read: by a value that is not null, or of ``readable`` by a true one."""
        return READABLE if self._answers.towers is not None else _of(next(iter(self._answers.labels)), PREDICTION)

    def table(self, rows: Rows, keys: Sequence[str]) -> pa.Table:
        """The rows of some samples.

        Args:
            rows: what the actors said (see ``answerer``).
            keys: of the samples.
        """
        answers, unreadable = rows[ANSWERS], rows[WEIGHT] == 0
        columns = {KEY: pa.array(keys, pa.string())}
        for task, label in self._answers.labels.items():
            own = self._answers.of_task(task, answers) if task else answers
            columns |= {_of(task, name): column for name, column in _said(own, unreadable, label).items()}
        if self._answers.towers is not None:
            columns[READABLE] = pa.array(~unreadable)
            there = towers_there(self._answers.towers, rows) & ~unreadable[:, None]
            columns |= embedding_columns(list(self._answers.towers), answers, there)
        columns |= {presence_name(field): pa.array(rows[presence_name(field)]) for field in self.fields}
        return pa.table(columns, schema=self.schema)


def _of(task: str, column: str) -> str:
    return f"{task}.{column}" if task else column


def _columns(label: LabelField) -> list[tuple[str, pa.DataType]]:
    match label.target:
        case "class":
            return [(PREDICTION, pa.string()), (PROBABILITIES, pa.list_(pa.float32()))]
        case "classes":
            return [(PREDICTION, pa.list_(pa.string())), (PROBABILITIES, pa.list_(pa.float32()))]
        case "number":
            return [(PREDICTION, pa.float32())]
        case "mask":
            return [(PREDICTION, pa.binary())]
        case _:
            assert_never(label.target)


def _said(
    answers: npt.NDArray[np.float32], unreadable: npt.NDArray[np.bool_], label: LabelField
) -> dict[str, pa.Array]:
    classes = label.classes or ()
    match label.target:
        case "class":
            predicted = pa.array(answers.argmax(axis=1), pa.int64(), mask=unreadable)
            return {
                PREDICTION: pa.array(classes, pa.string()).take(predicted),
                PROBABILITIES: list_column(answers, unreadable),
            }
        case "classes":
            return {
                PREDICTION: names_column(answers > 0.5, classes, unreadable),
                PROBABILITIES: list_column(answers, unreadable),
            }
        case "number":
            return {PREDICTION: pa.array(answers, pa.float32(), mask=unreadable)}
        case "mask":
            maps = answers.argmax(axis=1).astype(np.uint8)
            said = [None if lost else encode_mask(each) for each, lost in zip(maps, unreadable.tolist(), strict=True)]
            return {PREDICTION: pa.array(said, pa.binary())}
        case _:
            assert_never(label.target)
