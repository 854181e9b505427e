"""A folder on a local disk that keeps blocks of remote objects: read once per machine instead of once per process and epoch.

    <folder>/<hash of the URL>/<hash of the version>/<number>.block     4 MiB of the object, the last one less
    <folder>/<hash of the URL>/<hash of the version>/<number>.part      being fetched; locked by the one who does
    <folder>/lock                                                       locked to count bytes; holds their sum

Any number of processes may share a folder. A block takes its name when it is whole, so a process that is killed leaves no
broken one. A block is fetched by one process at a time; the others wait a while for it. An object that was replaced has
another version, and so another folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_mm.storage.disk import CacheDisk
from ray_mm.storage.ranges import Range, RangeReader, run_all

BLOCK_BYTES = 4 << 20
NextUse = Callable[[str, int], "float | None"]
"""(hash of the URL, first byte of a block) → when the block is wanted next, in any unit; None: it is not in the plan."""

_WAIT_S = 30.0
_POLL_S = 0.02
_TOUCH_S = 60.0
_STALE_S = 3600.0
_FILL = 0.9


@dataclass(frozen=True)
class _Piece:
    """A part of a range within one block: where it starts in the block, and the memory it belongs in."""

    start: int
    target: memoryview


@dataclass(frozen=True)
class _Entry:
    """A file of the cache: its size in bytes, and when it was used last, in seconds."""

    path: Path
    size: int
    used: float


class BlockCache:
    """Blocks of remote objects in a folder, up to a number of bytes.

    Args:
        folder: made if needed.
        size_bytes: of all blocks together.
        next_use: which blocks the plan wants last, so that these go first. None: the least recently used go first.
    """

    def __init__(self, folder: Path, size_bytes: int, next_use: NextUse | None = None) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._next_use = next_use
        self._disk = CacheDisk(folder)
        with self._guarded():
            folder.mkdir(parents=True, exist_ok=True)
            # Processes that were killed have left their parts, and the sum a little wrong.
            with self._locked() as usage:
                entries = list(self._entries())
                usage.write(
                    sum(each.size for each in entries if each.path.suffix == ".block" or not _remove(each.path))
                )

    def read_many(self, wanted: Sequence[tuple[RangeReader, Sequence[Range]]]) -> list[list[memoryview]]:
        """Ranges of several remote objects; arguments, results and errors are those of ``ranges.read_many``."""
        found: list[list[memoryview]] = []
        jobs: list[Callable[[], None]] = []
        for reader, ranges in wanted:
            if not reader.info.version:  # nothing would tell a copy from what is there now
                found.append(reader.read(ranges))
                continue
            buffers = [memoryview(bytearray(size)) for _, size in ranges]
            found.append([buffer.toreadonly() for buffer in buffers])
            blocks: defaultdict[int, list[_Piece]] = defaultdict(list)
            for (offset, size), buffer in zip(ranges, buffers, strict=True):
                for number in range(offset // BLOCK_BYTES, -(-(offset + size) // BLOCK_BYTES)):
                    start = max(offset, number * BLOCK_BYTES)
                    stop = min(offset + size, (number + 1) * BLOCK_BYTES)
                    blocks[number].append(_Piece(start - number * BLOCK_BYTES, buffer[start - offset : stop - offset]))
            jobs += [functools.partial(self._fill, reader, number, pieces) for number, pieces in blocks.items()]
        run_all(jobs)
        return found

    def drop(self, reader: RangeReader, ranges: Sequence[Range]) -> None:
        """Forgets blocks that turned out to be damaged."""
        for offset, size in ranges:
            for number in range(offset // BLOCK_BYTES, -(-(offset + size) // BLOCK_BYTES)):
                _remove(self._block(reader, number))

    def _block(self, reader: RangeReader, number: int) -> Path:
        return self._folder / url_hash(reader.info.url) / url_hash(reader.info.version) / f"{number}.block"

    def _fill(self, reader: RangeReader, number: int, pieces: list[_Piece]) -> None:
        block, size = self._block(reader, number), _block_size(reader, number)
        give_up = time.monotonic() + _WAIT_S
        while not _take(block, size, pieces):
            part = None if self._disk.is_broken or time.monotonic() > give_up else self._begin(block)
            if part is not None:
                with contextlib.closing(part):
                    self._fetch(reader, number, block, part, pieces)
                return
            if self._disk.is_broken or time.monotonic() > give_up:
                for piece in pieces:
                    reader.fetch(number * BLOCK_BYTES + piece.start, piece.target)
                return
            time.sleep(_POLL_S)

    def _begin(self, block: Path) -> _Part | None:
        """The right to fetch a block. None: another process has it, or the disk does not want it."""
        try:
            block.parent.mkdir(parents=True, exist_ok=True)
            return _Part.locked(block.with_suffix(".part"))
        except OSError as error:
            self._disk.give_up(error)
            return None

    def _fetch(self, reader: RangeReader, number: int, block: Path, part: _Part, pieces: list[_Piece]) -> None:
        size = _block_size(reader, number)
        if _take(block, size, pieces):  # it was finished between the look and the lock
            part.remove()
            return
        buffer = memoryview(bytearray(size))
        try:
            with self._guarded():
                self._reserve(part, size)
            reader.fetch(number * BLOCK_BYTES, buffer)
            if not self._disk.is_broken:
                with self._guarded():
                    part.write(buffer)
                    # Whoever counts must find it under one of its names.
                    with self._locked():
                        part.rename(block)
        finally:
            with self._guarded():
                self._give_back(part)
            part.remove()
        for piece in pieces:
            piece.target[:] = buffer[piece.start : piece.start + len(piece.target)]

    def _reserve(self, part: _Part, size: int) -> None:
        """Gives a part its full size, counts it, and makes room for it."""
        with self._locked() as usage:
            part.allocate(size)
            total = usage.read() + size
            usage.write(total if total <= self._size_bytes else self._evict())

    def _give_back(self, part: _Part) -> None:
        """Removes a part that did not become a block, and counts it no longer."""
        if part.is_there:
            with self._locked() as usage:
                size = part.size
                if part.remove():
                    usage.write(max(0, usage.read() - size))

    def _evict(self) -> int:
        """Removes what is wanted last; returns the bytes that are left."""
        entries = list(self._entries())
        left = sum(entry.size for entry in entries)
        for entry in sorted(entries, key=self._rank):
            if left <= self._size_bytes * _FILL:
                break
            if _remove(entry.path):
                left -= entry.size
        return left

    def _rank(self, entry: _Entry) -> tuple[int, float]:
        """What goes first has the smallest: what no plan wants and nobody used for long, then what the plan wants last."""
        wanted = self._next_use(entry.path.parts[-3], int(entry.path.stem) * BLOCK_BYTES) if self._next_use else None
        if wanted is not None:
            return 1, -wanted
        return (0 if time.time() - entry.used > _STALE_S else 2), entry.used

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield _Entry(path, found.st_size, found.st_mtime)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Usage]:
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Usage(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._disk.give_up(error)


class _Part:
    """A block that is being fetched. The lock goes with the process that holds it, however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.is_there = True

    @classmethod
    def locked(cls, path: Path) -> _Part | None:
        """The part, or None where another thread or process has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have renamed or removed it since it was opened here.
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return cls(path, descriptor)
        os.close(descriptor)
        return None

    @property
    def size(self) -> int:
        """Of the file."""
        return os.fstat(self._descriptor).st_size

    def allocate(self, size: int) -> None:
        """Gives the file its size."""
        os.ftruncate(self._descriptor, size)

    def write(self, content: memoryview) -> None:
        """Writes all bytes."""
        done = 0
        while done < len(content):
            done += os.pwrite(self._descriptor, content[done:], done)

    def rename(self, block: Path) -> None:
        """Makes it a block."""
        self._path.rename(block)
        self.is_there = False

    def remove(self) -> bool:
        """Removes the file, unless it has become a block; whether it was there."""
        was_there, self.is_there = self.is_there, False
        if was_there:
            with contextlib.suppress(OSError):
                self._path.unlink()
        return was_there

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._descriptor)


class _Usage:
    """The number of bytes that are kept, in the lock file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> int:
        text = os.pread(self._descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0

    def write(self, total: int) -> None:
        os.pwrite(self._descriptor, f"{total:<20}\n".encode(), 0)


def url_hash(url: str) -> str:
    """The name of an object's folder in a cache."""
    return hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


def _block_size(reader: RangeReader, number: int) -> int:
    return min(BLOCK_BYTES, reader.info.size - number * BLOCK_BYTES)


def _take(block: Path, size: int, pieces: list[_Piece]) -> bool:
    """Copies what is wanted of a block; whether it was there, whole."""
    try:
        descriptor = os.open(block, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        if found.st_size != size:
            return False
        if time.time() - found.st_mtime > _TOUCH_S:
            os.utime(descriptor)
        return all(_read(descriptor, piece) for piece in pieces)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read(descriptor: int, piece: _Piece) -> bool:
    done = 0
    while done < len(piece.target):
        count = os.preadv(descriptor, [piece.target[done:]], piece.start + done)
        if count == 0:
            return False
        done += count
    return True


def _remove(path: Path) -> bool:
    """Removes a file of the cache, unless it is being fetched; whether it is gone."""
    with contextlib.suppress(OSError):
        if path.suffix == ".block":
            path.unlink()
            return True
        part = _Part.locked(path)
        if part is not None:
            with contextlib.closing(part):
                return part.remove()
    return False
