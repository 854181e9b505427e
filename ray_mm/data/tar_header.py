"""The fields of a tar's headers: one header as bytes, or many as uint8 [N, 512]. POSIX ustar and pax, and GNU's dialect."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ray_mm.errors import DatasetError

BLOCK = 512
Headers = npt.NDArray[np.uint8]
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHECKSUM_DIGITS = 8 ** np.arange(5, -1, -1)


def foreign(head: bytes) -> str:
    """What a file is that does not begin with a tar's header."""
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed with {name}; members can't be found in it. Unpack it to a plain .tar, or use gzip"
    return "not a tar"


def checksums(headers: Headers) -> npt.NDArray[np.int64]:
    """The sums that headers should state: their bytes, with spaces in the checksum's own place, int64 [N]."""
    # Summed as uint32, which is twice as fast as int64.
    whole = headers.sum(axis=1, dtype=np.uint32).astype(np.int64)
    found: npt.NDArray[np.int64] = whole - headers[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    return found


def stored_checksums(headers: Headers) -> npt.NDArray[np.int64]:
    """The sums that headers state, int64 [N]; −1 where that is no number."""
    digits = headers[:, 148:154] - np.uint8(ord("0"))
    found: npt.NDArray[np.int64] = digits @ _CHECKSUM_DIGITS
    usual = (digits < 8).all(axis=1) & (headers[:, 154] == 0) & (headers[:, 155] == ord(" "))
    for row in np.flatnonzero(~usual):
        found[row] = octal(headers[row, 148:156].tobytes())
    return found


def has_plain_size(headers: Headers) -> npt.NDArray[np.bool_]:
    """Whether the size is written as eleven octal digits and a zero or a space, bool [N]."""
    digits = headers[:, 124:135] - np.uint8(ord("0"))
    found: npt.NDArray[np.bool_] = (digits < 8).all(axis=1) & ((headers[:, 135] == 0) | (headers[:, 135] == ord(" ")))
    return found


def member_size(header: bytes) -> int:
    """The size that a header states, in bytes; −1 where it is no number."""
    field = header[124:136]
    if field[0] & 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return octal(field)


def octal(field: bytes) -> int:
    """An octal number with spaces before it, and spaces or zero bytes after it; −1 where it is none."""
    text = field.lstrip(b" ").rstrip(b" \0")
    # int() alone would also take a sign, underscores and 0o; and a zero byte first ends the number for other readers.
    return int(text or b"0", 8) if not text.strip(b"01234567") else -1


def plain_names(headers: Headers) -> list[bytes]:
    """The name in each header, with ustar's prefix."""
    names: list[bytes] = np.ascontiguousarray(headers[:, :100]).view("S100").ravel().tolist()
    if b"".join(names).count(0):
        names = [name.split(b"\0", 1)[0] for name in names]
    for row in np.flatnonzero(headers[:, 345]):
        if headers[row, 257:263].tobytes() == b"ustar\0":
            names[row] = headers[row, 345:500].tobytes().split(b"\0", 1)[0] + b"/" + names[row]
    return names


def pax_records(shard: str, payload: bytes) -> dict[str, bytes]:
    """Keyword → value of an extended header.

    Raises:
        DatasetError: it can't be read.
    """
    records: dict[str, bytes] = {}
    while payload:
        space = payload.find(b" ", 0, 21)
        number = payload[:space] if space > 0 else b""
        length = int(number) if number.isdigit() else 0
        if not space < length <= len(payload) or payload[length - 1 : length] != b"\n":
            raise DatasetError(f"{shard}: damaged: an extended header can't be read.")
        keyword, _, value = payload[space + 1 : length - 1].partition(b"=")
        records[keyword.decode("utf-8", "replace")] = value
        payload = payload[length:]
    return records


def shown(name: bytes) -> str:
    """A name for an error."""
    return name.decode("utf-8", "backslashreplace")


def checked_names(shard: str, names: list[bytes]) -> tuple[list[str], npt.NDArray[np.int64] | None]:
    """Member names as texts.

    Args:
        shard: for errors.
        names: as they stand in the headers.

    Returns:
        The names without ``./`` and double slashes; and which of them are left, int64, where some are of folders (None: all).

    Raises:
        DatasetError: a name is not UTF-8, holds a zero byte, or leaves the archive.
    """
    if not names:
        return [], None
    # One text of all names: what hardly any tar has is looked for in all at once.
    joined = b"\0" + b"\0".join(names) + b"\0"
    if joined.count(0) != len(names) + 1:
        name = next(name for name in names if b"\0" in name)
        raise DatasetError(f"{shard}[{shown(name)!r}]: the name holds a zero byte; refused.")
    try:
        text = joined.decode("utf-8")
    except UnicodeDecodeError:
        name = next(name for name in names if not _is_utf8(name))
        raise DatasetError(f"{shard}[{shown(name)}]: the name is not UTF-8; rename the member.") from None
    texts = text[1:-1].split("\0")
    if "\0/" in text or ".." in text:
        for name_text in texts:
            if name_text.startswith("/") or ".." in name_text.split("/"):
                raise DatasetError(f"{shard}[{name_text}]: the name leaves the archive; refused.")
    kept = None
    if "/\0" in text:  # how tars from before ustar mark a folder
        kept = np.array([row for row, name_text in enumerate(texts) if not name_text.endswith("/")], np.int64)
        texts = [texts[row] for row in kept]
    if "./" in text or "//" in text or "/.\0" in text:
        texts = ["/".join(part for part in name_text.split("/") if part not in ("", ".")) for name_text in texts]
    return texts, kept


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
