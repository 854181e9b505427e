"""The order of samples: exact, lazy, the same on every machine."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ray_mm.data.order
from ray_mm.data.order import Order, Shuffle, stable_hash

shards = st.lists(st.integers(0, 30), max_size=8).map(lambda sizes: np.array(sizes, np.int64))
shuffles = st.builds(
    Shuffle, seed=st.integers(0, 9), digest=st.sampled_from(["a", "b"]), chunk_samples=st.integers(1, 12),
    window_chunks=st.integers(1, 6),
)  # fmt: skip


@pytest.fixture(params=[1, 3, 65_536], scope="module")
def groups(request: pytest.FixtureRequest) -> Iterator[None]:
    """Groups of few chunks, so that small datasets have several, and the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_mm.data.order, "_GROUP_CHUNKS", request.param)
        yield


def _samples(order: Order, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    found = order.locate(start, order.num_samples if stop is None else stop)
    assert all(array.dtype == np.int64 for array in found)
    return list(zip(*(array.tolist() for array in found), strict=True))


@pytest.mark.usefixtures("groups")
@given(sizes=shards, shuffle=st.none() | shuffles, epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sample_exactly_once(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle | None, epoch: int
) -> None:
    everything = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    found = _samples(Order(sizes, epoch, shuffle))
    assert sorted(found) == everything
    if shuffle is None:
        assert found == everything


@pytest.mark.usefixtures("groups")
@given(sizes=shards, shuffle=st.none() | shuffles, data=st.data())
def test_any_part_of_an_epoch_is_found_without_what_lies_before(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle | None, data: st.DataObject
) -> None:
    order = Order(sizes, 1, shuffle)
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    assert _samples(Order(sizes, 1, shuffle), start, stop) == _samples(order)[start:stop]


@given(sizes=shards, shuffle=shuffles)
def test_windows_are_even_hold_whole_chunks_and_no_more_than_they_may(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shuffle: Shuffle
) -> None:
    samples = _samples(Order(sizes, 0, shuffle))
    chunks = [(shard, row) for shard, size in enumerate(sizes) for row in range(0, size, shuffle.chunk_samples)]
    num_windows = -(-len(chunks) // shuffle.window_chunks)
    chunks_seen: set[tuple[int, int]] = set()
    for window in range(num_windows):
        count = (window + 1) * len(chunks) // num_windows - window * len(chunks) // num_windows
        assert shuffle.window_chunks // 2 <= count <= shuffle.window_chunks or num_windows == 1
        # The window's samples are all samples of its chunks, which were in no window before.
        found = list(dict.fromkeys((shard, row - row % shuffle.chunk_samples) for shard, row in samples))[:count]
        held = {(shard, row) for shard, first in found for row in _rows(sizes, shard, first, shuffle.chunk_samples)}
        assert set(samples[: len(held)]) == held
        assert not chunks_seen & set(found)
        chunks_seen |= set(found)
        samples = samples[len(held) :]
    assert not samples and chunks_seen == set(chunks)


def _rows(sizes: np.ndarray[tuple[int], np.dtype[np.int64]], shard: int, first: int, chunk_samples: int) -> range:
    return range(first, min(first + chunk_samples, int(sizes[shard])))


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


def test_batches_of_the_default_windows_are_nearly_random_draws() -> None:
    sizes = np.full(100, 1000, np.int64)
    shards, rows = Order(sizes, 0, Shuffle(0, "a", 256, 64)).locate(0, 100_000)
    lay = shards * 1000 + rows
    assert np.abs(lay - np.arange(100_000)).mean() / 100_000 == pytest.approx(1 / 3, abs=0.02)
    batches = lay[:99_968].reshape(-1, 128).astype(float)
    between, within = 128 * batches.mean(axis=1).var(ddof=1), batches.var(axis=1, ddof=1).mean()
    # In the order of recording it is 1, by chance 0; a buffer of 1,000 samples leaves a third.
    assert (between - within) / (between + 127 * within) < 0.03


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
@pytest.mark.parametrize("shuffle", [None, Shuffle(0, "a", 4, 4)])
def test_a_dataset_without_samples_has_an_empty_order(sizes: list[int], shuffle: Shuffle | None) -> None:
    assert _samples(Order(np.array(sizes, np.int64), 0, shuffle)) == []


def test_the_order_never_changes_silently() -> None:
    # Who changes these changes what every resumed training reads next.
    assert stable_hash("ray_mm", 7, "window", 0) == 24769038091457114341993197160274631267
    found = _samples(Order(np.array([5, 0, 3, 7], np.int64), 2, Shuffle(3, "golden", 2, 3)))
    assert found == [
        (2, 0), (0, 4), (2, 1), (0, 1), (0, 0), (3, 4), (0, 2), (3, 6), (3, 5), (0, 3), (3, 1), (2, 2), (3, 3), (3, 2),
        (3, 0),
    ]  # fmt: skip


def test_a_hash_is_the_same_in_another_process_and_tells_its_parts_apart() -> None:
    command = "from ray_mm.data.order import stable_hash; print(stable_hash('a', 1, 'b'))"
    found = subprocess.run(
        [sys.executable, "-c", command], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )
    assert int(found.stdout) == stable_hash("a", 1, "b")
    assert len({stable_hash("a", 1), stable_hash("a1"), stable_hash("a", "", 1), stable_hash(1, "a")}) == 4


def test_the_first_batch_of_a_billion_samples_takes_no_list_of_them() -> None:
    tracemalloc.start()
    order = Order(np.full(100_000, 10_000, np.int64), 0, Shuffle(0, "a", 256, 64))
    assert order.num_samples == 10**9
    assert len(set(_samples(order, 0, 128))) == 128
    for start in (5 * 10**8, 10**9 - 128):
        batch = _samples(order, start, start + 128)
        assert len({shard for shard, _ in batch}) > 32, "a batch comes from many shards"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
