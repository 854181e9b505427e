"""``predictions/part-NNNNN.parquet``: each has the rows of a fixed range of samples, and is whole or not there.

The files are all that a run needs to go on. Each says in its metadata what it was made from, JSON under ``ray_mm.predictions``:

    {"version": 1, "model": digest of the model, "data": digest of the samples, "rows": [first, after the last]}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.config.read import first_line
from ray_mm.errors import OutputFolderError
from ray_mm.storage.tables import TableFile

_VERSION = 1
_METADATA = b"ray_mm.predictions"


@dataclass(frozen=True)
class Partitions:
    """The files of a run.

    Attributes:
        folder: that they lie in.
        num_rows: of all of them together.
        rows_per_file: of each but the last.
        schema: of the rows.
        model: digest of the model.
        data: digest of the samples.
    """

    folder: Path
    num_rows: int
    rows_per_file: int
    schema: pa.Schema
    model: str
    data: str

    @property
    def num_files(self) -> int:
        """How many there will be."""
        return -(-self.num_rows // self.rows_per_file)

    def path(self, number: int) -> Path:
        """Of a file."""
        return self.folder / f"part-{number:05d}.parquet"

    def rows(self, number: int) -> range:
        """The samples that a file has."""
        start = number * self.rows_per_file
        return range(start, min(start + self.rows_per_file, self.num_rows))

    def num_whole(self) -> int:
        """How many files, from the first one on, are whole.

        Raises:
            OutputFolderError: one of them was made by another model, from other samples, or by a newer ray_mm.
        """
        return next((number for number in range(self.num_files) if not self._is_whole(number)), self.num_files)

    def read(self, number: int, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of a file that is whole, a part of its rows after the other.

        Raises:
            OutputFolderError: it is damaged.
        """
        path = self.path(number)
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=columns):
                    yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            raise OutputFolderError(
                f"output: {path} is damaged ({first_line(error)}); remove it, and it is predicted again, with those behind it."
            ) from None

    @contextlib.contextmanager
    def writer(self, first: int) -> Iterator[PartitionWriter]:
        """Writes the files from number ``first`` on. What killed runs left of others is taken away."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob(".part-*.tmp"):
            left.unlink()
        writer = PartitionWriter(self, first)
        try:
            yield writer
        finally:
            writer.discard()

    def origin(self, number: int) -> dict[str, Any]:
        """What a file says that it was made from."""
        rows = self.rows(number)
        return {"version": _VERSION, "model": self.model, "data": self.data, "rows": [rows.start, rows.stop]}

    def _is_whole(self, number: int) -> bool:
        path = self.path(number)
        try:
            metadata = pq.read_metadata(path)
            found = dict(json.loads(metadata.metadata[_METADATA]))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return False  # not there, damaged, or nothing of ours: it is made again
        expected = self.origin(number)
        for key, what in (("version", "version of the format"), ("model", "model"), ("data", "dataset")):
            if found.get(key) != expected[key]:
                raise OutputFolderError(
                    f"output: {path} was made with another {what} ({str(found.get(key))[:16]}, now "
                    f"{str(expected[key])[:16]}); choose another output, or remove that run's folder to predict all of it again."
                )
        return bool(found.get("rows") == expected["rows"] and metadata.num_rows == len(self.rows(number)))


class PartitionWriter:
    """Divides rows over files, which appear one after the other as they are full.

    Args:
        partitions: the files.
        first: number of the first one to be written.
    """

    def __init__(self, partitions: Partitions, first: int) -> None:
        self._partitions = partitions
        self._number = first
        self._left = 0
        self._file: TableFile | None = None

    def add(self, table: pa.Table) -> None:
        """Adds the rows of the next samples."""
        while table.num_rows:
            if self._file is None:
                self._file, self._left = self._open(), len(self._partitions.rows(self._number))
            part = table.slice(0, self._left)
            self._file.add(part)
            self._left -= part.num_rows
            table = table.slice(part.num_rows)
            if self._left == 0:
                self._file.publish()
                self._file = None
                self._number += 1

    def discard(self) -> None:
        """Lets go of a file that is not full."""
        if self._file is not None:
            self._file.discard()

    def _open(self) -> TableFile:
        origin = json.dumps(self._partitions.origin(self._number)).encode()
        schema = self._partitions.schema.with_metadata({_METADATA: origin})
        return TableFile(self._partitions.path(self._number), schema)
