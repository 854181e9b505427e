"""What says where members lie, and what they are, with a flipped bit: indexes, seek points, ``dataset.json``, tokenizers."""

from __future__ import annotations

import gzip
from contextlib import suppress

import pytest

from ray_mm.data.index import index_shard
from ray_mm.data.manifest import open_dataset
from ray_mm.data.sidecar import index_path, points_path, read_points, write_index
from ray_mm.errors import DatasetError
from tests.factories import make_dataset
from tests.faults.damage import flips, says_the_same, small_dataset
from tests.faults.lab import Fault, Lab, Outcome
from tests.faults.samples import make_samples


def _index_bit(lab: Lab) -> None:
    shard, dataset, _ = small_dataset(lab)
    path, expected = index_path(shard), dataset.read_index(0)
    content = path.read_bytes()
    training, num_same = lab.plan(), 0
    for place, damaged in flips(content, range(0, len(content) * 8, 5)):
        path.write_bytes(damaged)
        try:
            assert says_the_same(dataset.read_index(0), expected), f"bit {place} gives samples other bytes"
            num_same += 1
        except DatasetError as error:
            assert "000000.index.parquet" in str(error)
    assert num_same < len(content) * 8 / 5 / 2, "most of it says something"
    path.write_bytes(bytes(content[:200]) + bytes([content[200] ^ 1]) + content[201:])
    with lab.stopped("the index is damaged", named=r"shards/000000\.index\.parquet"):
        lab.read(training)
    with lab.stopped("the index is damaged", named=r"shards/000000\.index\.parquet"):
        lab.feed(training)


def _manifest_bit(lab: Lab) -> None:
    folder = make_samples(lab.folder / "train", range(6), num_shards=2)
    expected = open_dataset(folder)
    changes = {"dataset.json": (b"100.0", b"101.0"), "shards.parquet": (b"000001", b"000003")}
    for name, change in changes.items():
        path = folder / name
        content, num_same = path.read_bytes(), 0
        for place, damaged in flips(content, range(0, len(content) * 8, 3)):
            path.write_bytes(damaged)
            with suppress(DatasetError):
                # Such as 1e5 for 1E5.
                assert open_dataset(folder) == expected, f"bit {place} of {name} gives another dataset"
                num_same += 1
                continue
            with lab.unopened(f"{folder}"):
                open_dataset(folder)
        assert num_same <= 8, "all of it says something"
        path.write_bytes(content.replace(*change))
        with lab.unopened(f"{name}: has the CRC32C"):
            lab.plan()
        assert not (lab.folder / "run").exists(), "nothing was begun"
        path.write_bytes(content)


def _tokenizer_bit(lab: Lab) -> None:
    folder = make_dataset(lab.folder / "train", num_samples=4, fields=("text", "label"))
    path = folder / "tokenizer.text.json"
    dataset, content = open_dataset(folder), path.read_bytes()
    for _, damaged in flips(content, range(0, len(content) * 8, 7)):
        path.write_bytes(damaged)
        with lab.unopened(r"tokenizer\.text\.json: has the CRC32C \w{8}, dataset\.json says"):
            dataset.tokenizer("text")


def _points_bit(lab: Lab) -> None:
    _, _, content = small_dataset(lab)
    packed = lab.folder / "packed.tgz"
    packed.write_bytes(gzip.compress(content, mtime=0))
    index = index_shard(packed)
    write_index(index_path(packed), index)
    path = points_path(index_path(packed))
    points = path.read_bytes()
    for _, damaged in flips(points, range(0, len(points) * 8, max(1, len(points) * 8 // 20_000))):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"packed\.tgz\.index\.points: the seek points of .* are damaged"):
            read_points(index_path(packed), index, str(packed))
    folder = make_samples(lab.folder / "train", range(6), num_shards=1, packed=True)
    training = lab.plan()
    assert lab.read(training) == []
    path = points_path(open_dataset(folder).shard_path(0).with_suffix(".tgz.index.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    for read in (lab.read, lab.feed):
        with lab.stopped("the seek points of .* are damaged", named=r"shards/000000\.tgz"):
            read(training)


FAULTS = (
    Fault(
        "bit-in-index",
        "a bit flips in the index of a shard (Parquet)",
        (Outcome.STOPPED,),
        ("reader", "feed"),
        _index_bit,
        "the key can't be known; or the bit means nothing",
    ),
    Fault(
        "bit-in-manifest",
        "a bit flips in `dataset.json` or `shards.parquet`: every third of them is tried",
        (Outcome.UNOPENED,),
        ("open",),
        _manifest_bit,
        "or the bit means nothing",
    ),
    Fault(
        "bit-in-tokenizer",
        "a bit flips in a dataset's tokenizer",
        (Outcome.UNOPENED,),
        ("open",),
        _tokenizer_bit,
    ),
    Fault(
        "bit-in-seek-points",
        "a bit flips in the seek points of a `.tgz`",
        (Outcome.STOPPED,),
        ("reader", "feed"),
        _points_bit,
        "the shard is named, for no sample of it can be read; `ray-mm index` makes them anew",
    ),
)
