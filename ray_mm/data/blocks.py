"""Batches as an Arrow table, and back without a copy: what travels through Ray's object store.

Every row is a sample. An array with more than the batch axis becomes a column of fixed-size lists; shapes, keys and the
batches' place in the plan stand in the schema's metadata, so that all blocks of a dataset have exactly the same number of
bytes (see ``source.configure``).
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ray_mm.data.fields import Arrays

_ITEMS = b"ray_mm.items"
_KEYS = b"ray_mm.keys"
_SHAPES = b"ray_mm.arrays"
_WORK = b"ray_mm.work"


class Work(NamedTuple):
    """What making a block took.

    Attributes:
        read_s: seconds of reading members, or of waiting for them.
        decode_s: seconds of decoding.
        done_at: when it was ready, seconds since 1970.
        num_cached: samples of each of its batches that were kept from an earlier epoch; empty: not known.
    """

    read_s: float
    decode_s: float
    done_at: float
    num_cached: tuple[int, ...] = ()


def to_table(arrays: Arrays, keys: list[str], items: range = range(0), work: Work | None = None) -> pa.Table:
    """A table of the arrays; their memory is shared, not copied.

    Args:
        arrays: of a batch or several, one after the other; the batch as first axis.
        keys: of the samples; empty for padding.
        items: numbers of the planned batches that these are shares of (see ``plan.Item``).
        work: what making it took; None: not known.
    """
    columns: dict[str, pa.Array] = {}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, array in arrays.items():
        shapes[name] = (array.dtype.str, array.shape[1:])
        # Arrow packs booleans into bits, which would cost a copy in both directions.
        flat = array.reshape(-1).view(np.uint8) if array.dtype == np.bool_ else array.reshape(-1)
        values = pa.array(flat)
        columns[name] = (
            pa.FixedSizeListArray.from_arrays(values, math.prod(array.shape[1:])) if array.ndim > 1 else values
        )
    metadata = {
        _SHAPES: json.dumps(shapes).encode(),
        _KEYS: json.dumps(keys).encode(),
        _ITEMS: f"{items.start} {items.stop}".encode(),
    }
    if work is not None:
        metadata[_WORK] = json.dumps(work).encode()
    return pa.table(columns).replace_schema_metadata(metadata)


def to_arrays(table: pa.Table) -> Arrays:
    """The arrays of a table that ``to_table`` made: read-only views of its memory."""
    shapes = json.loads(table.schema.metadata[_SHAPES])
    arrays: Arrays = {}
    for name, (dtype, shape) in shapes.items():
        column = table.column(name)
        chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if shape:
            chunk = chunk.flatten()
        arrays[name] = chunk.to_numpy(zero_copy_only=True).view(dtype).reshape(table.num_rows, *shape)
    return arrays


def block_keys(table: pa.Table) -> list[str]:
    """The samples' keys; empty for padding."""
    keys: list[str] = json.loads(table.schema.metadata[_KEYS])
    return keys


def block_items(table: pa.Table) -> range:
    """Numbers of the planned batches that a table has a rank's shares of."""
    return range(*map(int, table.schema.metadata[_ITEMS].split()))


def block_work(table: pa.Table) -> Work | None:
    """What making a table took; None: not known."""
    found = table.schema.metadata.get(_WORK)
    return None if found is None else Work(*json.loads(found))
