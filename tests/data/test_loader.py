"""Every rank gets exactly the planned batches in the planned order, through a real Ray; anything else is an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_mm.config.fields import ImageField
from ray_mm.data.feed import Feed
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.index import index_shard
from ray_mm.data.loader import LoadedBatch, check_positions
from ray_mm.data.manifest import ShardInfo, write_dataset
from ray_mm.data.plan import Schedule
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.errors import OrderError
from ray_mm.storage import sha256_file
from tests.data.feeds import load, make_feed, planned_keys
from tests.factories import SPECS, class_of, image_bytes, make_dataset, write_tar

# The loader silences this for its process; pytest takes that back for every test.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` (103 samples) and ``validation`` (17 samples)."""
    folder = tmp_path_factory.mktemp("loader")
    make_dataset(folder / "train", 103, ("vector", "label"), num_shards=4)
    make_dataset(folder / "validation", 17, ("vector", "label"), num_shards=1, seed=1)
    return folder


def _check(feed: Feed, found: list[list[LoadedBatch]]) -> None:
    for rank, batches in enumerate(found):
        assert [batch.item.number for batch in batches] == list(range(feed.first_item, feed.schedule.num_items))
        for batch in batches:
            assert batch.keys == planned_keys(feed, batch.item.number, rank)
            assert min(batch.wait_s, batch.transfer_s, batch.read_s, batch.queued_s) >= 0
            assert (batch.decode_s > 0) == (batch.stop > batch.start)
            size = batch.stop - batch.start
            assert batch.tensors[POSITION].tolist() == [
                *range(batch.start, batch.stop),
                *[-1] * (feed.batch_rows - size),
            ]
            assert batch.tensors[WEIGHT].tolist() == [1.0] * size + [0.0] * (feed.batch_rows - size)


@pytest.mark.ray
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_get_their_shares_in_order_over_epochs_validations_and_executions(
    local_ray: None, data: Path, world_size: int
) -> None:
    # 11 + 2 batches an epoch; an execution of 4 tasks of 3 blocks ends in mid-epoch.
    feed = make_feed(
        data / "train",
        data / "validation",
        world_size=world_size,
        samples_per_task=3 * -(-10 // world_size),
        tasks_per_execution=4,
    )
    assert feed.tasks.num_tasks(0) == 4 and feed.tasks.num_tasks(2) > 0
    found = load(feed)
    _check(feed, found)
    # The union of the ranks' shares is the global batch, labels and all.
    for shares in zip(*found, strict=True):
        seed = 0 if shares[0].item.phase == "train" else 1
        for batch in shares:
            labels = [class_of(int(key.removeprefix("sample")), seed) for key in batch.keys if key]
            assert batch.tensors["label"][: len(labels)].tolist() == labels


@pytest.mark.ray
@pytest.mark.parametrize(("world_size", "first_item"), [(1, 0), (2, 5), (3, 0)])
def test_small_batches_travel_together(local_ray: None, data: Path, world_size: int, first_item: int) -> None:
    feed = make_feed(
        data / "train",
        data / "validation",
        world_size=world_size,
        first_item=first_item,
        samples_per_task=40,
        tasks_per_execution=2,
    )
    # Neither an epoch's 13 batches nor the whole training are a multiple of 4.
    together = dataclasses.replace(feed, block_bytes=4 * feed.batch_rows * max(feed.row_bytes, feed.train.sample_bytes))
    assert together.items_per_block == 4 and together.tasks.num_tasks(1)
    found, alone = load(together), load(feed)
    for batches, expected in zip(found, alone, strict=True):
        assert [batch.item for batch in batches] == [batch.item for batch in expected]
        for batch, other in zip(batches, expected, strict=True):
            assert (batch.keys, batch.start, batch.stop) == (other.keys, other.start, other.stop)
            assert all(torch.equal(batch.tensors[name], other.tensors[name]) for name in other.tensors)
        assert sum(batch.wait_s > 0 for batch in batches) == -(-len(batches) // 4), "one wait for every block"


@pytest.mark.ray
@pytest.mark.parametrize(("first_item", "world_size"), [(7, 2), (12, 1), (25, 3)])
def test_a_resumed_training_gets_the_rest_whatever_the_number_of_workers(
    local_ray: None, data: Path, first_item: int, world_size: int
) -> None:
    feed = make_feed(data / "train", data / "validation", world_size=world_size, first_item=first_item)
    found = load(feed)
    assert [len(batches) for batches in found] == [feed.schedule.num_items - first_item] * world_size
    _check(feed, found)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("world_size", "first_item", "head_samples"), [(1, 0, 20), (2, 5, 50), (3, 12, 9), (2, 0, None)]
)
def test_what_workers_read_by_themselves_at_the_start_is_what_ray_would_read(
    local_ray: None, data: Path, world_size: int, first_item: int, head_samples: int | None
) -> None:
    feed = make_feed(data / "train", data / "validation", world_size=world_size, first_item=first_item)
    headed = dataclasses.replace(feed, head_samples=head_samples, block_bytes=1 << 20)
    # As many batches as hold so many samples; a training this small is all head but for its last batch.
    wanted = len(range(first_item, 25)) if head_samples is None else -(-head_samples // feed.batch_rows)
    assert len(headed.head) == wanted and headed.tasks.first_item == first_item + wanted < feed.schedule.num_items
    found, streamed = load(headed), load(feed)
    _check(feed, streamed)
    for batches, expected in zip(found, streamed, strict=True):
        for batch, other in zip(batches, expected, strict=True):
            assert (batch.item, batch.keys) == (other.item, other.keys)
            assert all(torch.equal(batch.tensors[name], other.tensors[name]) for name in other.tensors)


@pytest.mark.ray
def test_a_training_that_is_done_reads_nothing(local_ray: None, data: Path) -> None:
    feed = make_feed(data / "train", first_item=22)
    assert feed.schedule.num_items == 22
    assert load(feed) == [[]]


@pytest.mark.ray
def test_a_batch_larger_than_the_dataset_is_padded(local_ray: None, tmp_path: Path) -> None:
    feed = make_feed(make_dataset(tmp_path / "train", 5, ("label",)), fields=("label",), batch_size=64, world_size=3)
    found = load(feed)
    _check(feed, found)
    assert [len(batches) for batches in found] == [2, 2, 2]
    assert found[2][0].start == found[2][0].stop == 5 and not found[2][0].tensors[WEIGHT].any()


@pytest.mark.ray
def test_tasks_of_very_different_duration_do_not_change_the_order(local_ray: None, tmp_path: Path) -> None:
    # A large picture takes about thirty times as long as a small one, and some tasks have many of them.
    feed = make_feed(
        _uneven_dataset(tmp_path / "train"),
        fields=("image", "label"),
        batch_size=6,
        epochs=2,
        world_size=2,
        samples_per_task=9,
    )
    assert feed.tasks.num_tasks(0) == 23
    _check(feed, load(feed))


@pytest.mark.ray
def test_loaders_that_expect_something_else_stop(local_ray: None, data: Path) -> None:
    feed = make_feed(data / "train", epochs=2)
    longer, shorter = (dataclasses.replace(feed.schedule, epochs=epochs) for epochs in (3, 1))
    with pytest.raises(OrderError, match="more batches arrived than were planned"):
        load(feed, dataclasses.replace(feed, schedule=shorter))
    with pytest.raises(OrderError, match="the data ended at batch 22 of 33"):
        load(feed, dataclasses.replace(feed, schedule=longer))
    with pytest.raises(OrderError, match="batch 0 of the training arrived where batch 1 was planned"):
        load(feed, dataclasses.replace(feed, first_item=1))
    with pytest.raises(OrderError, match="a block of 10 rows arrived where 1 batches of 9 rows were planned"):
        load(feed, dataclasses.replace(feed, schedule=Schedule(103, 0, 9, 2)))


@pytest.mark.ray
def test_the_same_batch_of_another_epoch_is_out_of_place(local_ray: None, tmp_path: Path) -> None:
    # One batch an epoch: its positions are the same in every epoch.
    feed = make_feed(make_dataset(tmp_path / "train", 5, ("label",)), fields=("label",), epochs=4, first_item=2)
    with pytest.raises(OrderError, match="batch 2 of the training arrived where batch 1 was planned"):
        load(feed, dataclasses.replace(feed, first_item=1))


@pytest.mark.parametrize(
    ("found", "start", "stop"),
    [([0, 1, 2], 0, 3), ([5, 6, -1, -1], 5, 7), ([-1, -1], 7, 7), ([], 3, 3)],
)
def test_planned_positions_pass(found: list[int], start: int, stop: int) -> None:
    check_positions(np.array(found, np.int64), start, stop)


@pytest.mark.parametrize(
    ("found", "start", "stop"),
    [
        ([0, 1], 0, 3),
        ([1, 0, 2], 0, 3),
        ([0, 1, 3], 0, 3),
        ([0, 1, -1], 0, 3),
        ([0, 1, 2], 0, 2),
        ([-1, 0, 1], 0, 2),
        ([0, 0, 1], 0, 3),
        ([10, 11, 12], 0, 3),
    ],
)
def test_swapped_missing_repeated_and_foreign_samples_are_found(found: list[int], start: int, stop: int) -> None:
    with pytest.raises(OrderError):
        check_positions(np.array(found, np.int64), start, stop)


def _uneven_dataset(folder: Path) -> Path:
    """101 samples in which, at random, pictures are small or large; runs of large ones lie together."""
    rng = np.random.default_rng(5)
    small, large = image_bytes(1, height=16, width=16), image_bytes(1, height=500, width=500)
    is_large = np.repeat(rng.random(21) < 0.3, 5)[:101]
    shards = []
    for number, rows in enumerate(np.array_split(np.arange(101), 3)):
        members = {}
        for i in map(int, rows):
            members[f"sample{i:06d}.image.png"] = large if is_large[i] else small
            members[f"sample{i:06d}.label.cls"] = str(class_of(i)).encode()
        path = write_tar(folder / "shards" / f"{number:06d}.tar", members)
        write_index(index_path(path), index_shard(path))
        name, size_bytes = f"shards/{number:06d}", path.stat().st_size
        version = f"sha256:{sha256_file(path)}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(rows), size_bytes, version))
    write_dataset(
        folder,
        name="uneven",
        shards=shards,
        fields={"image": ImageField(height=16, width=16), "label": SPECS["label"]},
        members={"image": ("image.png",), "label": ("label.cls",)},
        presence={"image": 101, "label": 101},
        label_counts={},
        statistics={},
    )
    return folder
