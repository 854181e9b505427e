"""The header walk of a tar: where each member's payload lies, without reading one.

Only headers are read: the payload pages of a local file are never touched. Formats: POSIX ustar and pax (IEEE Std 1003.1),
GNU long names.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_mm.errors import DatasetError

_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and where its payload lies, in bytes."""

    name: str
    offset: int
    size: int


def walk_tar(shard: Path) -> Iterator[Member]:
    """The members of a tar in their order.

    Raises:
        DatasetError: not a tar, cut short, damaged, or with members that ray_mm refuses.
    """
    try:
        size = shard.stat().st_size
        with shard.open("rb") as stream:
            if size == 0:
                raise DatasetError(f"{shard}: is empty; expected a tar.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                yield from _walk_view(shard, view, size)
    except OSError as error:
        raise DatasetError(f"{shard}: can't be read ({error.strerror or error}).") from None


def _walk_view(shard: Path, view: mmap.mmap, size: int) -> Iterator[Member]:
    offset = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        header = view[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise DatasetError(
                f"{shard}: ends at byte {size} without the end mark of a tar; it was cut short. Write it again."
            )
        if header.count(0) == _BLOCK:
            _check_end(shard, view, offset, size)
            return
        if _octal(header[148:156]) != sum(header[:148]) + 256 + sum(header[156:]):
            what = _foreign(header) if offset == 0 else f"damaged: the header at byte {offset} fails its checksum"
            raise DatasetError(f"{shard}: {what}.")
        kind = header[156:157]
        name = long_name or pax.get("path") or _plain_name(shard, header)
        payload = offset + _BLOCK
        length = _decimal(pax["size"]) if pax.get("size") else _number(header[124:136])
        if length < 0 or payload + length > size:
            raise DatasetError(
                f"{shard}[{name}]: claims {length} bytes at byte {payload} of {size}; the tar was cut short or is damaged."
            )
        following = payload + (length + _BLOCK - 1) // _BLOCK * _BLOCK
        match kind:
            case b"L":
                long_name = _decoded(shard, view[payload : payload + length].rstrip(b"\0"))
                offset = following
                continue
            case b"x":
                pax = _pax(shard, view[payload : payload + length])
                offset = following
                continue
            case b"g" | b"K":  # for all members, or a link's target: neither moves a payload, nor ends what L and x say
                offset = following
                continue
            case b"5":
                following = payload
            case b"0" | b"\0" | b"7" if name.endswith("/"):  # how tars from before ustar mark a folder
                pass
            case b"0" | b"\0" | b"7":
                if any(key.startswith("GNU.sparse") for key in pax):
                    raise DatasetError(
                        f"{shard}[{name}]: sparse members are not supported; write the tar without --sparse."
                    )
                yield Member(_checked(shard, name), payload, length)
            case _:
                what = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse member"}.get(
                    kind, f"of type {kind!r}"
                )
                raise DatasetError(f"{shard}[{name}]: is {what}; a shard holds plain files only.")
        long_name, pax, offset = None, {}, following


def _check_end(shard: Path, view: mmap.mmap, offset: int, size: int) -> None:
    """The end mark is two blocks of zeros; nothing but zeros may follow, or a reader would silently stop too early."""
    if size < offset + 2 * _BLOCK:
        raise DatasetError(
            f"{shard}: ends at byte {size} within the end mark of a tar; it was cut short. Write it again."
        )
    for start in range(offset, size, 1 << 20):
        part = view[start : min(start + (1 << 20), size)]
        if part.count(0) != len(part):
            raise DatasetError(
                f"{shard}: has data after the end mark at byte {offset}; it is damaged, or several tars were joined into "
                "one file. Write it again."
            )


def _foreign(header: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"is compressed with {name}; members can't be found in it. Unpack it to a plain .tar"
    return "not a tar"


_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _plain_name(shard: Path, header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _decoded(shard, prefix + b"/" + name if prefix else name)


def _decoded(shard: Path, name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        shown = name.decode("utf-8", "backslashreplace")
        raise DatasetError(f"{shard}[{shown}]: the name is not UTF-8; rename the member.") from None


def _pax(shard: Path, payload: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while payload:
        try:
            length = int(payload[: payload.index(b" ")])
            keyword, _, value = payload[payload.index(b" ") + 1 : length - 1].partition(b"=")
        except ValueError:
            length = 0
        if not 0 < length <= len(payload) or payload[length - 1 : length] != b"\n":
            raise DatasetError(f"{shard}: damaged: an extended header can't be read.")
        # Only names must be text; other records, such as extended attributes, may hold anything.
        text = _decoded(shard, value) if keyword == b"path" else value.decode("utf-8", "replace")
        records[keyword.decode("utf-8", "replace")] = text
        payload = payload[length:]
    return records


def _checked(shard: Path, name: str) -> str:
    parts = name.split("/")
    if "\0" in name:
        raise DatasetError(f"{shard}[{name!r}]: the name holds a zero byte; refused.")
    if name.startswith("/") or ".." in parts:
        raise DatasetError(f"{shard}[{name}]: the name leaves the archive; refused.")
    return "/".join(part for part in parts if part not in ("", "."))


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last path component."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    # A hidden file has no stem: it belongs to no sample.
    return (folder + slash + stem, suffix) if stem else (name, "")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return _octal(field)


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    # int() alone would also take a sign, underscores and 0o.
    return int(text or b"0", 8) if not text.strip(b"01234567") else -1


def _decimal(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1
