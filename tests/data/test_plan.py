"""The order of everything: exact, lazy, the same on every machine, and independent of the number of workers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.plan import Item, Order, Schedule, Shuffle, Tasks, rank_size, rank_slice, stable_hash

shards = st.lists(st.integers(0, 30), max_size=8).map(lambda sizes: np.array(sizes, np.int64))
shuffles = st.builds(
    Shuffle, seed=st.integers(0, 9), digest=st.sampled_from(["a", "b"]), chunk_samples=st.integers(1, 12),
    window_chunks=st.integers(1, 6),
)  # fmt: skip
schedules = st.builds(
    Schedule, train_samples=st.integers(1, 40), validation_samples=st.integers(0, 20), batch_size=st.integers(1, 17),
    epochs=st.integers(1, 4),
)  # fmt: skip


def _samples(order: Order, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    found = order.locate(start, order.num_samples if stop is None else stop)
    assert all(array.dtype == np.int64 for array in found)
    return list(zip(*(array.tolist() for array in found), strict=True))


# --- the order of an epoch


@given(sizes=shards, shuffle=st.none() | shuffles, epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sample_exactly_once(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle | None, epoch: int
) -> None:
    everything = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    found = _samples(Order(sizes, epoch, shuffle))
    assert sorted(found) == everything
    if shuffle is None:
        assert found == everything


@given(sizes=shards, shuffle=st.none() | shuffles, data=st.data())
def test_any_part_of_an_epoch_is_found_without_what_lies_before(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle | None, data: st.DataObject
) -> None:
    order = Order(sizes, 1, shuffle)
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    assert _samples(Order(sizes, 1, shuffle), start, stop) == _samples(order)[start:stop]


@given(sizes=shards, shuffle=shuffles)
def test_a_window_holds_whole_chunks_and_no_more_than_it_may(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle
) -> None:
    samples = _samples(Order(sizes, 0, shuffle))
    chunks_seen: list[tuple[int, int]] = []
    while samples:
        # The chunks of a window are those of its samples: walk on until the window's chunks are all used up.
        window: dict[tuple[int, int], int] = {}
        for place, (shard, row) in enumerate(samples):
            chunk = (shard, row // shuffle.chunk_samples)
            window[chunk] = window.get(chunk, 0) + 1
            first = chunk[1] * shuffle.chunk_samples
            assert row < min(first + shuffle.chunk_samples, sizes[shard])
            full = all(count == _chunk_size(sizes, key, shuffle.chunk_samples) for key, count in window.items())
            if full and (len(window) == shuffle.window_chunks or place + 1 == len(samples)):
                break
        assert len(window) <= shuffle.window_chunks
        chunks_seen += window
        samples = samples[place + 1 :]
    assert len(set(chunks_seen)) == len(chunks_seen)


def _chunk_size(sizes: np.ndarray[tuple[int], np.dtype[np.int64]], chunk: tuple[int, int], chunk_samples: int) -> int:
    return int(min(chunk_samples, sizes[chunk[0]] - chunk[1] * chunk_samples))


def test_epochs_seeds_and_datasets_have_orders_of_their_own() -> None:
    sizes = np.array([40, 0, 60], np.int64)
    orders = {
        tuple(_samples(Order(sizes, epoch, Shuffle(seed, digest, 8, 4))))
        for epoch in (0, 1)
        for seed in (0, 1)
        for digest in ("a", "b")
    }
    assert len(orders) == 8


def test_neighbours_are_torn_apart() -> None:
    found = _samples(Order(np.array([500, 500], np.int64), 0, Shuffle(0, "a", 10, 20)))
    neighbours = sum(a[0] == b[0] and abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(found))
    assert neighbours < 50


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
@pytest.mark.parametrize("shuffle", [None, Shuffle(0, "a", 4, 4)])
def test_a_dataset_without_samples_has_an_empty_order(sizes: list[int], shuffle: Shuffle | None) -> None:
    assert _samples(Order(np.array(sizes, np.int64), 0, shuffle)) == []


def test_the_order_never_changes_silently() -> None:
    # Who changes these changes what every resumed training reads next.
    assert stable_hash("ray_mm", 7, "window", 0) == 24769038091457114341993197160274631267
    found = _samples(Order(np.array([5, 0, 3, 7], np.int64), 2, Shuffle(3, "golden", 2, 3)))
    assert found == [
        (2, 0), (0, 4), (2, 1), (0, 1), (0, 0), (0, 3), (3, 5), (3, 6), (0, 2), (3, 4), (3, 2), (2, 2), (3, 0), (3, 3),
        (3, 1),
    ]  # fmt: skip


def test_a_hash_is_the_same_in_another_process_and_tells_its_parts_apart() -> None:
    command = "from ray_mm.data.plan import stable_hash; print(stable_hash('a', 1, 'b'))"
    found = subprocess.run(
        [sys.executable, "-c", command], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )
    assert int(found.stdout) == stable_hash("a", 1, "b")
    assert len({stable_hash("a", 1), stable_hash("a1"), stable_hash("a", "", 1), stable_hash(1, "a")}) == 4


def test_the_first_batch_of_a_billion_samples_takes_no_list_of_them() -> None:
    order = Order(np.full(100_000, 10_000, np.int64), 0, Shuffle(0, "a", 256, 64))
    assert order.num_samples == 10**9
    assert len(set(_samples(order, 0, 128))) == 128
    middle = _samples(order, 5 * 10**8, 5 * 10**8 + 128)
    assert len({shard for shard, _ in middle}) > 32, "a batch comes from many shards"


# --- the whole training


@given(schedule=schedules)
def test_every_epoch_is_its_training_then_its_validation_without_a_gap(schedule: Schedule) -> None:
    items = [schedule.item(number) for number in range(schedule.num_items)]
    assert [item.number for item in items] == list(range(schedule.num_items))
    expected = [
        (epoch, phase, position)
        for epoch in range(schedule.epochs)
        for phase, size in (("train", schedule.train_samples), ("validation", schedule.validation_samples))
        for position in range(size)
    ]
    assert expected == [
        (item.epoch, item.phase, position) for item in items for position in range(item.start, item.stop)
    ]
    trained = [item for item in items if item.phase == "train"]
    assert [item.step for item in trained] == list(range(1, schedule.num_steps + 1))
    assert all(0 < item.stop - item.start <= schedule.batch_size for item in items)
    steps_done = 0
    for item, following in itertools.zip_longest(items, items[1:]):
        steps_done += item.phase == "train"
        assert item.step == steps_done
        assert item.ends_phase == (following is None or following.phase != item.phase or following.epoch != item.epoch)


@given(schedule=schedules, world_size=st.integers(1, 7))
def test_the_shares_of_all_ranks_in_order_are_the_global_batch(schedule: Schedule, world_size: int) -> None:
    for number in range(schedule.num_items):
        item = schedule.item(number)
        shares = [rank_slice(item, schedule.batch_size, rank, world_size) for rank in range(world_size)]
        assert [position for start, stop in shares for position in range(start, stop)] == list(
            range(item.start, item.stop)
        )
        assert all(stop - start <= rank_size(schedule.batch_size, world_size) for start, stop in shares)


@pytest.mark.parametrize("world_size", range(1, 8))
def test_global_batches_are_the_same_for_every_number_of_workers(world_size: int) -> None:
    schedule = Schedule(train_samples=23, validation_samples=0, batch_size=10, epochs=2)
    order = Order(np.array([11, 12], np.int64), 0, Shuffle(0, "a", 4, 2))
    for item in (schedule.item(0), schedule.item(2)):
        shares = (rank_slice(item, 10, rank, world_size) for rank in range(world_size))
        batch = [sample for start, stop in shares for sample in _samples(order, start, stop)]
        assert batch == _samples(order, item.start, item.stop)


def test_a_batch_larger_than_the_dataset_is_the_dataset() -> None:
    schedule = Schedule(train_samples=3, validation_samples=2, batch_size=100, epochs=1)
    assert [schedule.item(0), schedule.item(1)] == [
        Item(0, "train", 0, 1, 0, 3, True),
        Item(1, "validation", 0, 1, 0, 2, True),
    ]
    assert rank_slice(schedule.item(0), 100, 0, 3) == (0, 3)
    assert rank_slice(schedule.item(0), 100, 1, 3) == rank_slice(schedule.item(0), 100, 2, 3) == (3, 3)


# --- read tasks


@given(
    num_items=st.integers(0, 60),
    first=st.integers(0, 60),
    world_size=st.integers(1, 7),
    blocks_per_task=st.integers(1, 9),
    tasks_per_execution=st.integers(1, 9),
)
def test_read_tasks_cover_every_share_once_and_in_order_over_all_executions(
    num_items: int, first: int, world_size: int, blocks_per_task: int, tasks_per_execution: int
) -> None:
    first = min(first, num_items)
    tasks = Tasks(first, num_items, world_size, blocks_per_task, tasks_per_execution)
    found: list[tuple[int, int]] = []
    execution = 0
    while tasks.num_tasks(execution):
        # What one execution hands out starts with rank 0 and ends with the last rank.
        blocks = [tasks.blocks(execution, task) for task in range(tasks.num_tasks(execution))]
        assert all(0 < len(of_task) <= blocks_per_task for of_task in blocks)
        flat = [block for of_task in blocks for block in of_task]
        assert flat[0][1] == 0 and flat[-1][1] == world_size - 1
        assert len(blocks) <= max(tasks_per_execution, -(-world_size // blocks_per_task))
        found += flat
        execution += 1
    assert found == [(item, rank) for item in range(first, num_items) for rank in range(world_size)]
    assert tasks.num_tasks(execution + 3) == 0


@given(schedule=schedules, data=st.data())
def test_a_training_resumed_at_any_item_reads_the_rest(schedule: Schedule, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, schedule.num_items))
    worlds = st.integers(1, 7)
    whole = Tasks(0, schedule.num_items, data.draw(worlds), 3, 4)
    rest = Tasks(first, schedule.num_items, data.draw(worlds), 2, 5)
    assert _positions(rest, schedule) == [found for found in _positions(whole, schedule) if found[0] >= first], (
        "whatever the number of workers before and after"
    )


def _positions(tasks: Tasks, schedule: Schedule) -> list[tuple[int, int]]:
    """(item, position) of every sample, in the order in which tasks read them."""
    found: list[tuple[int, int]] = []
    execution = 0
    while tasks.num_tasks(execution):
        for task in range(tasks.num_tasks(execution)):
            for number, rank in tasks.blocks(execution, task):
                share = rank_slice(schedule.item(number), schedule.batch_size, rank, tasks.world_size)
                found += [(number, position) for position in range(*share)]
        execution += 1
    return found
