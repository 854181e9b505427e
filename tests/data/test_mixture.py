"""Streams of samples in one epoch: exact proportions, evenly spread, and found without what lies before."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_mm.data.mixture import Mixture, Stream, quotas
from ray_mm.data.order import Order, Shuffle

SHUFFLE = Shuffle(seed=3, digest="a", chunk_samples=2, window_chunks=2)
sizes = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any).map(lambda found: np.array(found, np.int64))
streams = st.lists(st.tuples(sizes, st.integers(0, 40)), min_size=1, max_size=5).map(
    lambda found: [Stream(number, ("class", number), of_shard, quota) for number, (of_shard, quota) in enumerate(found)]
)


def _epoch(mixture: Mixture, epoch: int = 0, start: int = 0, stop: int | None = None) -> list[tuple[int, int, int]]:
    found = mixture.locate(epoch, start, mixture.epoch_samples if stop is None else stop)
    assert all(column.dtype == np.int64 for column in found)
    return list(zip(*(column.tolist() for column in found), strict=True))


@given(streams=streams)
def test_every_stream_has_its_quota_and_every_part_of_the_epoch_its_share_of_it(streams: list[Stream]) -> None:
    drawn = [stream for stream, _, _ in _epoch(Mixture(streams, SHUFFLE))]
    counts = Counter(drawn)
    assert [counts[number] for number in range(len(streams))] == [stream.quota for stream in streams]
    total = len(drawn)
    for stop in range(total + 1):
        so_far = Counter(drawn[:stop])
        for number, stream in enumerate(streams):
            # Sample j stands at (j + 1/2) / quota; how many streams' samples come before differs by at most half of each.
            assert abs(so_far[number] - Fraction(stream.quota * stop, max(total, 1))) <= max(1, len(streams) / 2)


@given(streams=streams, data=st.data())
def test_any_part_of_an_epoch_is_found_without_what_lies_before(streams: list[Stream], data: st.DataObject) -> None:
    mixture = Mixture(streams, SHUFFLE)
    start = data.draw(st.integers(0, mixture.epoch_samples))
    stop = data.draw(st.integers(start, mixture.epoch_samples))
    assert _epoch(Mixture(streams, SHUFFLE), 1, start, stop) == _epoch(mixture, 1)[start:stop]


@given(streams=streams, epochs=st.integers(1, 4))
def test_a_stream_is_gone_through_pass_after_pass_over_all_epochs(streams: list[Stream], epochs: int) -> None:
    mixture = Mixture(streams, SHUFFLE)
    for number, stream in enumerate(streams):
        found = [
            (shard, rank) for epoch in range(epochs) for one, shard, rank in _epoch(mixture, epoch) if one == number
        ]
        everything = sorted((shard, rank) for shard, size in enumerate(stream.shard_sizes) for rank in range(size))
        for start in range(0, len(found), len(everything)):
            part = found[start : start + len(everything)]
            assert len(set(part)) == len(part) and set(part) <= set(everything)


def test_passes_and_streams_have_orders_of_their_own() -> None:
    sizes = np.array([30, 30], np.int64)
    mixture = Mixture([Stream(0, ("class", 0), sizes, 60), Stream(0, ("class", 1), sizes, 60)], SHUFFLE)
    orders = {
        tuple((shard, rank) for one, shard, rank in _epoch(mixture, epoch) if one == stream)
        for epoch in (0, 1)
        for stream in (0, 1)
    }
    assert len(orders) == 4


def test_one_stream_is_its_order() -> None:
    sizes = np.array([5, 0, 3], np.int64)
    found = _epoch(Mixture([Stream(0, None, sizes, 8)], None))
    order = Order(sizes, 0, None).locate(0, 8)
    assert [place[1:] for place in found] == list(zip(*(column.tolist() for column in order), strict=True))


def test_a_billion_samples_of_a_hundred_streams_need_no_list_of_them() -> None:
    mixture = Mixture(
        [Stream(0, ("class", number), np.full(1000, 10_000, np.int64), 10**7) for number in range(100)], SHUFFLE
    )
    drawn = Counter(stream for stream, _, _ in _epoch(mixture, 0, 5 * 10**8, 5 * 10**8 + 1000))
    assert set(drawn.values()) == {10} and len(drawn) == 100


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), total=st.integers(1, 1000))
def test_quotas_are_whole_add_up_and_are_off_by_less_than_one(weights: list[float], total: int) -> None:
    found = quotas(weights, total)
    assert sum(found) == total
    assert all(
        abs(count - total * weight / sum(weights)) < 1 + 1e-9 for count, weight in zip(found, weights, strict=True)
    )


@given(share=st.integers(1, 10**9))
def test_streams_whose_times_nearly_meet_are_still_in_one_order(share: int) -> None:
    quota = 10**9 + 7
    assume(share < quota)
    sizes = np.array([10], np.int64)
    mixture = Mixture([Stream(0, ("class", 0), sizes, quota), Stream(1, ("class", 1), sizes, share)], SHUFFLE)
    start = mixture.epoch_samples * 2 // 3
    assert _epoch(mixture, 0, start, start + 5) + _epoch(mixture, 0, start + 5, start + 9) == _epoch(
        mixture, 0, start, start + 9
    )


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_without_a_quota_is_never_drawn(number: int) -> None:
    empty = Stream(0, ("class", 0), np.zeros(2, np.int64), 0)
    full = [Stream(place, ("class", place), np.array([4, 3], np.int64), 7) for place in range(1, number + 1)]
    assert 0 not in {stream for stream, _, _ in _epoch(Mixture([empty, *full], SHUFFLE))}
