"""The course of a training: exact, and independent of the number of workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.order import Order, Shuffle
from ray_mm.data.plan import Item, Schedule, Tasks, rank_size, rank_slice

schedules = st.builds(
    Schedule, train_samples=st.integers(1, 40), validation_samples=st.integers(0, 20), batch_size=st.integers(1, 17),
    epochs=st.integers(1, 4),
)  # fmt: skip


def _samples(order: Order, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    found = order.locate(start, order.num_samples if stop is None else stop)
    assert all(array.dtype == np.int64 for array in found)
    return list(zip(*(array.tolist() for array in found), strict=True))


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
    items_per_block=st.integers(1, 5),
    blocks_per_task=st.integers(1, 9),
    tasks_per_execution=st.integers(1, 9),
    short_tasks=st.integers(0, 3),
)
def test_read_tasks_cover_every_share_once_and_in_order_over_all_executions(
    num_items: int,
    first: int,
    world_size: int,
    items_per_block: int,
    blocks_per_task: int,
    tasks_per_execution: int,
    short_tasks: int,
) -> None:
    first = min(first, num_items)
    tasks = Tasks(first, num_items, world_size, items_per_block, blocks_per_task, tasks_per_execution, short_tasks)
    found: list[tuple[range, int]] = []
    execution = 0
    while tasks.num_tasks(execution):
        # What one execution hands out starts with rank 0 and ends with the last rank.
        blocks = [tasks.blocks(execution, task) for task in range(tasks.num_tasks(execution))]
        assert all(0 < len(of_task) <= blocks_per_task for of_task in blocks)
        flat = [block for of_task in blocks for block in of_task]
        assert flat[0][1] == 0 and flat[-1][1] == world_size - 1
        assert len(blocks) <= max(tasks_per_execution, -(-world_size // blocks_per_task)) + 4 * short_tasks
        found += flat
        execution += 1
    of_rank = [[item for items, rank in found if rank == one for item in items] for one in range(world_size)]
    assert of_rank == [list(range(first, num_items))] * world_size
    assert [rank for _, rank in found] == [number % world_size for number in range(len(found))]
    assert all(len(items) == items_per_block for items, _ in found[:-world_size]), "only the last ones are shorter"
    assert tasks.num_tasks(execution + 3) == 0


@given(schedule=schedules, data=st.data())
def test_a_training_resumed_at_any_item_reads_the_rest(schedule: Schedule, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, schedule.num_items))
    worlds = st.integers(1, 7)
    whole = Tasks(0, schedule.num_items, data.draw(worlds), data.draw(st.integers(1, 4)), 3, 4)
    rest = Tasks(first, schedule.num_items, data.draw(worlds), data.draw(st.integers(1, 4)), 2, 5)
    assert _positions(rest, schedule) == [found for found in _positions(whole, schedule) if found[0] >= first], (
        "whatever the number of workers before and after"
    )


def _positions(tasks: Tasks, schedule: Schedule) -> list[tuple[int, int]]:
    """(item, position) of every sample that tasks read, item by item."""
    found: list[tuple[int, int]] = []
    execution = 0
    while tasks.num_tasks(execution):
        for task in range(tasks.num_tasks(execution)):
            for items, rank in tasks.blocks(execution, task):
                for number in items:
                    share = rank_slice(schedule.item(number), schedule.batch_size, rank, tasks.world_size)
                    found += [(number, position) for position in range(*share)]
        execution += 1
    return sorted(found)


def test_the_first_read_tasks_are_short() -> None:
    tasks = Tasks(0, 1000, world_size=1, items_per_block=1, blocks_per_task=6, tasks_per_execution=1000, short_tasks=8)
    sizes = [len(tasks.blocks(0, task)) for task in range(tasks.num_tasks(0))]
    short = [size for size in (1, 2, 4) for _ in range(8)]
    assert sizes[: len(short)] == short
    assert set(sizes[len(short) : -1]) == {6} and sum(sizes) == 1000
