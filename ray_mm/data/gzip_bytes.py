"""A tar within a gzip file, on a disk or in a store: unpacked once from its start, then read from anywhere by seek points."""

from __future__ import annotations

import io
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import indexed_gzip

from ray_mm.data.seek_points import SeekPoints, unpack
from ray_mm.errors import DatasetError, ObjectChangedError, RayMMError
from ray_mm.storage import local_path, ranges
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import ObjectInfo, stat

_PART = 1 << 20
_ZLIB_PART = 1 << 16
_POINT_SPACING = 2 << 20
"""Bytes of the tar between two seek points; each point takes 32 kB."""
_GZIP_ERRORS = (indexed_gzip.ZranError, EOFError, OSError, ValueError)


class _Checked:
    """A gzip file as ``indexed_gzip`` reads it, every byte held against the format the first time that it passes.

    That one does not end on some damaged files, and does not look at what is behind the end of a tar.

    Args:
        info: of the file or the object.
        max_bytes: that it may unpack to.
    """

    _PARTS = 4
    """That are kept: while seek points are made, what one read passed is passed again, up to 11 MiB."""

    def __init__(self, info: ObjectInfo, max_bytes: int) -> None:
        self._info = info
        self._reader = RangeReader(info)
        self._parts: deque[tuple[int, memoryview]] = deque(maxlen=self._PARTS)
        self._at = 0
        self._checked = 0
        self._unpacked_bytes = 0
        self._max_bytes = max_bytes
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._between_streams = False
        self.error: RayMMError | None = None
        """Why the last bytes could not be had: what it becomes within ``indexed_gzip`` says nothing of the store."""

    def check_rest(self) -> None:
        """Holds what was not read yet against the format.

        Raises:
            DatasetError: it is cut short or damaged, or something else follows.
        """
        self._at = self._checked
        while self.read(_PART):
            pass
        if not self._between_streams:
            raise DatasetError(f"{self._info.url}: the gzip stream is cut short or damaged (it ends too early).")

    def _check(self, content: bytes) -> None:
        while content:
            if self._between_streams:
                if not content[0]:
                    # Filling, as on tapes: nothing else may follow.
                    if content.strip(b"\0"):
                        raise DatasetError(f"{self._info.url}: something that is no gzip stream stands behind its end.")
                    return
                self._inflate, self._between_streams = zlib.decompressobj(zlib.MAX_WBITS | 16), False
            try:
                self._unpacked_bytes += len(self._inflate.decompress(content, _PART))
            except zlib.error as error:
                raise DatasetError(f"{self._info.url}: the gzip stream is cut short or damaged ({error}).") from None
            if self._unpacked_bytes > self._max_bytes:
                raise DatasetError(
                    f"{self._info.url}: unpacks to more than {self._max_bytes:,} bytes; if that is meant, allow it with: "
                    "--max-unpacked"
                )
            self._between_streams = self._inflate.eof
            content = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than are asked for where a part ends; none at the end of the object."""
        if self._at >= self._reader.info.size:
            return b""
        start, content = self._part()
        found = bytes(content[self._at - start : self._at - start + size])
        if self._at <= self._checked < self._at + len(found):
            try:
                self._check(found[self._checked - self._at :])
            except DatasetError as error:
                self.error = error
                raise
            self._checked = self._at + len(found)
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
        self._packed = _Checked(info, max_bytes)
        self._file = indexed_gzip.IndexedGzipFile(self._packed, spacing=_POINT_SPACING)
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
        return self._buffer, self._base

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes, unpacked from the seek point before them."""
        try:
            found: bytes = self._file.pread(length, offset)
        except _GZIP_ERRORS as error:
            raise self._failure(f"is damaged near byte {offset} ({error})") from None
        if len(found) != length:
            raise DatasetError(f"{self._name}: the gzip stream ends before byte {offset + length}; it was cut short.")
        return found

    def seek_points(self) -> bytes:
        """After the last byte: what ``GzipRanges`` needs.

        Raises:
            DatasetError: behind the tar's end the file is cut short or damaged.
        """
        self._packed.check_rest()
        stream = io.BytesIO()
        self._file.export_index(fileobj=stream)
        return stream.getvalue()

    def _unpack(self) -> bytes:
        try:
            part: bytes = self._file.read(_PART)
        except _GZIP_ERRORS as error:
            raise self._failure(f"is cut short or damaged ({error})") from None
        return part

    def _failure(self, reason: str) -> RayMMError:
        return self._packed.error or DatasetError(f"{self._name}: the gzip stream {reason}.")


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
        try:
            self._points = SeekPoints(points)
        except ValueError as error:
            raise DatasetError(
                f"{info.url}: its seek points can't be read ({error}); index it again with: ray-mm index {info.url}"
            ) from None

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
        if not self.is_remote:
            now = stat(self.info.url)
            if (now.size, now.version) != (self._file_info.size, self._file_info.version):
                raise ObjectChangedError(f"{name}: was replaced while it was read.")
            self._unpack(self._from_disk, name, start, target)
            return
        try:
            self._unpack(self._from_store, name, start, target)
        except DatasetError:
            # A bit may have flipped on its way: in the store it may be whole.
            self._unpack(self._from_store, name, start, target)

    def _unpack(
        self, packed: Callable[[int, int, str], Iterator[bytes]], name: str, start: int, target: memoryview
    ) -> None:
        point = self._points.before(start)
        end = self._points.end_for(start + len(target))
        try:
            unpack(point, packed(point.begin, self._file_info.size if end is None else end, name), start, target)
        except ValueError as error:
            raise DatasetError(f"{name}: the gzip stream is damaged near byte {start} ({error}).") from None

    def _from_disk(self, begin: int, end: int, name: str) -> Iterator[bytes]:
        """Only as much as is asked for: the end is that of the next point."""
        with local_path(self._file_info.url).open("rb") as stream:
            stream.seek(begin)
            while begin < end and (part := stream.read(min(_ZLIB_PART, end - begin))):
                begin += len(part)
                yield part

    def _from_store(self, begin: int, end: int, name: str) -> Iterator[bytes]:
        reader = RangeReader(self._file_info, name=lambda first, last: name)
        content = memoryview(bytearray(end - begin))
        # One after the other: side by side they would wait for threads that wait for them.
        for at in range(0, len(content), reader.policy.part_bytes):
            reader.fetch(begin + at, content[at : at + reader.policy.part_bytes])
        # Not as a whole: zlib copies what it has not taken yet.
        for at in range(0, len(content), _ZLIB_PART):
            yield bytes(content[at : at + _ZLIB_PART])
