"""Reading and decoding, measured alone in one process."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from ray_mm.data.blocks import block_items, to_arrays
from ray_mm.data.epochs import Epochs
from ray_mm.data.reader import BatchReader
from ray_mm.data.samples import open_planned
from ray_mm.errors import DatasetError
from ray_mm.training.probe_data import probe_data
from tests.data.feeds import make_feed
from tests.factories import make_dataset

FIELDS = ("image", "vector", "label")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_reading_and_decoding_are_measured_and_nothing_is_written(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, FIELDS, corrupt={(7, "image"), (20, "vector")})
    before = files(tmp_path)
    feed = make_feed(tmp_path / "train", fields=FIELDS, batch_size=20)
    read, decode, _ = probe_data(feed, 0.2)
    assert read.wall_s >= 0 and read.cpu_s >= 0 and not read.is_remote
    assert read.again_s is not None and read.again_s > 0
    members = sum(len(value) for sample in range(60) for value in _members(tmp_path / "train", sample))
    assert read.size_bytes == pytest.approx(members / 60, rel=0.2), "the bytes of a sample's members, on average"
    assert set(decode.fields_s) == set(FIELDS) and decode.fields_s["image"] > decode.fields_s["label"] > 0
    assert decode.cpu_s == pytest.approx(sum(decode.fields_s.values()))
    assert (decode.num_samples, decode.num_bad) == (60, 2), "counted once, however often they are decoded"
    assert files(tmp_path) == before, "no quarantine"


def _members(dataset: Path, sample: int) -> list[bytes]:
    found = []
    for path in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.startswith(f"sample{sample:06d}."):
                    stream = tar.extractfile(info)
                    assert stream is not None
                    found.append(stream.read())
    return found


def test_the_block_is_what_the_training_begins_with(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, FIELDS)
    feed = make_feed(tmp_path / "train", fields=FIELDS, batch_size=20)
    arrays = to_arrays(probe_data(feed, 0.2)[2])
    epochs = Epochs(open_planned(feed.train), feed.train, feed.shuffle)
    assert feed.shuffle is not None
    wanted, _ = BatchReader(epochs.datasets, feed.preprocessor, None).read(
        epochs.places(0, 20, 0), 0, 20, (feed.shuffle.seed, 0)
    )
    assert set(arrays) == set(wanted)
    assert all((arrays[name] == wanted[name]).all() for name in wanted)


def test_a_block_is_full_however_few_samples_were_decoded(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 3, FIELDS, num_shards=1)
    read, decode, table = probe_data(make_feed(tmp_path / "train", fields=FIELDS, batch_size=64), 1e-6)
    assert table.num_rows == 64 and (to_arrays(table)["weight"] == 1).all()
    assert read.num_samples == 3 and decode.num_samples >= 1


def test_a_block_of_small_samples_holds_several_batches(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, ("vector", "label"))
    feed = make_feed(tmp_path / "train", batch_size=10, block_bytes=1 << 20)
    table = probe_data(feed, 0.05)[2]
    assert table.num_rows == feed.block_rows > 10
    assert block_items(table) == range(feed.items_per_block)


def test_it_tells_a_cold_page_cache_from_a_warm_one(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, FIELDS)
    feed = make_feed(tmp_path / "train", fields=FIELDS)
    probe_data(feed, 0.05)
    warm = probe_data(feed, 0.05)[0].in_memory
    if warm is None:
        pytest.skip("this file system does not tell what lies in memory")
    assert warm == 1.0
    for path in (tmp_path / "train" / "shards").glob("*.tar"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = probe_data(feed, 0.05)[0].in_memory
    # A page that is cut by the end of a file stays; a file system in memory keeps all of it.
    assert cold is not None and (cold < 0.5 or cold == 1.0)


def test_a_dataset_that_is_gone_is_told_as_everywhere(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 6, FIELDS)
    feed = make_feed(tmp_path / "train", fields=FIELDS)
    (tmp_path / "train" / "shards" / "000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"000001\.tar"):
        probe_data(feed, 0.05)
