"""When a block is read next: what the plan will do is what is foretold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.cache import RemoteCache
from ray_mm.config.source import Balance, TrainSource
from ray_mm.config.train import ShuffleConfig
from ray_mm.data.epochs import Epochs, sequence
from ray_mm.data.foresight import Foresight, check_cache
from ray_mm.data.manifest import Dataset, ShardInfo, open_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.mixture import Mixture, Stream
from ray_mm.data.order import Order, Shuffle
from ray_mm.data.samples import plan_samples
from ray_mm.errors import UsageError
from ray_mm.storage.cache import BlockCache, url_hash
from tests.factories import make_dataset
from tests.object_store import Proxy, upload

SIZES = np.array([13, 0, 7, 30, 1, 22])


def shuffle(chunk: int, window: int) -> Shuffle:
    return Shuffle(seed=3, digest="d", chunk_samples=chunk, window_chunks=window)


@given(chunk=st.integers(1, 9), window=st.integers(1, 6), number=st.integers(0, 3))
def test_the_window_of_a_sample_is_where_it_is_drawn(chunk: int, window: int, number: int) -> None:
    order = Order(SIZES, number, shuffle(chunk, window))
    for position, (shard, row) in enumerate(zip(*order.locate(0, int(SIZES.sum())), strict=True)):
        start, stop = order.window(int(shard), int(row))
        assert start <= position < stop and stop - start <= chunk * window


@given(epoch=st.integers(0, 2), position=st.integers(0, 59))
def test_the_next_use_is_foretold_to_within_a_window_and_never_too_late(epoch: int, position: int) -> None:
    streams = [Stream(0, None, SIZES, 40), Stream(1, None, SIZES[::-1].copy(), 20)]
    mixture = Mixture(streams, shuffle(4, 3))
    drawn = mixture.drawn(epoch, position)
    for number, stream in enumerate(streams):
        for shard in np.flatnonzero(stream.shard_sizes):
            ranks = range(int(stream.shard_sizes[shard]))
            foretold = mixture.next_use(number, int(shard), ranks, int(drawn[number]))
            assert drawn[number] / stream.quota <= foretold
            happens = _first_use(mixture, number, int(shard), epoch, position, stream.quota, int(drawn[number]))
            assert foretold <= happens
            # Of the window that is being read, all counts as wanted now.
            assert happens - foretold <= 12 / stream.quota or foretold == drawn[number] / stream.quota


def _first_use(mixture: Mixture, stream: int, shard: int, epoch: int, position: int, quota: int, drawn: int) -> float:
    while True:
        located = mixture.locate(epoch, position, 60)
        of_stream = located.shards[located.streams == stream]
        found = np.flatnonzero(of_stream == shard)
        if len(found):
            return (drawn + int(found[0])) / quota
        drawn += len(of_stream)
        epoch, position = epoch + 1, 0


@pytest.mark.parametrize("balance", [None, Balance(label="label")])
def test_a_block_is_named_by_its_url_and_its_first_byte(tmp_path: Path, balance: Balance | None) -> None:
    train = make_dataset(tmp_path / "train", 40, ("label",), num_shards=4)
    validation = open_dataset(make_dataset(tmp_path / "validation", 4, ("label",)))
    datasets, samples = plan_samples([TrainSource(path=str(train))], balance, None)
    epochs = Epochs(datasets, samples, shuffle(5, 2))
    foresight = Foresight(epochs, sequence(validation))
    for epoch, position in ((0, 0), (0, 17), (1, 39)):
        foresight.now = epoch, position
        for shard in range(4):
            wanted = foresight(url_hash(datasets[0].location(shard)), 0)
            assert wanted is not None and epoch + position / 40 - 0.3 <= wanted <= epoch + 2.1
        # It is read after this epoch, as every epoch.
        assert foresight(url_hash(validation.location(0)), 0) == epoch + 1
    assert foresight(url_hash("s3://elsewhere/x.tar"), 0) is None


def test_a_cache_that_knows_the_plan_fetches_less(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ray_mm.storage.cache", "ray_mm.data.foresight"):
        monkeypatch.setattr(f"{module}.BLOCK_BYTES", 4096)
    upload(proxy.endpoint, make_dataset(tmp_path / "train", 160, ("vector", "label"), num_shards=8), f"{bucket}/train")
    datasets, samples = plan_samples([TrainSource(path=f"s3://{bucket}/train")], None, None)
    half = sum(shard.size_bytes for shard in datasets[0].shards) // 2
    fetched = {}
    for rule in ("used", "plan"):
        epochs = Epochs(datasets, samples, shuffle(5, 4))
        foresight = Foresight(epochs, None)
        cache = BlockCache(tmp_path / rule, half, foresight if rule == "plan" else None)
        reader = SampleReader(datasets[0], ["label", "vector"], cache)
        proxy.requests.clear()
        for epoch in range(3):
            for position in range(0, 160, 20):
                foresight.now = epoch, position
                places = epochs.places(position, position + 20, epoch)
                for shard, row in zip(places.shards.tolist(), places.rows.tolist(), strict=True):
                    reader.members(shard, row)
        fetched[rule] = len(proxy.gets(".tar"))
    assert fetched["plan"] < 0.85 * fetched["used"], fetched


def test_blocks_of_a_gzip_file_are_foretold_as_those_of_its_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mm.data.foresight.BLOCK_BYTES", 1024)
    train = make_dataset(tmp_path / "train", 60, ("vector",), num_shards=2)
    (plain,), samples = plan_samples([TrainSource(path=str(train))], None, None)
    packed = replace(plain, shards=tuple(_packed(shard) for shard in plain.shards))
    found = []
    for dataset in (plain, packed):
        foresight = Foresight(Epochs([dataset], samples, shuffle(5, 2)), None)
        foresight.now = 0, 15
        starts = range(0, plain.shards[0].size_bytes, 1024)
        found.append([foresight(url_hash(plain.location(0)), start) for start in starts])
    assert found[0] == found[1] and len(set(found[0])) > 3


def _packed(shard: ShardInfo) -> ShardInfo:
    """The same tar within a gzip file of a tenth of its size."""
    return replace(shard, size_bytes=shard.size_bytes // 10, unpacked_bytes=shard.size_bytes)


def test_a_cache_that_is_too_small_for_a_window_is_refused(tmp_path: Path) -> None:
    local = open_dataset(make_dataset(tmp_path / "train", 40, ("label",), num_shards=4))
    # As if a sample had ten megabytes.
    large = replace(local, shards=tuple(replace(shard, size_bytes=10**8) for shard in local.shards))
    remote = replace(large, root="s3://bucket/train")
    cache = RemoteCache(folder=str(tmp_path / "cache"), size=10**8)
    few = ShuffleConfig(chunk_samples=2, window_chunks=4)
    refused = r"data\.cache\.remote\.size: 100,000,000 .* needs \(160,000,000 bytes: a window of the shuffle, 8 chunks"
    with pytest.raises(UsageError, match=refused):
        check_cache(cache, [local, remote], [[40], [40]], few.model_copy(update={"window_chunks": 8}))
    check_cache(cache, [local, remote], [[40], [40]], few)
    # All of it fits, or none of it goes there.
    check_cache(cache, [replace(local, root="s3://bucket/train")], [[40]], ShuffleConfig())
    check_cache(cache, [large], [[40]], ShuffleConfig())
    # What is kept of a gzip file is what it unpacks to.
    packed = replace(remote, shards=tuple(_packed(shard) for shard in remote.shards))
    with pytest.raises(UsageError, match=refused):
        check_cache(cache, [packed], [[40]], few.model_copy(update={"window_chunks": 8}))
    # Of a dataset that lies here but for a shard, that one alone, which is a quarter of a window as well.
    elsewhere = replace(large, shards=(replace(large.shards[0], path="s3://bucket/0.tar"), *large.shards[1:]))
    check_cache(cache, [elsewhere], [[40]], few.model_copy(update={"window_chunks": 16}))
    with pytest.raises(
        UsageError, match=r"99,999,999 bytes .* needs \(100,000,000 bytes: a window of the shuffle, 20 chunks"
    ):
        check_cache(
            cache.model_copy(update={"size": 99_999_999}),
            [elsewhere],
            [[40]],
            few.model_copy(update={"window_chunks": 20}),
        )


def test_every_stream_of_a_mixture_needs_a_window_of_its_own(tmp_path: Path) -> None:
    local = open_dataset(make_dataset(tmp_path / "train", 40, ("label",), num_shards=4))
    shards = tuple(replace(shard, size_bytes=10**8) for shard in local.shards)  # 10 MB for a sample
    one, other = (replace(local, shards=shards, root=f"s3://bucket/{name}") for name in ("one", "other"))
    few = ShuffleConfig(chunk_samples=2, window_chunks=4)  # 80 MB

    def needed(*datasets: Dataset, drawn: list[list[int]]) -> str:
        cache = RemoteCache(folder=str(tmp_path / "cache"), size=7 * 10**7)
        with pytest.raises(UsageError, match=r"data\.cache\.remote\.size") as refused:
            check_cache(cache, datasets, drawn, few)
        return str(refused.value).partition("(")[2].partition(" of the shuffle")[0]

    assert needed(one, drawn=[[40]]) == "80,000,000 bytes: a window"
    assert needed(one, other, drawn=[[40], [40]]) == "160,000,000 bytes: 2 windows"
    # Samples of a class, and those of a part, lie all over their dataset: it is read from more of its blocks.
    assert needed(one, drawn=[[20, 20]]) == "320,000,000 bytes: 2 windows"
    assert needed(one, other, drawn=[[16], [40]]) == "280,000,000 bytes: 2 windows"
    # Never more than there is of it, however many streams it has, and what lies here needs none.
    assert needed(one, one, drawn=[[10, 10], [10, 10]]) == "400,000,000 bytes: 4 windows"
    assert needed(one, local, drawn=[[40], [40]]) == "80,000,000 bytes: a window"
