"""Byte ranges of objects and files: near ones joined, many at once, each retried where it broke off.

A request that fails, stalls or takes too long is given up, and the rest of its range is asked for on another connection:
no byte is fetched twice and none is taken from a stream that already failed. Every answer is checked: the version, the
range and the number of bytes. What can't be had in the end is an error; nothing is returned in part.
"""

from __future__ import annotations

import functools
import os
import random
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from ray_mm.errors import ObjectChangedError, ObjectMissingError, StorageError, UsageError
from ray_mm.storage.local import local_path
from ray_mm.storage.remote import ObjectInfo, is_remote, version_of
from ray_mm.storage.stores import first_line, split_url, status_of, storage_error, store_of

Result = TypeVar("Result")
Range = tuple[int, int]
"""Offset and size in bytes."""

CONCURRENCY = 32
"""Requests at once, in a process."""
_RETRIED_STATUS = (408, 429)


@dataclass(frozen=True)
class ReadPolicy:
    """How ranges are asked for. The defaults are measured: ``benchmarks/storage.py``.

    Attributes:
        gap_bytes: ranges that are not further apart are read in one request.
        part_bytes: longest request; a longer range is cut, and its parts are read at once.
        attempt_s: longest time of one request, its body included.
        stall_s: longest time of one request without a byte.
        give_up_s: longest time without a byte over all attempts; then the range can't be read.
        backoff_s: longest pause after the first failure; it doubles with every further one. The pause is drawn at random.
        max_backoff_s: longest pause.
    """

    gap_bytes: int = 1 << 18
    part_bytes: int = 4 << 20
    attempt_s: float = 30.0
    stall_s: float = 10.0
    give_up_s: float = 300.0
    backoff_s: float = 0.2
    max_backoff_s: float = 15.0


REMOTE_POLICY = ReadPolicy()
FILE_POLICY = ReadPolicy(gap_bytes=4096, part_bytes=1 << 62)


class RangeReader:
    """Reads ranges of one object, as long as it is the one that was seen. A file stays open.

    Args:
        info: of the object; with an empty version only its size is checked.
        policy: how to ask. None: as is best for a store or for a disk.
        name: what to call the bytes from one offset up to another, for errors. None: the URL.
    """

    def __init__(
        self, info: ObjectInfo, policy: ReadPolicy | None = None, name: Callable[[int, int], str] | None = None
    ) -> None:
        self.info = info
        self.is_remote = is_remote(info.url)
        self.policy = policy or (REMOTE_POLICY if self.is_remote else FILE_POLICY)
        self._name = name or (lambda start, stop: info.url)
        if self.is_remote:
            self._key = split_url(info.url)[2]
            self._store = store_of(
                info.url, retries=False, timeout_s=self.policy.attempt_s, stall_s=self.policy.stall_s
            )
        else:
            self._descriptor = self._opened()
            weakref.finalize(self, os.close, self._descriptor)

    def read(self, ranges: Sequence[Range]) -> list[memoryview]:
        """The bytes of some ranges, in their order; they may overlap.

        Args:
            ranges: (offset, size) each, within the object.

        Raises:
            ObjectMissingError: the object is gone.
            ObjectChangedError: it was replaced.
            StorageError: the store does not answer in time, or refuses.
        """
        return read_many([(self, ranges)])[0]

    def fetch(self, start: int, target: memoryview) -> None:
        """Fills a buffer with the bytes from ``start`` on; the errors are those of ``read``."""
        if self.is_remote:
            self._fetch_remote(start, target)
        else:
            self._fetch_file(start, target)

    def in_memory(self, offset: int) -> bool | None:
        """Whether a byte of a local file lies in the system's page cache; None where that can't be told."""
        if self.is_remote or not hasattr(os, "RWF_NOWAIT"):
            return None
        try:
            return os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError:  # a file system that does not know the flag
            return None

    def _opened(self) -> int:
        try:
            return os.open(local_path(self.info.url), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ObjectMissingError(f"{self.info.url}: no such file.") from None
        except OSError as error:
            raise StorageError(f"{self.info.url}: can't be read ({error.strerror or error}).") from None

    def _fetch_file(self, start: int, target: memoryview) -> None:
        name = functools.partial(self._name, start, start + len(target))
        try:
            found = os.fstat(self._descriptor)
            version = f"mtime:{found.st_mtime_ns}"
            if found.st_size != self.info.size or self.info.version not in ("", version):
                raise _changed(name(), self.info, found.st_size, version)
            done = 0
            while done < len(target):
                count = os.preadv(self._descriptor, [target[done:]], start + done)
                if count == 0:
                    raise ObjectChangedError(f"{name()}: was cut at byte {start + done} while it was read.")
                done += count
        except OSError as error:
            raise StorageError(f"{name()}: can't be read ({error.strerror or error}).") from None

    def _fetch_remote(self, start: int, target: memoryview) -> None:
        done, failures, last_progress = 0, 0, time.monotonic()
        while done < len(target):
            try:
                for chunk in self._request(start + done, start + len(target)):
                    if done + len(chunk) > len(target):
                        raise StorageError(f"{self.info.url}: the store sent more bytes than were asked for.")
                    target[done : done + len(chunk)] = chunk
                    done += len(chunk)
                    failures, last_progress = 0, time.monotonic()
                error: Exception = StorageError("the store sent fewer bytes than it said")
            except Exception as caught:
                if not _is_passing(caught):
                    raise self._final(caught, start, start + len(target)) from None
                error = caught
            if done == len(target):
                return
            failures += 1
            if time.monotonic() - last_progress > self.policy.give_up_s:
                rest = start + done, start + len(target)
                raise StorageError(
                    f"{self._name(*rest)}: bytes {rest[0]} to {rest[1]} could not be read in {self.policy.give_up_s:g} s and "
                    f"{failures} attempts; the last one failed with: {first_line(error)}"
                )
            pause = min(self.policy.backoff_s * 2 ** min(failures - 1, 16), self.policy.max_backoff_s)
            time.sleep(random.uniform(0, pause))

    def _request(self, start: int, stop: int) -> Iterator[bytes]:
        """One request for the bytes from ``start`` to ``stop``: pieces of its body, as they come."""
        import obstore

        info = self.info
        options: Any = {"range": (start, stop)}
        if info.etag and not info.etag.startswith("W/"):  # a weak ETag never matches
            options["if_match"] = info.etag
        result = obstore.get(self._store, self._key, options=options)
        size, version = result.meta["size"], version_of(result.meta)
        if size != info.size or (version and info.version.startswith(("etag:", "mtime:")) and version != info.version):
            raise _changed(self._name(start, stop), info, size, version)
        if tuple(result.range) != (start, stop):
            raise StorageError(f"{info.url}: asked for bytes {start} to {stop}, the store sent {result.range}.")
        # In pieces, as small as they come: what has arrived before a break is kept.
        yield from result.stream(min_chunk_size=1)

    def _final(self, error: Exception, start: int, stop: int) -> Exception:
        from obstore.exceptions import PreconditionError

        if isinstance(error, PreconditionError):
            return _changed(self._name(start, stop), self.info, None, "")
        return storage_error(self._name(start, stop), error)


class Arena:
    """Memory that is used again and again: fresh memory costs a page fault for every 4 KiB, which takes longer than
    reading a picture into it.

    Args:
        size: bytes; what does not fit gets memory of its own.
    """

    def __init__(self, size: int) -> None:
        self._memory = memoryview(bytearray(size))
        self._used = 0

    def take(self, size: int) -> memoryview:
        """So many bytes, until ``reset``."""
        if self._used + size > len(self._memory):
            return memoryview(bytearray(size))
        taken = self._memory[self._used : self._used + size]
        self._used += size
        return taken

    def reset(self) -> None:
        """Takes everything back: what was taken is overwritten from now on."""
        self._used = 0


def read_many(
    wanted: Sequence[tuple[RangeReader, Sequence[Range]]], arena: Arena | None = None
) -> list[list[memoryview]]:
    """The ranges of several objects at once; the errors are those of ``RangeReader.read``.

    Args:
        wanted: ranges of each.
        arena: the memory that they are read into. None: they get their own.
    """
    found, parts = [], []
    for reader, ranges in wanted:
        views, spans = _joined(reader, ranges, arena)
        found.append(views)
        for start, buffer in spans:
            size = reader.policy.part_bytes
            parts += [(reader, start + at, buffer[at : at + size]) for at in range(0, len(buffer), size)]
    if any(reader.is_remote for reader, _, _ in parts):
        run_all([functools.partial(reader.fetch, start, target) for reader, start, target in parts])
    else:
        for reader, start, target in parts:
            reader.fetch(start, target)
    return found


def run_all(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of calls that wait for a store, made side by side; the first error that is found. None may wait for another."""
    if len(calls) == 1:
        return [calls[0]()]
    futures = [_pool(os.getpid()).submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _joined(
    reader: RangeReader, ranges: Sequence[Range], arena: Arena | None
) -> tuple[list[memoryview], list[tuple[int, memoryview]]]:
    """A view per range, and the spans (start and buffer) that must be filled to give them their bytes."""
    views = [memoryview(b"")] * len(ranges)
    spans: list[tuple[int, memoryview]] = []
    order = sorted((number for number, (_, size) in enumerate(ranges) if size > 0), key=lambda number: ranges[number])
    for group in _near(order, ranges, reader.policy.gap_bytes):
        start = ranges[group[0]][0]
        stop = max(offset + size for offset, size in (ranges[number] for number in group))
        assert start >= 0 and stop <= reader.info.size, (start, stop, reader.info)
        buffer = memoryview(bytearray(stop - start)) if arena is None else arena.take(stop - start)
        spans.append((start, buffer))
        for number in group:
            offset, size = ranges[number]
            views[number] = buffer[offset - start : offset - start + size].toreadonly()
    return views, spans


def _near(order: list[int], ranges: Sequence[Range], gap_bytes: int) -> Iterator[list[int]]:
    group: list[int] = []
    stop = 0
    for number in order:
        offset, size = ranges[number]
        if group and offset - stop > gap_bytes:
            yield group
            group = []
        group.append(number)
        stop = max(stop, offset + size) if len(group) > 1 else offset + size
    if group:
        yield group


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may go better."""
    from obstore import exceptions

    refused = (
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.PreconditionError,
        exceptions.NotSupportedError,
        exceptions.InvalidPathError,
    )
    if isinstance(error, (*refused, FileNotFoundError, ObjectChangedError, UsageError)):
        return False
    status = status_of(error)
    return status is None or status >= 500 or status in _RETRIED_STATUS


def _changed(name: str, info: ObjectInfo, size: int | None, version: str) -> ObjectChangedError:
    found = f"{size} bytes, {version or 'no version'}" if size is not None else "another version"
    return ObjectChangedError(
        f"{name}: was replaced while it was read: it had {info.size} bytes, {info.version or 'no version'}, and now has {found}."
    )


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    # The process is part of the key: threads do not survive a fork.
    return ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="ranges")
