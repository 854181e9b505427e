"""The plan of shards: every row once, in an order and in sizes that depend on nothing but the data."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.preprocessing.shards import cut_into_shards, shuffle_rows


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=80), st.integers(1, 20_000))
def test_every_row_is_in_one_shard_and_no_shard_is_far_over_the_target(sizes: list[int], target: int) -> None:
    rows = list(range(len(sizes)))[::-1]
    shards = cut_into_shards(rows, np.array(sizes, np.int64), target)
    assert [row for shard in shards for row in shard] == rows
    assert all(shards)
    for shard in shards:
        assert sum(sizes[row] for row in shard[:-1]) <= target
    assert len(shards) <= -(-sum(sizes) // target)


def test_shards_are_of_equal_size_rather_than_one_being_left_small() -> None:
    shards = cut_into_shards(range(90), np.full(90, 10, np.int64), 400)
    assert [len(shard) for shard in shards] == [30, 30, 30]


@given(st.lists(st.text(max_size=6), min_size=1, max_size=50, unique=True), st.integers(0, 3), st.randoms())
def test_the_order_follows_from_keys_and_seed_alone(keys: list[str], seed: int, random: object) -> None:
    order = [keys[row] for row in shuffle_rows(range(len(keys)), keys, seed)]
    assert sorted(order) == sorted(keys)
    mixed = sorted(keys, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert [mixed[row] for row in shuffle_rows(range(len(mixed)), mixed, seed)] == order


def test_neighbours_in_the_table_are_not_neighbours_in_the_shard() -> None:
    keys = [f"{i:06d}" for i in range(1000)]
    order = shuffle_rows(range(1000), keys, 0)
    assert np.corrcoef(order, range(1000))[0, 1] < 0.1
    assert shuffle_rows(range(1000), keys, 1) != order
