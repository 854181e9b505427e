"""Shards that are cut, damaged, replaced or gone."""

from __future__ import annotations

import gzip
import io
import resource
import struct
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ray_mm.data.index import index_shard
from ray_mm.data.manifest import open_dataset
from ray_mm.data.members import SampleReader
from ray_mm.errors import DatasetError
from ray_mm.training.state import attempt_starts
from tests.factories import npy_bytes
from tests.faults.damage import flips, says_the_same, small_dataset
from tests.faults.lab import Fault, Lab, Outcome
from tests.faults.samples import key_of, make_samples, members_of

_BLOCK = 512


def _cut_before(lab: Lab) -> None:
    shard, _, content = small_dataset(lab)
    end = len(content.rstrip(b"\0")) // _BLOCK * _BLOCK + _BLOCK
    # A tar ends with two blocks of zeros; what fills it up behind them may be missing.
    for size in range(0, end + 2 * _BLOCK, _BLOCK):
        shard.write_bytes(content[:size])
        with lab.refused(r"000000\.tar: .*(cut short|is empty)|\[sample\d{6}.*\]: claims \d+ bytes"):
            index_shard(shard)


def _cut_after(lab: Lab) -> None:
    shard, dataset, content = small_dataset(lab)
    for size in range(0, len(content), _BLOCK):
        training = lab.plan()
        shard.write_bytes(content[:size])
        with lab.stopped(f"has {size} bytes and had {len(content)}"):
            lab.read(training)
        shard.write_bytes(content)
    for size in range(0, len(content), _BLOCK):
        reader = SampleReader(dataset, ["image", "vector", "number"])
        reader.members(0, 0)
        shard.write_bytes(content[:size])
        for row in range(6):
            with lab.stopped(f"was replaced while it was read: it had {len(content)} bytes"):
                reader.members(0, row)
        shard.write_bytes(content)
    size = len(content) // 2 // _BLOCK * _BLOCK
    training = lab.plan()
    shard.write_bytes(content[:size])
    with lab.stopped(f"has {size} bytes and had {len(content)}"):
        lab.train(training)
    assert len(attempt_starts(training.run)) == 1


def _header_bit(lab: Lab) -> None:
    shard, _, content = small_dataset(lab)
    expected = index_shard(shard)
    headers = sorted(int(offset) - _BLOCK for offsets in expected.offsets.values() for offset in offsets)
    # Every bit of the first header, and of each other one so many that all places are met.
    for number, header in enumerate(headers):
        for _, damaged in flips(
            content, range(header * 8 + number % 8, (header + _BLOCK) * 8, 1 if number == 0 else 16)
        ):
            shard.write_bytes(damaged)
            with suppress(DatasetError):
                # The checksum's own filling may be a space or a zero.
                assert says_the_same(index_shard(shard), expected)
                continue
            with lab.refused(r"000000\.tar: .*(damaged|not a tar)"):
                index_shard(shard)
    # Nobody reads the headers any more.
    assert lab.read(lab.plan()) == []


def _payload_bit(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(12), num_shards=2)
    training = lab.plan()
    for sample in range(12):
        for field, payload in members_of(sample).items():
            with _flipped(folder, sample, field, len(payload) * 4):
                assert lab.read(training) == [key_of(sample)]
    bad = {3: "vector", 5: "image", 8: "number"}
    for sample, field in bad.items():
        _flip(folder, sample, field, 3)
    training = lab.plan(output=str(lab.folder / "fed"))
    lab.feed(training)
    lab.require_exact(training, {key_of(sample) for sample in bad}, {1: 0})
    training = lab.plan(output=str(lab.folder / "trained"))
    assert lab.train(training)["metrics"]["num_quarantined"] == 2 * len(bad)
    lab.require_exact(training, {key_of(sample) for sample in bad})


class _flipped:  # noqa: N801 - a context manager, read as a verb phrase
    """Flips a bit of a member for the time of the block."""

    def __init__(self, folder: Path, sample: int, field: str, bit: int) -> None:
        self._where = folder, sample, field, bit

    def __enter__(self) -> None:
        _flip(*self._where)

    def __exit__(self, *_: object) -> None:
        _flip(*self._where)


def _flip(folder: Path, sample: int, field: str, bit: int) -> None:
    dataset = open_dataset(folder)
    shard, row = next(
        (shard, index.keys.index(key_of(sample)))
        for shard in range(len(dataset.shards))
        if key_of(sample) in (index := dataset.read_index(shard)).keys
    )
    (suffix,) = dataset.manifest.members[field]
    place = int(dataset.read_index(shard).offsets[suffix][row]) + bit // 8
    with dataset.shard_path(shard).open("r+b") as stream:
        stream.seek(place)
        (value,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([value ^ 1 << bit % 8]))


def _payload_bit_unchecked(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(4), num_shards=1, checksums=False)
    training = lab.plan()
    aside = 0
    for bit in range(len(members_of(2)["image"]) * 8):
        with _flipped(folder, 2, "image", bit):
            # What is not set aside is checked to be the picture that it was.
            aside += lab.read(training) == [key_of(2)]
    assert aside > 100
    _flip(folder, 2, "image", 8 * 50)
    training = lab.plan(output=str(lab.folder / "fed"))
    lab.feed(training)
    lab.require_exact(training, {key_of(2)}, {1: 0})


def _huge_header(lab: Lab) -> None:
    shard, _, content = small_dataset(lab)
    for size in (b"77777777777\0", b"\x80" + (1 << 60).to_bytes(11, "big"), b"%011o\0" % len(content)):
        header = bytearray(content[:_BLOCK])
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        shard.write_bytes(bytes(header) + content[_BLOCK:])
        with lab.refused(r"\[sample000000\.image\.png\].*claims \d+ bytes"):
            index_shard(shard)


def _zero_bytes(lab: Lab) -> None:
    make_samples(lab.folder / "train", range(20), instead={(3, "image"): b"", (11, "vector"): b"", (12, "image"): b""})
    training = lab.plan()
    present = {"image": 0, "vector": 0, "number": 0}

    def count(batch: object) -> None:
        for field in present:
            present[field] += int(batch.tensors[f"{field}.presence"].sum())  # type: ignore[attr-defined]

    trained = lab.feed(training, on_batch=count)
    assert trained == {key_of(sample): 2 for sample in range(20)}
    assert present == {"image": 36, "vector": 38, "number": 40}
    lab.require_exact(training, set(), {1: 0})


def _bomb_members(lab: Lab) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = 60_000
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as stream:
        stream.write(npy_bytes(np.zeros(0, np.float32)).replace(b"(0,)", b"(250000000,)"))
        for _ in range(1000):
            stream.write(bytes(1_000_000))
    claims = npy_bytes(np.zeros(3, np.float32)).replace(b"(3,)", b"(999999999999,)")
    make_samples(
        lab.folder / "train",
        range(20),
        instead={(1, "image"): png, (6, "vector"): packed.getvalue(), (13, "vector"): claims},
    )
    bad = {key_of(sample) for sample in (1, 6, 13)}
    training = lab.plan()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert set(lab.read(training)) == bad
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 128 << 20, "450 MB of pixels, 1 GB of floats and 4 TB of nothing were not unpacked"
    training = lab.plan(output=str(lab.folder / "fed"))
    lab.feed(training)
    lab.require_exact(training, bad, {1: 0})


def _bomb_gzip(lab: Lab) -> None:
    shard = lab.folder / "0.tgz"
    shard.write_bytes(gzip.compress(bytes(200 << 20)))
    with lab.refused(r"0\.tgz: .*unpacks to more than 1,048,576 bytes"):
        index_shard(shard, max_unpacked=1 << 20)


def _replaced_unnoticed(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(16), num_shards=2)
    training = lab.plan()
    first, second = (folder / "shards" / f"00000{number}.tar" for number in range(2))
    other = second.read_bytes()
    size = first.stat().st_size
    assert abs(size - len(other)) < 10_240
    first.write_bytes(other[:size].ljust(size, b"\0"))
    bad = {key_of(sample) for sample in range(8)}
    lab.feed(training)
    lab.require_exact(training, bad, {1: 0})


def _replaced_in_place(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(16), num_shards=2, in_place=True, checksums=False)
    training = lab.plan()
    shard = folder / "shards/000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[::-1])
    with lab.stopped("has changed since it was indexed"):
        lab.feed(training)


def _deleted(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(16), num_shards=2)
    training = lab.plan()
    (folder / "shards/000001.tar").unlink()
    with lab.stopped(r"000001\.tar\[sample\d{6}\]: the shard is missing"):
        lab.feed(training)
    training = lab.plan(output=str(lab.folder / "trained"))
    with lab.stopped(r"000001\.tar\[sample\d{6}\]: the shard is missing"):
        lab.train(training)
    assert len(attempt_starts(training.run)) == 1


FAULTS = (
    Fault(
        "cut-before-index",
        "a tar ends at any of its 512-byte boundaries",
        (Outcome.REFUSED,),
        ("index",),
        _cut_before,
    ),
    Fault(
        "cut-after-index",
        "a shard is cut at any of its 512-byte boundaries after it was indexed, before or while it is read",
        (Outcome.STOPPED,),
        ("reader", "training"),
        _cut_after,
    ),
    Fault(
        "bit-in-header",
        "a bit flips in a header of a tar",
        (Outcome.REFUSED,),
        ("index", "reader"),
        _header_bit,
        "after it was indexed, headers are not read any more",
    ),
    Fault(
        "bit-in-payload",
        "a bit flips in a member, in a dataset that `preprocess` wrote or in tars that were indexed with checksums",
        (Outcome.QUARANTINED,),
        ("reader", "feed", "training"),
        _payload_bit,
    ),
    Fault(
        "bit-in-unchecked-payload",
        "a bit flips in a picture (PNG) of a tar that was indexed without checksums",
        (Outcome.QUARANTINED,),
        ("reader", "feed"),
        _payload_bit_unchecked,
        "or it is the same picture. In formats without a checksum of their own (JPEG, NPY, JSON) a flipped bit that decodes is "
        "seen only with checksums in the index",
    ),
    Fault(
        "huge-header",
        "a header of a tar claims a size of gigabytes, exabytes, or of a little too much",
        (Outcome.REFUSED,),
        ("index",),
        _huge_header,
    ),
    Fault(
        "zero-bytes",
        "a member has no bytes",
        (Outcome.UNHARMED,),
        ("feed",),
        _zero_bytes,
        "the field is absent in that sample",
    ),
    Fault(
        "bomb-in-member",
        "a PNG of 3.6 gigapixels, an array of 1 GB packed into 1 MB, an array that claims 4 TB",
        (Outcome.QUARANTINED,),
        ("reader", "feed"),
        _bomb_members,
        "memory grows by less than 128 MiB",
    ),
    Fault(
        "bomb-in-gzip",
        "a `.tgz` unpacks without end",
        (Outcome.REFUSED,),
        ("index",),
        _bomb_gzip,
        "the limit is `--max-unpacked`",
    ),
    Fault(
        "replaced-by-equal-size",
        "a shard of a dataset is replaced by another one of the same size after it was indexed",
        (Outcome.QUARANTINED,),
        ("feed",),
        _replaced_unnoticed,
        "every sample of it, by the checksums of its members",
    ),
    Fault(
        "replaced-in-place",
        "a tar that a dataset refers to is replaced by one of the same size after it was indexed",
        (Outcome.STOPPED,),
        ("feed",),
        _replaced_in_place,
    ),
    Fault(
        "deleted",
        "a shard is deleted between index and read",
        (Outcome.STOPPED,),
        ("feed", "training"),
        _deleted,
    ),
)
