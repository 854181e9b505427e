"""Where the bytes of a tar come from while its headers are walked: a mapped file, or ranges of an object."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

from ray_mm.errors import DatasetError
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import ObjectInfo

MAX_UNPACKED_BYTES = 16 << 30
"""A gzip stream that is longer than this is refused, unless the call says otherwise."""

_WINDOW = 256 << 10
"""Of an object: about what one request's round trip costs in transfer, so that small members need few requests."""


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
