"""Answers → the rows of ``predictions/part-NNNNN.parquet``: one per sample, in the order of the dataset.

key                string
prediction         string (class), list<string> (any number of classes), or float32 (number, in the label's own unit); null
                   where the sample can't be read
probabilities      list<float32>, of the classes in the order of their numbers; null likewise; not of a number
<field>.presence   bool, of every input field; false where the sample can't be read
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import assert_never

from ray_mm.actors.columns import list_column, names_column
from ray_mm.actors.model_actor import Rows
from ray_mm.config.fields import LabelField
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.prediction.answerer import ANSWERS

KEY = "key"
PREDICTION = "prediction"
PROBABILITIES = "probabilities"


def prediction_schema(label: LabelField, fields: Sequence[str]) -> pa.Schema:
    """The columns.

    Args:
        label: what the model predicts.
        fields: its input fields, sorted.
    """
    columns = [(KEY, pa.string())]
    match label.target:
        case "class":
            columns += [(PREDICTION, pa.string()), (PROBABILITIES, pa.list_(pa.float32()))]
        case "classes":
            columns += [(PREDICTION, pa.list_(pa.string())), (PROBABILITIES, pa.list_(pa.float32()))]
        case "number":
            columns += [(PREDICTION, pa.float32())]
        case _:
            assert_never(label.target)
    return pa.schema(columns + [(presence_name(field), pa.bool_()) for field in fields])


def prediction_table(rows: Rows, keys: Sequence[str], label: LabelField, schema: pa.Schema) -> pa.Table:
    """The rows of some samples.

    Args:
        rows: what the actors said (see ``answerer``).
        keys: of the samples.
        label: what the model predicts.
        schema: of ``prediction_schema``; metadata is kept.
    """
    columns = {KEY: pa.array(keys, pa.string()), **_answers(rows[ANSWERS], rows[WEIGHT] == 0, label)}
    columns |= {name: pa.array(rows[name]) for name in schema.names if name not in (KEY, PREDICTION, PROBABILITIES)}
    return pa.table(columns, schema=schema)


def _answers(
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
        case _:
            assert_never(label.target)
