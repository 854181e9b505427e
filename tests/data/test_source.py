"""The plan as a Ray datasource: what is planned, how large it is, and what arrives in sequence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_mm.config.cache import DecodedCache
from ray_mm.config.fields import ImageField, RandomCrop
from ray_mm.data.blocks import block_keys, to_arrays, to_table
from ray_mm.data.collate import Collator
from ray_mm.data.epochs import sequence
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.quarantine import list_quarantine
from ray_mm.data.reader import read_batches
from ray_mm.data.samples import all_of
from ray_mm.data.source import PlanSource, configure, execution_index, sequential_dataset
from ray_mm.errors import DatasetError
from ray_mm.session import cause_of
from tests.data.feeds import load, make_feed
from tests.factories import make_dataset

FIELDS = ("image", "vector", "label")


@pytest.mark.parametrize(("world_size", "block_bytes"), [(1, 1), (3, 1), (2, 1 << 20)])
def test_a_block_has_the_bytes_that_the_plan_says(tmp_path: Path, world_size: int, block_bytes: int) -> None:
    dataset = make_dataset(tmp_path, 20, FIELDS)
    feed = make_feed(dataset, fields=FIELDS, world_size=world_size, block_bytes=block_bytes)
    assert (feed.items_per_block > 1) == (block_bytes > 1) and feed.block_rows % feed.items_per_block == 0
    table = to_table(Collator(feed.preprocessor).empty(feed.block_rows), [""] * feed.block_rows)
    assert table.nbytes == feed.block_rows * feed.row_bytes
    # Ray gives out a block once it is larger than the target, and cuts what is 1.5 times as large.
    context = ray.data.DataContext()
    configure(context, feed)
    assert 1.0 < table.nbytes / context.target_max_block_size < 1.5


def test_the_smallest_possible_block_is_not_cut_either(tmp_path: Path) -> None:
    feed = make_feed(make_dataset(tmp_path, 3, ("label",)), fields=("label",), batch_size=1)
    context = ray.data.DataContext()
    configure(context, feed)
    assert 1.0 < feed.row_bytes / context.target_max_block_size < 1.5


def test_ray_counts_executions_where_we_look() -> None:
    assert execution_index(None) == 0
    context = ray.data.DataContext()
    assert context._execution_idx == 0, "Ray has moved its count of executions: see source.execution_index"
    context._execution_idx = 3
    assert execution_index(context) == 3


@pytest.mark.ray
def test_a_whole_dataset_arrives_in_sequence_a_block_per_batch(local_ray: None, tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path, 1100, ("vector", "label"), num_shards=3))
    preprocessor = preprocessor_for(dataset, {}, ["vector", "label"])
    found = sequential_dataset(all_of(dataset), preprocessor, 64, tmp_path / "quarantine")
    assert found.count() == 1100
    tables = list(found.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert [len(table) for table in tables] == [64] * 17 + [12]
    for table, expected in zip(tables, read_batches(sequence(dataset), preprocessor, 64), strict=True):
        arrays = to_arrays(table)
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
    assert [key for table in tables for key in block_keys(table)] == [f"sample{i:06d}" for i in range(1100)]


@pytest.mark.ray
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_dataset_without_samples_gives_no_rows(local_ray: None, tmp_path: Path, num_shards: int) -> None:
    dataset = open_dataset(make_dataset(tmp_path, 0, ("label",), num_shards=num_shards))
    found = sequential_dataset(all_of(dataset), preprocessor_for(dataset, {}, ["label"]), 8, tmp_path / "quarantine")
    assert sum(len(table) for table in found.iter_batches(batch_size=None, batch_format="pyarrow")) == 0


@pytest.mark.ray
def test_bad_samples_keep_their_place_and_lie_in_the_quarantine(local_ray: None, tmp_path: Path) -> None:
    corrupt = {(i, "image") for i in range(8, 16)}
    dataset = open_dataset(make_dataset(tmp_path / "data", 20, FIELDS, corrupt=corrupt))
    found = sequential_dataset(all_of(dataset), preprocessor_for(dataset, {}, FIELDS), 8, tmp_path / "quarantine")
    arrays = [to_arrays(table) for table in found.iter_batches(batch_size=None, batch_format="pyarrow")]
    assert [batch[WEIGHT].sum() for batch in arrays] == [8, 0, 4]
    assert np.concatenate([batch[POSITION] for batch in arrays]).tolist() == list(range(20))
    assert len(list_quarantine(tmp_path / "quarantine")) == 8


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_shard_that_is_gone_stops_the_reading_and_is_named(local_ray: None, tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path, 20, ("vector", "label"), num_shards=4))
    found = sequential_dataset(all_of(dataset), preprocessor_for(dataset, {}, ["label"]), 5, tmp_path / "quarantine")
    dataset.shard_path(2).unlink()
    with pytest.raises(Exception) as raised:
        list(found.iter_batches(batch_size=None, batch_format="pyarrow"))
    cause = cause_of(raised.value)
    assert isinstance(cause, DatasetError) and "000002.tar[sample000010]: the shard is missing" in str(cause)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_dataset_that_is_made_anew_while_it_is_read_is_not_mixed_with_the_old_one(
    local_ray: None, tmp_path: Path
) -> None:
    dataset = open_dataset(make_dataset(tmp_path, 20, ("vector", "label")))
    found = sequential_dataset(all_of(dataset), preprocessor_for(dataset, {}, ["label"]), 5, tmp_path / "quarantine")
    make_dataset(tmp_path, 20, ("vector", "label"), seed=1, missing={"vector": 0.5})
    with pytest.raises(Exception) as raised:
        list(found.iter_batches(batch_size=None, batch_format="pyarrow"))
    cause = cause_of(raised.value)
    assert isinstance(cause, DatasetError) and "was made anew while it was being read" in str(cause)


@pytest.mark.ray
def test_planning_is_repeatable_and_has_no_more_tasks_than_are_needed(local_ray: None, tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "train", 100, ("label",))
    feed = make_feed(train, fields=("label",), batch_size=8, samples_per_task=32, tasks_per_execution=5)
    source = PlanSource(feed)
    context = ray.data.DataContext()
    rows = []
    for execution in range(3):
        context._execution_idx = execution
        for _ in range(2):
            tasks = source.get_read_tasks(1, None, context)
        rows.append([task.metadata.num_rows for task in tasks])
    assert rows == [[32] * 5, [32, 16], []], "26 batches of 8 rows, the last of each epoch padded"


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_crops_differ_between_epochs_and_not_between_numbers_of_workers(local_ray: None, tmp_path: Path) -> None:
    train, validation = (make_dataset(tmp_path / name, 12, ("image", "label")) for name in ("train", "validation"))
    crop = ImageField(height=8, width=8, random_crop=RandomCrop(scale=(0.2, 0.4)), random_flip=0.5)

    def pictures(world_size: int) -> list[dict[int, bytes]]:
        """Epoch by epoch, training and validation: position → what is seen."""
        feed = make_feed(train, validation, fields=("image", "label"), batch_size=6, world_size=world_size)
        fields = {**feed.preprocessor.fields, "image": crop}
        feed = dataclasses.replace(feed, preprocessor=feed.preprocessor.model_copy(update={"fields": fields}))
        found: list[dict[int, bytes]] = [{} for _ in range(4)]
        for batches in load(feed):
            for batch in batches:
                part = found[2 * batch.item.epoch + (batch.item.phase == "validation")]
                for position, picture in zip(batch.tensors["position"].tolist(), batch.tensors["image"], strict=True):
                    if position >= 0:
                        part[position] = picture.numpy().tobytes()
        return found

    alone = pictures(1)
    assert all(len(part) == 12 for part in alone)
    assert pictures(2) == alone
    assert alone[1] == alone[3], "a validation leaves nothing to chance"
    assert not set(alone[0].values()) & set(alone[2].values())


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_with_decoded_samples_kept_every_rank_gets_the_same_batches(local_ray: None, tmp_path: Path) -> None:
    missing = {"image": 0.2}
    train = make_dataset(tmp_path / "train", 50, FIELDS, num_shards=3, missing=missing, corrupt={(7, "image")})
    validation = make_dataset(tmp_path / "validation", 14, FIELDS, seed=1)
    flipped = ImageField(height=16, width=16, random_flip=0.5)

    def batches(world_size: int, decoded: DecodedCache | None = None) -> tuple[list[tuple[bytes, ...]], list[int]]:
        """What arrives, rank by rank, and how much of each epoch, training and validation, was kept."""
        # Tasks of one batch, so that all processes read all epochs.
        feed = make_feed(
            train, validation, fields=FIELDS, batch_size=8, epochs=3, world_size=world_size, samples_per_task=8
        )
        fields = {**feed.preprocessor.fields, "image": flipped}
        preprocessor = feed.preprocessor.model_copy(update={"fields": fields})
        feed = dataclasses.replace(feed, preprocessor=preprocessor, decoded=decoded)
        found, kept = [], [0] * 6
        for batch in (batch for rank in load(feed) for batch in rank):
            found.append(tuple(batch.tensors[name].numpy().tobytes() for name in sorted(batch.tensors)))
            kept[2 * batch.item.epoch + (batch.item.phase == "validation")] += batch.num_cached
        return found, kept

    for world_size in (1, 2):
        expected, nothing = batches(world_size)
        found, kept = batches(world_size, DecodedCache(folder=str(tmp_path / f"cache{world_size}"), size=10**7))
        assert found == expected and nothing == [0] * 6
        # The first batches of an epoch may be read while the last ones before are still being decoded: on a busy machine, many.
        assert kept[:2] == [0, 0] and 0 < kept[2] <= 49 and 30 <= kept[4] <= 49 and kept[5] == 14
