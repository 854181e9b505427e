"""A tar within a gzip file, on a disk or in a store: unpacked once from its start, then read from anywhere by seek points."""

from __future__ import annotations

import io
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import indexed_gzip

from ray_mm.errors import DatasetError, ObjectChangedError, RayMMError
from ray_mm.storage import is_remote, local_path, ranges
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import ObjectInfo, stat

_PART = 1 << 20
_POINT_SPACING = 2 << 20
"""Bytes of the tar between two seek points; each point takes 32 kB."""
_GZIP_ERRORS = (indexed_gzip.ZranError, EOFError, OSError, ValueError)


class _Object:
    """An object in a store, as the file that ``indexed_gzip`` reads from.

    Args:
        info: of the object.
    """

    _PARTS = 4
    """That are kept: while seek points are made, what one read passed is passed again, up to 11 MiB."""

    def __init__(self, info: ObjectInfo) -> None:
        self._reader = RangeReader(info)
        self._parts: deque[tuple[int, memoryview]] = deque(maxlen=self._PARTS)
        self._at = 0
        self.error: RayMMError | None = None
        """Why the last bytes could not be had: what it becomes within ``indexed_gzip`` says nothing of the store."""

    def hold(self, start: int, content: memoryview) -> None:
        """Has some bytes of the object, so that they need not be fetched."""
        self.error = None
        self._parts.clear()
        self._parts.append((start, content))

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than are asked for where a part ends; none at the end of the object."""
        if self._at >= self._reader.info.size:
            return b""
        start, content = self._part()
        found = bytes(content[self._at - start : self._at - start + size])
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte, counted from the start or the end."""
        assert whence in (io.SEEK_SET, io.SEEK_END), whence
        self._at = offset if whence == io.SEEK_SET else self._reader.info.size + offset
        return self._at

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seekable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """There is none."""
        raise io.UnsupportedOperation("fileno")

    def _part(self) -> tuple[int, memoryview]:
        for start, content in self._parts:
            if start <= self._at < start + len(content):
                return start, content
        size = min(self._reader.policy.part_bytes, self._reader.info.size - self._at)
        content = memoryview(bytearray(size))
        try:
            self._reader.fetch(self._at, content)
        except RayMMError as error:
            self.error = error
            raise
        self._parts.append((self._at, content))
        return self._at, content


class GzipBytes:
    """A gzip file, unpacked on the way; remembers points from which it can be read later without its beginning.

    Args:
        info: of the file or the object.
        max_bytes: a longer stream is refused: a bomb would never end.
    """

    def __init__(self, info: ObjectInfo, max_bytes: int) -> None:
        self._name = info.url
        self._object = _Object(info) if is_remote(info.url) else None
        self._file = indexed_gzip.IndexedGzipFile(self._object or str(local_path(info.url)), spacing=_POINT_SPACING)
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
                    f"{self._name}: unpacks to more than {self.size:,} bytes; if that is meant, allow it with: "
                    "--max-unpacked"
                )
        return self._buffer, self._base

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes, unpacked from the seek point before them."""
        return _read(self._file, self._object, self._name, offset, length)

    def seek_points(self) -> bytes:
        """After the last byte: what ``GzipRanges`` needs."""
        stream = io.BytesIO()
        self._file.export_index(fileobj=stream)
        return stream.getvalue()

    def _unpack(self) -> bytes:
        try:
            part: bytes = self._file.read(_PART)
        except _GZIP_ERRORS as error:
            reason = f"{self._name}: the gzip stream is cut short or damaged ({error})."
            raise _failure(self._object, reason) from None
        return part


class GzipRanges(RangeReader):
    """Ranges of the tar within a gzip file, as ``RangeReader`` reads those of a plain one.

    Of an object in a store, the bytes from the seek point before a range to the one behind it are fetched.

    Args:
        info: of the gzip file.
        points: its seek points, as ``GzipBytes.seek_points`` gave them.
        unpacked_bytes: size of the tar.
        name: what to call the bytes of the tar from one offset up to another, for errors. None: the gzip file.

    Raises:
        DatasetError: the seek points can't be read.
    """

    def __init__(
        self, info: ObjectInfo, points: bytes, unpacked_bytes: int, name: Callable[[int, int], str] | None = None
    ) -> None:
        self._file_info = info
        # What lies between two near members is unpacked in any case.
        policy = replace(ranges.REMOTE_POLICY, gap_bytes=_POINT_SPACING, part_bytes=1 << 62)
        super().__init__(replace(info, size=unpacked_bytes), policy, name)
        self._object = _Object(info) if self.is_remote else None
        self._lock = threading.Lock()
        try:
            # Without a buffer: to fill one, much more than the range would be unpacked.
            self._file = indexed_gzip.IndexedGzipFile(self._object or str(local_path(info.url)), buffer_size=1)
            self._file.import_index(fileobj=io.BytesIO(points))
            places = list(self._file.seek_points())
        except _GZIP_ERRORS as error:
            raise DatasetError(
                f"{info.url}: its seek points can't be read ({error}); index it again with: ray-mm index {info.url}"
            ) from None
        self._unpacked_at = [unpacked for unpacked, _ in places]
        self._packed_at = [packed for _, packed in places]

    def in_memory(self, offset: int) -> bool | None:
        """Not known: offsets are those of the unpacked tar."""
        return None

    def fetch(self, start: int, target: memoryview) -> None:
        """Fills a buffer with the bytes of the tar from ``start`` on.

        Raises:
            ObjectChangedError: the file was replaced.
            ObjectMissingError: it is gone.
            DatasetError: it is damaged.
            StorageError: the store does not answer in time, or refuses.
        """
        name = self._name(start, start + len(target))
        if self._object is None:
            now = stat(self.info.url)
            if (now.size, now.version) != (self._file_info.size, self._file_info.version):
                raise ObjectChangedError(f"{name}: was replaced while it was read.")
            target[:] = _read(self._file, None, name, start, len(target))
            return
        try:
            self._fetch_packed(self._object, name, start, target)
        except DatasetError:
            # A bit may have flipped on its way: in the store it may be whole.
            self._fetch_packed(self._object, name, start, target)

    def _fetch_packed(self, packed: _Object, name: str, start: int, target: memoryview) -> None:
        reader = RangeReader(self._file_info, name=lambda first, last: name)
        begin, end = self._span(start, start + len(target))
        content = memoryview(bytearray(end - begin))
        # One after the other: side by side they would wait for threads that wait for them.
        for at in range(0, len(content), reader.policy.part_bytes):
            reader.fetch(begin + at, content[at : at + reader.policy.part_bytes])
        with self._lock:
            packed.hold(begin, content)
            target[:] = _read(self._file, packed, name, start, len(target))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes of the gzip file that some bytes of the tar are unpacked from."""
        first, behind = bisect_right(self._unpacked_at, start) - 1, bisect_left(self._unpacked_at, stop)
        # A point may lie within a byte, which is the one before the place that it names.
        begin = self._packed_at[first] - 1 if first > 0 else 0
        return begin, self._packed_at[behind] if behind < len(self._packed_at) else self._file_info.size


def _read(file: indexed_gzip.IndexedGzipFile, packed: _Object | None, name: str, offset: int, length: int) -> bytes:
    """Some bytes of the unpacked stream.

    Raises:
        DatasetError: they can't be had.
        StorageError: the store does not answer, or refuses.
    """
    try:
        found: bytes = file.pread(length, offset)
    except _GZIP_ERRORS as error:
        raise _failure(packed, f"{name}: the gzip stream is damaged near byte {offset} ({error}).") from None
    if len(found) != length:
        raise DatasetError(f"{name}: the gzip stream ends before byte {offset + length}; it was cut short.")
    return found


def _failure(packed: _Object | None, reason: str) -> RayMMError:
    return packed.error if packed is not None and packed.error is not None else DatasetError(reason)
