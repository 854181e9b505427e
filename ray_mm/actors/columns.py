"""Arrays of a batch → columns of Arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.data.fields import presence_name

EMBEDDING = "embedding."
"""Before the name of a tower: the name of the column with its embeddings."""


def list_column(values: npt.NDArray[np.float32], absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Rows of as many numbers each: list<float32> [N].

    Args:
        values: float32 [N, C].
        absent: bool [N], which rows are null. None: none is.
    """
    if absent is None:
        absent = np.zeros(len(values), np.bool_)
    # A null row has no numbers: not every reader of Arrow passes over those of one.
    lengths = np.where(absent, 0, values.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    numbers = pa.array(values[~absent].reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), numbers, mask=pa.array(absent))


def names_column(
    chosen: npt.NDArray[np.bool_], classes: Sequence[str], absent: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """The names of the classes that each row has: list<string> [N].

    Args:
        chosen: bool [N, C].
        classes: C names.
        absent: bool [N], which rows are null. None: none is.
    """
    nulls = np.zeros(len(chosen), np.bool_) if absent is None else absent
    rows = [
        None if is_null else [classes[number] for number in np.flatnonzero(row).tolist()]
        for row, is_null in zip(chosen, nulls.tolist(), strict=True)
    ]
    return pa.array(rows, pa.list_(pa.string()))


def towers_there(towers: Mapping[str, Sequence[str]], rows: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which towers of a retrieval have one of their fields: bool [N, K].

    Args:
        towers: tower → its fields.
        rows: with the presence of these.
    """
    return np.stack(
        [np.any([rows[presence_name(name)] for name in names], axis=0) for names in towers.values()], axis=1
    )


def embedding_columns(
    towers: Sequence[str], vectors: npt.NDArray[np.float32], there: npt.NDArray[np.bool_]
) -> dict[str, pa.Array]:
    """``embedding.<tower>`` → list<float32> [N].

    Args:
        towers: K names.
        vectors: float32 [N, K, E].
        there: bool [N, K]; what is not there is null.
    """
    return {
        EMBEDDING + tower: list_column(np.ascontiguousarray(vectors[:, place]), ~there[:, place])
        for place, tower in enumerate(towers)
    }
