"""Each stage of a training, alone, where the training would do it: Ray tasks → what a sample costs.

    read, decode                       a task with the CPUs of a read task
    hand over, transfer, step          a task with the CPUs and GPUs of a worker; blocks come to it from a read task

Nothing is written anywhere.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from ray_mm.data.blocks import Work, block_work, to_arrays, to_table
from ray_mm.data.feed import Feed
from ray_mm.data.source import READERS_PER_CPU, configure
from ray_mm.errors import RayMMError
from ray_mm.placement import Placement
from ray_mm.training.costs import DecodeCost, HandCost, Measured, ReadCost, Room, StepCost
from ray_mm.training.feeding import plan_feed
from ray_mm.training.parallel import use_cores
from ray_mm.training.plan import Training
from ray_mm.training.probe_data import probe_data
from ray_mm.training.probe_step import probe_step
from ray_mm.training.train import store_limits

_SETTLED_AFTER = 0.25
"""Share of the time after which blocks come evenly; before it, processes start."""


def measure(training: Training, placement: Placement, seconds: float) -> Measured:
    """Measures all stages, one after the other; needs a Ray that runs.

    Args:
        training: what would be done.
        placement: what each worker reserves.
        seconds: per stage, about.

    Raises:
        UsageError: a dataset is gone, damaged or changed, or data.object_store is too small.
        RayMMError: a store does not answer, or a worker's device can't be used.
    """
    feed = plan_feed(training, placement.workers, 0, store_limits(training, placement))
    read, decode, table, reads_at = ray.get(_data_task.remote(feed, seconds))
    worker = _worker_task.options(num_cpus=placement.cpus_per_worker, num_gpus=placement.gpus_per_worker)
    hand_over, step, trains_at, device = ray.get(worker.remote(training, feed, placement, [ray.put(table)], seconds))
    room = Room(
        workers=placement.workers,
        cpus=ray.cluster_resources().get("CPU", 0.0),
        data_cpus=placement.data_cpus,
        cpus_per_worker=placement.cpus_per_worker,
        num_tasks=feed.tasks.num_tasks(0),
        readers_per_cpu=READERS_PER_CPU,
    )
    cache = training.job.data.cache
    has_cache = cache.remote is not None or cache.decoded is not None
    return Measured(read, decode, hand_over, step, room, reads_at, trains_at, device, has_cache)


@ray.remote(num_cpus=1 / READERS_PER_CPU, max_retries=0)  # type: ignore[untyped-decorator]  # Ray is not typed
def _data_task(feed: Feed, seconds: float) -> tuple[ReadCost, DecodeCost, pa.Table, str]:
    read, decode, table = probe_data(feed, seconds)
    return read, decode, table, platform.node()


# A process that has used a GPU keeps a part of it until it ends.
@ray.remote(max_calls=1, max_retries=0)  # type: ignore[untyped-decorator]  # Ray is not typed
def _worker_task(
    training: Training, feed: Feed, placement: Placement, blocks: list[ray.ObjectRef[pa.Table]], seconds: float
) -> tuple[HandCost, StepCost, str, str]:
    (table,) = blocks
    device = torch.device("cpu")
    if placement.gpus_per_worker > 0:
        if not torch.cuda.is_available():
            raise RayMMError(
                f"resources.gpus_per_worker: torch {torch.__version__} on {platform.node()} can't use the GPU that Ray gives a "
                "worker there; install a CUDA build that fits its driver."
            )
        device = torch.device("cuda", 0)
    hand_over = _hand_over(feed, table, feed.blocks_of(training.job.data.prefetch_batches), seconds)
    use_cores(_workers_here(placement))
    step = probe_step(training, ray.get(table), feed.batch_rows, device, seconds)
    return hand_over, step, platform.node(), torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _workers_here(placement: Placement) -> int:
    """How many workers of the training this machine would have, for they share its cores."""
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    room = [placement.workers, int(here["Resources"].get("CPU", 0.0) // placement.cpus_per_worker)]
    if placement.gpus_per_worker > 0:
        room.append(int(here["Resources"].get("GPU", 0.0) // placement.gpus_per_worker))
    return max(1, min(room))


def _hand_over(feed: Feed, table: ray.ObjectRef[pa.Table], prefetch_blocks: int, seconds: float) -> HandCost:
    """The way of a training's blocks, with one block again and again and nothing done with it."""
    dataset = ray.data.read_datasource(
        _Repeated(table, feed, seconds), num_cpus=1 / READERS_PER_CPU, override_num_blocks=1
    )
    configure(dataset.context, feed)
    (split,) = dataset.streaming_split(1, equal=False, locality_hints=None)
    batches = iter(split.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_blocks))
    # What comes before is the start of processes; the end of the task is not waited for.
    arrived = [(time.perf_counter(), time.process_time(), _cpu_s(block)) for block in batches]
    settled = arrived[0][0] + _SETTLED_AFTER * seconds
    first = next((number for number, (at, _, _) in enumerate(arrived) if at >= settled), 0)
    done = len(arrived) - 1 - first
    if done <= 0:
        raise RayMMError(
            f"no second batch came through Ray's object store within {seconds:g} s; give --seconds more, or see that the machine "
            "is not busy with something else."
        )
    wall_s, receive_s, send_s = (
        (last - before) / (done * feed.block_rows) for before, last in zip(arrived[first], arrived[-1], strict=True)
    )
    return HandCost(wall_s=wall_s, send_cpu_s=send_s, receive_cpu_s=receive_s, block_rows=feed.block_rows)


def _cpu_s(block: pa.Table) -> float:
    """What the process that sent a block had used until then."""
    work = block_work(block)
    assert work is not None
    return work.read_s


class _Repeated(Datasource):  # type: ignore[misc]  # Ray is not typed
    """One read task that yields a block again and again."""

    def __init__(self, table: ray.ObjectRef[pa.Table], feed: Feed, seconds: float) -> None:
        super().__init__()
        self._table, self._feed, self._seconds = table, feed, seconds

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of a block; how many there will be, nobody knows."""
        return self._feed.block_rows * self._feed.row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The only one."""
        table, seconds = self._table, self._seconds
        shares = [
            slice(place * self._feed.batch_rows, (place + 1) * self._feed.batch_rows)
            for place in range(self._feed.items_per_block)
        ]
        items = range(len(shares))

        def read() -> Iterator[pa.Table]:
            arrays, started = to_arrays(ray.get(table)), time.monotonic()
            keys = [str(row) for row in range(len(next(iter(arrays.values()))))]
            while time.monotonic() - started < seconds:
                # As a read task puts the batches of a block together.
                together = arrays
                if len(shares) > 1:
                    together = {
                        name: np.concatenate([array[share] for share in shares]) for name, array in arrays.items()
                    }
                yield to_table(together, keys, items, Work(time.process_time(), 0.0, time.time()))

        metadata = BlockMetadata(
            num_rows=None, size_bytes=self.estimate_inmemory_data_size(), exec_stats=None, input_files=None
        )
        return [ReadTask(read, metadata, per_task_row_limit=per_task_row_limit)]
