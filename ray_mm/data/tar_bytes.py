"""Where the bytes of a tar come from while its headers are walked: a mapped file, ranges of an object, a gzip stream."""

from __future__ import annotations

import io
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import indexed_gzip

from ray_mm.errors import DatasetError, ObjectChangedError
from ray_mm.storage import local_path
from ray_mm.storage.ranges import RangeReader, ReadPolicy
from ray_mm.storage.remote import ObjectInfo, stat

MAX_UNPACKED_BYTES = 16 << 30
"""A gzip stream that is longer than this is refused, unless the call says otherwise."""

_WINDOW = 256 << 10
"""Of an object: about what one request's round trip costs in transfer, so that small members need few requests."""
_PART = 1 << 20
_POINT_SPACING = 2 << 20
"""Bytes of the tar between two seek points; each point takes 32 kB."""
_GZIP_ERRORS = (indexed_gzip.ZranError, EOFError, OSError, ValueError)


class TarBytes(Protocol):
    """The bytes of a tar.

    Attributes:
        size: of the tar; a bound where it is not known before the end.
    """

    size: int

    def window(self, offset: int, length: int) -> tuple[bytes | mmap.mmap | memoryview, int]:
        """A buffer that holds the bytes from ``offset`` on, at least ``length`` unless the tar ends before, and the place
        of its first byte. Offsets never go back by more than the last window."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a payload; offsets go in any order."""


class LocalBytes:
    """A plain file, mapped: only the pages that are looked at are read."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                # Left to be unmapped with the last reference: a view of it may still be in use.
                self._view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}).") from None
        self.size = len(self._view)

    def window(self, offset: int, length: int) -> tuple[mmap.mmap, int]:
        """The whole file."""
        return self._view, 0

    def read(self, offset: int, length: int) -> bytes:
        """A copy of some bytes."""
        return self._view[offset : offset + length]


class RemoteBytes:
    """An object in a store, a window at a time."""

    def __init__(self, info: ObjectInfo) -> None:
        self._reader = RangeReader(info)
        self.size = info.size

    def window(self, offset: int, length: int) -> tuple[memoryview, int]:
        """The next bytes, a few more than are asked for."""
        length = max(0, min(max(length, _WINDOW), self.size - offset))
        return (self._reader.read([(offset, length)])[0] if length else memoryview(b"")), offset

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes, by a request of their own."""
        return bytes(self._reader.read([(offset, length)])[0])


class GzipBytes:
    """A gzip file, unpacked on the way; remembers points from which it can be read later without its beginning.

    Args:
        path: of a local file.
        max_bytes: a longer stream is refused: a bomb would never end.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._file = indexed_gzip.IndexedGzipFile(str(path), spacing=_POINT_SPACING)
        self._buffer = b""
        self._base = 0
        self.size = max_bytes

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Unpacks up to there."""
        end = offset + length
        while self._base + len(self._buffer) < end:
            part = self._unpack()
            if not part:
                break
            if offset > self._base:
                keep = self._buffer[offset - self._base :]
                self._base += len(self._buffer) - len(keep)
                self._buffer = keep
            self._buffer += part
            if self._base + len(self._buffer) > self.size:
                raise DatasetError(
                    f"{self._path}: unpacks to more than {self.size:,} bytes; if that is meant, allow it with: "
                    "--max-unpacked"
                )
        return self._buffer, self._base

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes, unpacked from the seek point before them."""
        return read_gzip(self._file, self._path, offset, length)

    def seek_points(self) -> bytes:
        """After the last byte: what ``GzipRanges`` needs."""
        stream = io.BytesIO()
        self._file.export_index(fileobj=stream)
        return stream.getvalue()

    def _unpack(self) -> bytes:
        try:
            part: bytes = self._file.read(_PART)
        except _GZIP_ERRORS as error:
            raise DatasetError(f"{self._path}: the gzip stream is cut short or damaged ({error}).") from None
        return part


class GzipRanges(RangeReader):
    """Ranges of the tar within a local gzip file, as ``RangeReader`` reads those of a plain one.

    Args:
        info: of the gzip file.
        points: its seek points, as ``GzipBytes.seek_points`` gave them.
        unpacked_bytes: size of the tar.
    """

    def __init__(self, info: ObjectInfo, points: bytes, unpacked_bytes: int) -> None:
        self._file_info = info
        self._path = local_path(info.url)
        # What lies between two near members is unpacked in any case.
        super().__init__(replace(info, size=unpacked_bytes), ReadPolicy(gap_bytes=_POINT_SPACING, part_bytes=1 << 62))
        try:
            self._file = indexed_gzip.IndexedGzipFile(str(self._path))
            self._file.import_index(fileobj=io.BytesIO(points))
        except _GZIP_ERRORS as error:
            raise DatasetError(
                f"{self._path}: its seek points can't be read ({error}); index it again with: ray-mm index {self._path}"
            ) from None

    def in_memory(self, offset: int) -> bool | None:
        """Not known: offsets are those of the unpacked tar."""
        return None

    def fetch(self, start: int, target: memoryview) -> None:
        """Fills a buffer with the bytes of the tar from ``start`` on.

        Raises:
            ObjectChangedError: the file was replaced.
            DatasetError: it is damaged.
        """
        now = stat(self.info.url)
        if (now.size, now.version) != (self._file_info.size, self._file_info.version):
            raise ObjectChangedError(f"{self._path}: was replaced while it was read.")
        target[:] = read_gzip(self._file, self._path, start, len(target))


def read_gzip(file: indexed_gzip.IndexedGzipFile, path: Path, offset: int, length: int) -> bytes:
    """Some bytes of the unpacked stream.

    Raises:
        DatasetError: they can't be had.
    """
    try:
        found: bytes = file.pread(length, offset)
    except _GZIP_ERRORS as error:
        raise DatasetError(f"{path}: the gzip stream is damaged near byte {offset} ({error}).") from None
    if len(found) != length:
        raise DatasetError(f"{path}: the gzip stream ends before byte {offset + length}; it was cut short.")
    return found
