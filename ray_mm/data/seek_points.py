"""Places of a gzip file from which it can be unpacked without what is before them.

They are made by ``indexed_gzip`` in its own format (GZIDX 1), and read with ``zlib`` alone: it ends on whatever bytes it is
given, while the former does not on some that are damaged.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("<5sBBQQIII")
_POINT = struct.Struct("<QQBB")
_PART = 1 << 18
_TRAILER_BYTES = 8
_WITH_HEADER = zlib.MAX_WBITS | 16


@dataclass(frozen=True)
class SeekPoint:
    """A place between two deflate blocks.

    Attributes:
        packed: byte of the gzip file; of one within a byte the next.
        unpacked: byte of what is in it.
        bits: of the byte before ``packed`` that belong to what follows.
        window: the unpacked bytes before it, which what follows may repeat; none at the start of a stream.
        has_header: whether the header of a stream follows: at the start of the file.
    """

    packed: int
    unpacked: int
    bits: int
    window: bytes
    has_header: bool = False

    @property
    def begin(self) -> int:
        """The first byte of the gzip file that has to be read."""
        return self.packed - (1 if self.bits else 0)


class SeekPoints:
    """The points of a gzip file, in order.

    Args:
        content: as ``indexed_gzip`` exports them.

    Raises:
        ValueError: they are no such thing, or not whole.
    """

    def __init__(self, content: bytes) -> None:
        try:
            magic, version, _, self.packed_bytes, _, _, window_bytes, count = _HEADER.unpack_from(content)
            if (magic, version) != (b"GZIDX", 1):
                raise ValueError(f"they begin with {content[:6]!r}")
            rows = [_POINT.unpack_from(content, _HEADER.size + row * _POINT.size) for row in range(count)]
        except struct.error as error:
            raise ValueError(str(error)) from None
        at = _HEADER.size + count * _POINT.size
        # A file that is shorter than the space between two has none.
        self._points = [] if rows else [SeekPoint(0, 0, 0, b"", has_header=True)]
        for packed, unpacked, bits, has_window in rows:
            window = content[at : at + window_bytes] if has_window else b""
            at += window_bytes if has_window else 0
            self._points.append(SeekPoint(packed, unpacked, bits, window))
        if at != len(content):
            raise ValueError(f"{len(content)} bytes where {at} were expected")
        self._unpacked_at = [point.unpacked for point in self._points]

    def before(self, offset: int) -> SeekPoint:
        """The last point from which an unpacked byte can be reached."""
        return self._points[max(0, bisect_right(self._unpacked_at, offset) - 1)]

    def end_for(self, stop: int) -> int | None:
        """The byte of the gzip file up to which it has to be read for the unpacked bytes before ``stop``; None: its end."""
        behind = bisect_left(self._unpacked_at, stop)
        return self._points[behind].packed if behind < len(self._points) else None


def unpack(point: SeekPoint, packed: Iterator[bytes], offset: int, target: memoryview) -> None:
    """Fills a buffer with unpacked bytes.

    Args:
        point: at or before the first of them.
        packed: the bytes of the gzip file from ``point.begin`` on, in parts.
        offset: of the first unpacked byte that is wanted.
        target: as many as are wanted.

    Raises:
        ValueError: the gzip file is damaged, or ends too early.
    """
    skip, filled = offset - point.unpacked, 0
    try:
        for part in _parts(point, packed):
            taken = part[skip : skip + len(target) - filled]
            skip = max(0, skip - len(part))
            target[filled : filled + len(taken)] = taken
            filled += len(taken)
            if filled == len(target):
                return
    except zlib.error as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"it ends {len(target) - filled} bytes too early")


def _parts(point: SeekPoint, packed: Iterator[bytes]) -> Iterator[bytes]:
    """What a gzip file unpacks to from a point on, stream after stream."""
    if point.has_header:
        inflate, left_of_trailer = zlib.decompressobj(_WITH_HEADER), 0
    else:
        inflate, left_of_trailer = zlib.decompressobj(-zlib.MAX_WBITS, zdict=point.window), _TRAILER_BYTES
    first = True
    for read in packed:
        content = _aligned(read, point.bits) if first and point.bits else read
        first = False
        while content:
            if inflate.eof:
                # The check sum of a raw stream, which was not read from its start; then another stream, or filling.
                skipped = content[:left_of_trailer]
                left_of_trailer -= len(skipped)
                content = content[len(skipped) :]
                if content and not left_of_trailer:
                    if not content[0]:
                        return
                    inflate, left_of_trailer = zlib.decompressobj(_WITH_HEADER), 0
                continue
            yield inflate.decompress(content, _PART)
            content = inflate.unused_data if inflate.eof else inflate.unconsumed_tail


def _aligned(content: bytes, bits: int) -> bytes:
    """Bytes whose first ``8 - bits`` bits belong to the block before, with empty blocks in the place of those.

    ``zlib.decompressobj`` begins at a byte. What follows can't be moved there: stored blocks are padded to whole bytes.
    """
    prefix, length = _EMPTY_BLOCKS[8 - bits]
    keep = content[0] >> (8 - bits) << (8 - bits)
    prefix |= keep << (length // 8 * 8)
    return prefix.to_bytes(length // 8 + 1, "little") + content[1:]


def _empty_blocks() -> dict[int, tuple[int, int]]:
    """Bits of the last, incomplete byte → empty deflate blocks (RFC 1951) that end there: an integer and their length in bits."""
    # Not the last block, fixed codes, the end of the block.
    fixed = [(0, 1), (1, 2), (0, 7)]
    # The same with codes of its own, an odd number of bits: 257 literals and one distance, of which only the end has a code.
    # The lengths of the codes are told by 18 (many zeros; 1 bit), 0 and 1 (2 bits each), in the order of the RFC.
    lengths = {18: 1, 0: 2, 1: 2}
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    dynamic = [(0, 1), (2, 2), (0, 5), (0, 5), (len(order) - 4, 4), *((lengths.get(symbol, 0), 3) for symbol in order)]
    dynamic += [(0, 1), (138 - 11, 7), (0, 1), (118 - 11, 7)]  # 256 zeros
    # A 1, a 0 (its code is 10, and codes begin with their highest bit), the end.
    dynamic += [(0b11, 2), (0b01, 2), (0, 1)]
    found = {}
    for count in range(4):
        for blocks in (fixed * count, dynamic + fixed * count):
            value = length = 0
            for bits, width in blocks:
                value |= bits << length
                length += width
            found[length % 8] = value, length
    return found


_EMPTY_BLOCKS = _empty_blocks()
