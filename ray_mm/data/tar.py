"""The header walk of a tar: where each member's payload lies, without reading one.

A chain of headers has to be followed one by one. What can be done for thousands of them at once is: checksums, names and
their checks. Formats: POSIX ustar and pax (IEEE Std 1003.1), GNU long names and base-256 sizes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_mm.data.tar_bytes import TarBytes
from ray_mm.data.tar_header import (
    BLOCK,
    checked_names,
    checksums,
    foreign,
    has_plain_size,
    member_size,
    pax_records,
    plain_names,
    shown,
    stored_checksums,
)
from ray_mm.errors import DatasetError

_AT_ONCE = 1024
_MAX_EXTENDED = 1 << 20
"""Longest extended header in bytes: names and attributes, never a payload."""
_SIZE_FILLER_KIND = struct.Struct("124x11sB20xB")
_PAX_KIND = ord("x")
_USUAL_KINDS = b"0\0007x"
_FILLERS = b"\0 "
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse member"}


@dataclass(frozen=True)
class Members:
    """The plain files of a tar, in its order.

    Attributes:
        names: paths, without ``./`` and double slashes.
        offsets: int64 [num_members], bytes from the start of the tar.
        sizes: int64 [num_members], bytes.
        tar_bytes: size of the whole tar, its end mark and filling included.
    """

    names: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    tar_bytes: int


def walk_tar(shard: str, source: TarBytes) -> Members:
    """Follows the headers of a tar.

    Args:
        shard: its location, for errors.
        source: its bytes.

    Raises:
        DatasetError: not a tar, cut short, damaged, or with members that ray_mm refuses.
    """
    walk = _Walk(shard, source)
    tar_bytes = walk.follow()
    names, kept = checked_names(shard, walk.names)
    none = np.empty(0, np.int64)
    offsets, sizes = np.concatenate([none, *walk.offsets]), np.concatenate([none, *walk.sizes])
    if kept is not None:
        offsets, sizes = offsets[kept], sizes[kept]
    return Members(names, offsets, sizes, tar_bytes)


class _Walk:
    """``names``, ``offsets`` and ``sizes`` are of the members whose headers were checked."""

    def __init__(self, shard: str, source: TarBytes) -> None:
        self.names: list[bytes] = []
        self.offsets: list[npt.NDArray[np.int64]] = []
        self.sizes: list[npt.NDArray[np.int64]] = []
        self._shard = shard
        self._source = source
        # What extended headers say of the next member.
        self._is_extended = False
        self._long_name: bytes | None = None
        self._pax: dict[str, bytes] = {}
        self._announced = -1
        """Where the header must be that the last extended one speaks of."""
        self._kinds = b""
        """Of the extended headers directly before that place."""
        # Headers that are still to be checked, all in one window.
        self._window = memoryview(b"")
        self._base = 0
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._skipped: list[int] = []
        self._renamed: dict[int, bytes] = {}
        self._resized: list[int] = []

    def follow(self) -> int:
        """Goes from header to header up to the end mark, and returns the size of the tar."""
        offset, base, limit, size = 0, 0, 0, self._source.size
        window = self._window
        starts, lengths, unpack = self._starts, self._lengths, _SIZE_FILLER_KIND.unpack_from
        while True:
            if offset + BLOCK > limit:
                self._check()
                window, base = self._move(offset)
                limit = base + len(window)
            digits, filler, kind = unpack(window, offset - base)
            length = -1
            if kind in _USUAL_KINDS and filler in _FILLERS:
                try:
                    # Read more strictly in _check, for many headers at once.
                    length = int(digits, 8)
                except ValueError:
                    length = -1
            starts.append(offset)
            if length < 0 or kind == _PAX_KIND or self._is_extended:
                found = self._special(offset, window[offset - base : offset - base + BLOCK], length)
                if found is None:
                    return self._end(offset)
                length = found
            lengths.append(length)
            if offset + BLOCK + length > size:
                self._check()
                raise self._too_long(self.names[-1], length, offset)
            if len(starts) == _AT_ONCE:
                self._check()
            offset += BLOCK + (length + BLOCK - 1 & -BLOCK)

    def _move(self, offset: int) -> tuple[memoryview, int]:
        found, self._base = self._source.window(offset, BLOCK)
        self._window = memoryview(found)
        limit = self._base + len(found)
        if offset + BLOCK > limit:
            raise self._cut_short(limit, "without the end mark of a tar")
        return self._window, self._base

    def _special(self, offset: int, header: memoryview, length: int) -> int | None:
        """Reads a header that is not a plain file's usual one: the length of what follows it, or None at the end mark."""
        try:
            if header[156] == _PAX_KIND and length >= 0:
                self._read_pax(offset, length)
                return length
            if not any(header):
                self._starts.pop()
                return None
            return self._read_special(header.tobytes(), offset)
        except DatasetError:
            # Where this header or an earlier one is damaged, that is the cause.
            self._lengths.append(0)
            self._resized.append(len(self._lengths) - 1)
            self._check()
            raise

    def _read_pax(self, offset: int, length: int) -> None:
        payload = self._extended_payload(offset, length)
        if offset == self._announced:
            self._announce(b"x", offset, length)
        else:  # without a call, for this is what every member of such a tar has
            self._kinds, self._announced = b"x", offset + BLOCK + (length + BLOCK - 1 & -BLOCK)
        tells = b" path=" in payload or b" size=" in payload or b"GNU.sparse" in payload
        # Most have one record, of when the file was changed.
        is_one = not tells and payload.startswith(b"%d " % length) and payload.endswith(b"\n")
        self._pax = {} if is_one else pax_records(self._shard, payload)
        self._is_extended = tells or self._long_name is not None
        self._skipped.append(len(self._lengths))

    def _read_special(self, header: bytes, offset: int) -> int:
        row, kind, length = len(self._lengths), header[156:157], member_size(header)
        if kind in (b"L", b"x", b"g", b"K", b"5", b"V"):
            self._require_length(header, length, offset)
            if kind == b"x":
                self._read_pax(offset, length)
                return length
            if kind == b"L":
                self._long_name, self._is_extended = self._read_long_name(offset, length), True
            elif kind == b"5":
                length, self._is_extended, self._long_name, self._pax = 0, False, None, {}
                self._resized.append(row)
            elif kind == b"V":  # the label that tar -V gives the whole, a member like any other
                self._is_extended, self._long_name, self._pax = False, None, {}
            # The others are of all members, or name a link's target: neither ends what L and x say.
            self._skipped.append(row)
            if kind not in (b"5", b"V"):
                self._announce(kind, offset, length)
            return length
        pax, name = self._pax, self._long_name or self._pax.get("path")
        self._is_extended, self._long_name, self._pax = False, None, {}
        if kind not in (b"0", b"\0", b"7"):
            what = _REFUSED.get(kind, f"of type {kind!r}")
            raise DatasetError(
                f"{self._shard}[{shown(name or _name(header))}]: is {what}; a shard holds plain files only."
            )
        if any(key.startswith("GNU.sparse") for key in pax):
            name = pax.get("GNU.sparse.name") or name  # the header's own is one that only sparse files have
            raise DatasetError(
                f"{self._shard}[{shown(name or _name(header))}]: sparse members are not supported; write the tar without "
                "--sparse."
            )
        if pax.get("size"):
            length = int(pax["size"]) if pax["size"].isdigit() and len(pax["size"]) < 20 else -1
            self._resized.append(row)
        self._require_length(header, length, offset, name)
        if name:
            self._renamed[row] = name
        return length

    def _read_long_name(self, offset: int, length: int) -> bytes:
        payload = self._extended_payload(offset, length + BLOCK - 1 & -BLOCK)
        if payload[length:].count(0) != len(payload) - length:
            raise DatasetError(
                f"{self._shard}: damaged: a long name at byte {offset + BLOCK} goes on behind the {length} bytes that its header "
                "claims. Write the tar again."
            )
        return payload[:length].rstrip(b"\0")

    def _announce(self, kind: bytes, offset: int, length: int) -> None:
        """Damage makes a header jump over members, or loses one: then its end mark, or another one's member, follows."""
        kinds = self._kinds if offset == self._announced else b""
        if kind in kinds and kind != b"g":
            raise DatasetError(
                f"{self._shard}: damaged: a second extended header of type {kind.decode()!r} at byte {offset}, expected the "
                "member that the first is of. Write the tar again."
            )
        self._kinds = kinds + kind
        self._announced = offset + BLOCK + (length + BLOCK - 1 & -BLOCK)

    def _extended_payload(self, offset: int, length: int) -> bytes:
        if length > _MAX_EXTENDED:
            raise DatasetError(
                f"{self._shard}: an extended header of {length:,} bytes at byte {offset}; expected {_MAX_EXTENDED:,} at "
                "most. Write the tar again."
            )
        start = offset + BLOCK
        window, base = self._window, self._base
        if start + length > base + len(window):
            found, base = self._source.window(start, length)
            window = memoryview(found)
        payload = bytes(window[start - base : start - base + length])
        if len(payload) < length:
            raise self._cut_short(start + len(payload), "within an extended header")
        return payload

    def _require_length(self, header: bytes, length: int, offset: int, name: bytes | None = None) -> None:
        if length < 0 or offset + BLOCK + length > self._source.size:
            raise self._too_long(name or _name(header), length, offset)

    def _check(self) -> None:
        """Checks the headers that were passed, and keeps what they say."""
        if not self._starts:
            return
        starts, lengths = np.array(self._starts, np.int64), np.array(self._lengths, np.int64)
        blocks = np.frombuffer(self._window, np.uint8, len(self._window) // BLOCK * BLOCK).reshape(-1, BLOCK)
        headers = blocks[(starts - self._base) // BLOCK]
        wrong = np.flatnonzero(checksums(headers) != stored_checksums(headers))
        if len(wrong):
            raise self._damaged(headers[wrong[0]].tobytes(), int(starts[wrong[0]]))
        names = plain_names(headers)
        doubtful = ~has_plain_size(headers)
        doubtful[self._resized] = False
        for row in np.flatnonzero(doubtful).tolist():
            length = member_size(headers[row].tobytes())
            if length != lengths[row]:
                raise self._too_long(names[row], length, int(starts[row]))
        for row, name in self._renamed.items():
            names[row] = name
        if self._skipped:
            is_member = np.ones(len(starts), np.bool_)
            is_member[self._skipped] = False
            names = [name for name, there in zip(names, is_member.tolist(), strict=True) if there]
            starts, lengths = starts[is_member], lengths[is_member]
        self.names += names
        self.offsets.append(starts + BLOCK)
        self.sizes.append(lengths)
        for waiting in (self._starts, self._lengths, self._skipped, self._renamed, self._resized):
            waiting.clear()

    def _end(self, offset: int) -> int:
        """The end mark is two blocks of zeros; nothing but zeros may follow, or a reader would silently stop too early."""
        self._check()
        if offset == self._announced:
            raise DatasetError(
                f"{self._shard}: damaged: an extended header is followed by the end mark at byte {offset}, expected the member "
                "that it is of. Write the tar again."
            )
        place = offset
        while True:
            window, base = self._source.window(place, 2 * BLOCK)
            part = memoryview(window)[place - base : place - base + (1 << 20)]
            if not len(part):
                break
            if bytes(part).count(0) != len(part):
                raise DatasetError(
                    f"{self._shard}: has data after the end mark at byte {offset}; it is damaged, or several tars were joined "
                    "into one file. Write it again."
                )
            place += len(part)
        if place < offset + 2 * BLOCK:
            raise self._cut_short(place, "within the end mark of a tar")
        return place

    def _damaged(self, header: bytes, offset: int) -> DatasetError:
        what = foreign(header) if offset == 0 else f"damaged: the header at byte {offset} fails its checksum"
        return DatasetError(f"{self._shard}: {what}.")

    def _too_long(self, name: bytes, length: int, offset: int) -> DatasetError:
        return DatasetError(
            f"{self._shard}[{shown(name)}]: claims {length} bytes at byte {offset + BLOCK} of {self._source.size}; the tar was "
            "cut short or is damaged."
        )

    def _cut_short(self, size: int, where: str) -> DatasetError:
        return DatasetError(f"{self._shard}: ends at byte {size} {where}; it was cut short. Write it again.")


def _name(header: bytes) -> bytes:
    return plain_names(np.frombuffer(header, np.uint8).reshape(1, BLOCK))[0]
