"""The share of Ray's object store: how it is divided, what is refused, and that it holds beside a slow worker."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from ray_mm.config.fields import ImageField
from ray_mm.data.feed import Feed
from ray_mm.data.loader import Loader
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.source import configure, feed_dataset
from ray_mm.data.store_limits import StoreLimits, limits_for
from ray_mm.errors import UsageError
from ray_mm.placement import object_store_bytes
from tests.data.feeds import make_feed
from tests.factories import make_dataset

MIB = 1 << 20


def test_a_half_is_rays_limit_and_the_other_one_the_running_tasks() -> None:
    limits = limits_for(0.5, store_bytes=800 * MIB, **_sizes(MIB, MIB), world_size=2, prefetch_batches=2, readers=8)
    assert limits == StoreLimits(ray_share=0.25, readers=None, task_bytes=25 * MIB, block_bytes=MIB)


def test_blocks_are_smaller_where_not_all_readers_fit() -> None:
    # 200 - 1 × 2 MiB for two blocks of the rank and three of each reader.
    limits = limits_for(
        0.5, store_bytes=800 * MIB, **_sizes(MIB, 48 * MIB), world_size=1, prefetch_batches=2, readers=8
    )
    assert limits == StoreLimits(ray_share=0.25, readers=None, task_bytes=25 * MIB, block_bytes=198 * MIB // 26)


def test_a_run_with_a_share_of_ray_has_that_share_of_its_limits() -> None:
    limits = limits_for(0.5, store_bytes=400 * MIB, **_sizes(MIB, MIB), world_size=2, prefetch_batches=2, readers=8)
    assert limits.within(0.5, 8) == dataclasses.replace(limits, ray_share=0.125, readers=8)
    few = dataclasses.replace(limits, readers=3)
    assert few.within(0.5, 8).readers == 3


def test_fewer_tasks_run_where_not_all_fit() -> None:
    limits = limits_for(
        0.5, store_bytes=80 * MIB, **_sizes(MIB, 48 * MIB), world_size=1, prefetch_batches=2, readers=64
    )
    assert limits == StoreLimits(ray_share=0.25, readers=6, task_bytes=20 * MIB // 6, block_bytes=MIB)


@given(
    share=st.floats(0.01, 1.0),
    store_bytes=st.integers(MIB, 1 << 40),
    batch_bytes=st.integers(1, 1 << 30),
    block_bytes=st.integers(1, 1 << 30),
    world_size=st.integers(1, 64),
    prefetch_batches=st.integers(1, 256),
    readers=st.integers(1, 1024),
)
def test_what_is_not_refused_fits(
    share: float,
    store_bytes: int,
    batch_bytes: int,
    block_bytes: int,
    world_size: int,
    prefetch_batches: int,
    readers: int,
) -> None:
    sizes = _sizes(batch_bytes, block_bytes) | {"world_size": world_size, "prefetch_batches": prefetch_batches}
    try:
        limits = limits_for(share, store_bytes=store_bytes, readers=readers, **sizes)
    except UsageError as error:
        if "raise it" in str(error):
            enough = float(str(error).partition("a share of ")[2].partition(":")[0])
            assert share < enough and limits_for(enough, store_bytes=store_bytes, readers=readers, **sizes)
        return
    running = limits.readers or readers
    assert 1 <= running <= readers and limits.task_bytes >= 3 * limits.block_bytes
    assert batch_bytes <= limits.block_bytes <= max(batch_bytes, block_bytes)
    assert limits.ray_share * store_bytes + running * limits.task_bytes <= share * store_bytes * (1 + 1e-9)


def test_a_share_that_nothing_gets_through_is_refused_by_name() -> None:
    with pytest.raises(
        UsageError, match=r"data\.object_store: 0\.1 of .* needs 14\.7 MB, a share of 0\.14: .*raise it"
    ):
        limits_for(0.1, store_bytes=105 * MIB, **_sizes(MIB, MIB), world_size=1, prefetch_batches=3, readers=4)


def _sizes(batch_bytes: int, block_bytes: int) -> dict[str, int]:
    return {"batch_bytes": batch_bytes, "block_bytes": block_bytes}


def test_tasks_are_as_short_as_the_room_wants(tmp_path: Path) -> None:
    feed = _feed(tmp_path, epochs=1)
    small = dataclasses.replace(feed, limits=StoreLimits(0.1, 1, 2 * feed.block_rows * feed.row_bytes, 1))
    assert feed.tasks.blocks_per_task > 2 and small.tasks.blocks_per_task == 2
    context = ray.data.DataContext()
    configure(context, small)
    assert context.override_object_store_memory_limit_fraction == 0.1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_a_slow_worker_lets_no_more_pile_up_than_the_share(local_ray: None, tmp_path: Path) -> None:
    feed = _feed(tmp_path, epochs=40)
    block, store = feed.block_rows * feed.row_bytes, object_store_bytes()
    share = 24 * block / store
    limits = limits_for(share, store_bytes=store, **_sizes(block, block), world_size=1, prefetch_batches=2, readers=4)
    assert feed.schedule.num_items * block > 10 * share * store, "most of it can't lie in the share"
    before = _stored()
    peak = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], _stored()[0] - before[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        arrived = _read_slowly(dataclasses.replace(feed, limits=limits))
    finally:
        ended.set()
        watcher.join()
    assert arrived == feed.schedule.num_items
    # The feed itself lies in the store, too, and whatever tests before this one have let go of meanwhile.
    assert 3 * block < peak[0] <= share * store + MIB
    assert _stored()[1] == before[1], "nothing was written to disk"


def _read_slowly(feed: Feed) -> int:
    (split,) = feed_dataset(feed).streaming_split(1, equal=False, locality_hints=None)
    loader = Loader(split, feed, rank=0, device=torch.device("cpu"), prefetch_batches=2)
    arrived = 0
    for _ in loader:
        arrived += 1
        if arrived == 5 or arrived == 200:
            time.sleep(4)  # a checkpoint, or a breakpoint
    return arrived


def _stored() -> tuple[int, int]:
    """Bytes of Ray's object store that something still refers to, and that were ever written to disk."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return stats.object_store_bytes_primary_copy, stats.spilled_bytes_total


def _feed(folder: Path, epochs: int) -> Feed:
    """Of blocks that are large enough to lie in the store: 1.5 MB."""
    path = make_dataset(folder, 320, ("image",), num_shards=4)
    feed = make_feed(path, fields=("image",), batch_size=32, epochs=epochs)
    larger = preprocessor_for(open_dataset(path), {"image": ImageField(height=128, width=128)}, ("image",))
    return dataclasses.replace(feed, preprocessor=larger)
