"""Where each member of a shard lies: a header walk of the tar → one Parquet sidecar beside it.

    shards/000000.tar  →  shards/000000.index.parquet

The sidecar has a row per sample: ``key``, and for every suffix that occurs in the shard ``<suffix>:offset`` and
``<suffix>:size`` in bytes (−1 where the sample lacks it). Only headers are read: the payload pages of a local file are
never touched. Format: POSIX ustar and pax (IEEE Std 1003.1), GNU long names.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.errors import DatasetError
from ray_mm.storage import write_atomic

_BLOCK = 512
_SIZE_KEY = b"ray_mm.shard_bytes"


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and where its payload lies, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the order of the tar.

    Attributes:
        keys: a name per sample.
        offsets: suffix → int64 [num_samples], bytes from the start of the tar; −1 where absent.
        sizes: suffix → int64 [num_samples], bytes; −1 where absent.
        shard_bytes: size of the tar when it was indexed.
    """

    keys: list[str]
    offsets: dict[str, npt.NDArray[np.int64]]
    sizes: dict[str, npt.NDArray[np.int64]]
    shard_bytes: int

    def __len__(self) -> int:
        return len(self.keys)


def index_path(shard: Path) -> Path:
    """The sidecar of a shard."""
    return shard.with_suffix(".index.parquet")


def index_shard(shard: Path) -> ShardIndex:
    """Walks a tar's headers.

    Raises:
        DatasetError: not a tar, cut short, or with members that ray_mm refuses.
    """
    keys: list[str] = []
    rows: list[dict[str, Member]] = []
    seen: set[str] = set()
    for member in _walk(shard):
        key, suffix = _split_name(member.name)
        if not suffix:
            continue
        if not keys or key != keys[-1]:
            if key in seen:
                raise DatasetError(f"{shard}[{key}]: the members of this sample are not next to each other in the tar.")
            seen.add(key)
            keys.append(key)
            rows.append({})
        if suffix in rows[-1]:
            raise DatasetError(f"{shard}[{key}]: {suffix} stands twice.")
        rows[-1][suffix] = member
    offsets = {suffix: np.full(len(keys), -1, np.int64) for suffix in sorted({s for row in rows for s in row})}
    sizes = {suffix: np.full(len(keys), -1, np.int64) for suffix in offsets}
    for position, row in enumerate(rows):
        for suffix, member in row.items():
            offsets[suffix][position] = member.offset
            sizes[suffix][position] = member.size
    return ShardIndex(keys, offsets, sizes, shard.stat().st_size)


def write_index(shard: Path, index: ShardIndex) -> Path:
    """Writes the sidecar beside the shard and returns its path."""
    columns: dict[str, pa.Array] = {"key": pa.array(index.keys, pa.string())}
    for suffix in index.offsets:
        columns[f"{suffix}:offset"] = pa.array(index.offsets[suffix])
        columns[f"{suffix}:size"] = pa.array(index.sizes[suffix])
    table = pa.table(columns).replace_schema_metadata({_SIZE_KEY: str(index.shard_bytes).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(index_path(shard), sink.getvalue().to_pybytes())
    return index_path(shard)


def read_index(shard: Path) -> ShardIndex:
    """Reads the sidecar of a shard.

    Raises:
        DatasetError: it is missing, damaged, or the shard has changed since it was written.
    """
    path = index_path(shard)
    try:
        table = pq.read_table(path, memory_map=False)
        shard_bytes = int(table.schema.metadata[_SIZE_KEY])
        suffixes = [name.removesuffix(":offset") for name in table.column_names if name.endswith(":offset")]
        index = ShardIndex(
            keys=table.column("key").to_pylist(),
            offsets={suffix: _column(table, f"{suffix}:offset") for suffix in suffixes},
            sizes={suffix: _column(table, f"{suffix}:size") for suffix in suffixes},
            shard_bytes=shard_bytes,
        )
    except FileNotFoundError:
        raise DatasetError(f"{path}: the shard's index is missing; make it with: ray-mm index {shard}") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise DatasetError(f"{path}: the index is damaged ({error}); remake it with: ray-mm index {shard}") from None
    try:
        size = shard.stat().st_size
    except FileNotFoundError:
        raise DatasetError(f"{shard}: the shard is missing.") from None
    if size != shard_bytes:
        raise DatasetError(
            f"{shard}: has {size} bytes and had {shard_bytes} when it was indexed; if it was meant to change, "
            f"index it again with: ray-mm index {shard}"
        )
    for suffix, offsets in index.offsets.items():
        ends = offsets + index.sizes[suffix]
        if len(offsets) and (
            (offsets < -1).any() or ((offsets < 0) != (index.sizes[suffix] < 0)).any() or ends.max() > size
        ):
            raise DatasetError(f"{path}: the index is damaged ({suffix}); remake it with: ray-mm index {shard}")
    return index


def _column(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = table.column(name).cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=True)
    return values


def _walk(shard: Path) -> Iterator[Member]:
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


def _split_name(name: str) -> tuple[str, str]:
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
