"""A Parquet file that is written while its rows arrive; it takes its place when it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP = 16_384


class TableFile:
    """Collects rows into row groups. The file has a temporary name until ``publish``.

    Args:
        path: of the file; its folder is there.
        schema: of all tables, metadata included.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        self._temporary = Path(name)
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def add(self, table: pa.Table) -> None:
        """Adds rows."""
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        if self._num_waiting >= _ROW_GROUP:
            self._flush()

    def publish(self) -> None:
        """Writes what is left, and lets the file take its place, on the disk itself."""
        self._flush()
        self._writer.close()
        with self._temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files that only the owner may read; tables are shared.
        self._temporary.chmod(0o644)
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Lets go of the file; of one that was published, nothing is left to do."""
        with contextlib.suppress(OSError):  # such as a full disk, which was told where it was met
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting, self._num_waiting = [], 0


@contextlib.contextmanager
def table_file(path: Path, schema: pa.Schema) -> Iterator[TableFile]:
    """A file that takes its place only if the block ends without an error."""
    file = TableFile(path, schema)
    try:
        yield file
        file.publish()
    finally:
        file.discard()
