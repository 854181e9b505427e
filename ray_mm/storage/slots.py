"""Files of fixed-size slots on a local disk, shared by the processes of a machine: a slot is whole, or it is not there.

    <folder>/slots.lock               locked while files are made, resized or removed
    <folder>/<name>.slots/lock        locked by every process that uses them; its time of change is their last use
    <folder>/<name>.slots/content     slot after slot; sparse, so that only what was written takes room
    <folder>/<name>.slots/checksums   per slot the CRC32C of its number and content, uint32 little-endian; 0: not there

All names of a folder have one budget. The length of the files is what they claim of it, and the space that they may come to
take. Nothing is flushed and no slot is locked: whatever a killed process, a second writer, a lost power supply or a bad disk
leaves behind has another checksum than the one that stands there, and that is as if it were not there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

Buffers = Sequence[Any]
"""Contiguous arrays, uint8 [bytes]."""

SUM_BYTES = 4
"""What a slot takes besides its content."""

_SUFFIX = ".slots"
_CAN_ADVISE = hasattr(os, "posix_fadvise")  # not on macOS
_NOT_THERE = bytes(SUM_BYTES)


class Slots:
    """The slots of one name, opened by ``open_slots``. Several threads and processes may read and write them at once.

    Args:
        descriptors: of the lock, held as long as this lives, the content, and the checksums.
        slot_bytes: content of a slot.
        num_slots: how many there are room for.
    """

    def __init__(self, descriptors: tuple[int, int, int], slot_bytes: int, num_slots: int) -> None:
        _, self._content, self._checksums = descriptors
        self._slot_bytes = slot_bytes
        self.num_slots = num_slots
        weakref.finalize(self, _close, descriptors)

    def is_there(self, number: int) -> bool:
        """Whether a slot was written; its content may still turn out to be damaged."""
        return self._checksum(number) != _NOT_THERE

    def prefetch(self, number: int) -> None:
        """Lets the disk begin to read a slot, and returns at once."""
        if _CAN_ADVISE:
            os.posix_fadvise(self._content, number * self._slot_bytes, self._slot_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, number: int, buffers: Buffers) -> bool:
        """Reads a slot.

        Args:
            number: of the slot.
            buffers: of ``slot_bytes`` together; filled one after the other.

        Returns:
            Whether it is there, whole. If not, the buffers may hold anything.
        """
        try:
            wanted = self._checksum(number)
            if wanted == _NOT_THERE:
                return False
            count = os.preadv(self._content, buffers, number * self._slot_bytes)
        except OSError:
            return False
        return count == self._slot_bytes and _checksum(number, buffers) == wanted

    def write(self, number: int, buffers: Buffers) -> None:
        """Writes a slot; arguments as of ``read``.

        Raises:
            OSError: the disk is full, or refuses.
        """
        if not 0 <= number < self.num_slots:
            return
        if os.pwritev(self._content, buffers, number * self._slot_bytes) != self._slot_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.pwrite(self._checksums, _checksum(number, buffers), number * SUM_BYTES)

    def _checksum(self, number: int) -> bytes:
        if not 0 <= number < self.num_slots:
            return _NOT_THERE
        found = os.pread(self._checksums, SUM_BYTES, number * SUM_BYTES)
        return found if len(found) == SUM_BYTES else _NOT_THERE


def open_slots(folder: Path, name: str, slot_bytes: int, num_slots: int, budget_bytes: int) -> Slots:
    """Opens the slots of a name, and makes room for as many of them as the budget allows.

    Others of the folder that no process uses are removed for it, the least recently used first. What is there of this name
    is kept: a number of slots may grow at any time, and becomes less only where nobody else uses them.

    Args:
        folder: on a local disk; made if needed.
        name: tells apart what differs in meaning or in ``slot_bytes``.
        slot_bytes: content of a slot.
        num_slots: that are wanted.
        budget_bytes: of all names in the folder together.

    Raises:
        OSError: the disk is full, or refuses.
    """
    path = folder / f"{name}{_SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened, _locked(folder / "slots.lock"):
        path.mkdir(exist_ok=True)
        lock, content, checksums = (_open(path / each) for each in ("lock", "content", "checksums"))
        opened.callback(_close, (lock, content, checksums))
        # Nobody has it alone for long: that takes the folder's lock.
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock)
        granted = _make_room(_others(folder, path), budget_bytes, num_slots * (slot_bytes + SUM_BYTES))
        granted //= slot_bytes + SUM_BYTES
        there = min(os.fstat(content).st_size // slot_bytes, os.fstat(checksums).st_size // SUM_BYTES)
        if granted > there or (granted < there and _is_alone(lock)):
            os.ftruncate(content, granted * slot_bytes)
            os.ftruncate(checksums, granted * SUM_BYTES)
            there = granted
        opened.pop_all()
        return Slots((lock, content, checksums), slot_bytes, there)


@dataclass(frozen=True)
class _Claim:
    """What another name has claimed, in bytes, and when it was used last, in seconds."""

    path: Path
    size: int
    used: float

    def remove(self) -> bool:
        """Removes it, unless a process uses it; whether it is gone."""
        with contextlib.suppress(OSError):
            lock = _open(self.path / "lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.path)
                return True
            finally:
                os.close(lock)
        return False


def _others(folder: Path, path: Path) -> Iterator[_Claim]:
    for other in folder.glob(f"*{_SUFFIX}"):
        if other != path:
            with contextlib.suppress(OSError):
                size = sum(each.stat().st_size for each in other.iterdir())
                yield _Claim(other, size, (other / "lock").stat().st_mtime)


def _make_room(others: Iterable[_Claim], budget_bytes: int, wanted_bytes: int) -> int:
    """Removes others as needed; returns the bytes of those wanted that there is room for."""
    oldest_first = sorted(others, key=lambda claim: claim.used)
    room = budget_bytes - sum(claim.size for claim in oldest_first)
    for claim in oldest_first:
        if room >= wanted_bytes:
            break
        if claim.remove():
            room += claim.size
    return max(0, min(room, wanted_bytes))


def _is_alone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        # A refusal costs the lock that was held.
        fcntl.flock(lock, fcntl.LOCK_SH)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _checksum(number: int, buffers: Buffers) -> bytes:
    # With the number in it, what a disk puts into another place is not taken for what belongs there.
    found = google_crc32c.value(number.to_bytes(8, "little"))
    for buffer in buffers:
        found = google_crc32c.extend(found, buffer)
    # 0 says that nothing is there.
    return (found or 1).to_bytes(SUM_BYTES, "little")
