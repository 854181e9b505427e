"""Ray, started or joined for one command and left as it was found."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ray_mm.config.base import Resources
from ray_mm.errors import RayMMError, UsageError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Joins the Ray that is already there, or starts a private one and stops it at the end.

    Args:
        address: of a cluster. None: the cluster of the Ray job that this process belongs to (``RAY_ADDRESS``), else a
            private Ray on this machine.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options = {} if address != "local" else {"include_dashboard": False, "num_cpus": local_cpus()}
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False, **options)
    try:
        # The progress bars of Ray Data would write over ours.
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


def local_cpus() -> int:
    """CPUs that a private Ray offers: what this process may use, and at least two, so that data and training both run."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, available)


@dataclass(frozen=True)
class Placement:
    """What each worker reserves, so that the data pipeline keeps something to run on."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    data_cpus: float


def place(resources: Resources) -> Placement:
    """Divides the cluster's CPUs between the workers and Ray Data.

    A worker gets one CPU where there are enough. On a small machine the workers share what is left after one CPU has
    been kept for data: without it the pipeline would never start and the run would hang.

    Raises:
        UsageError: the workers ask for more CPUs or GPUs than the cluster has.
    """
    import ray

    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    wanted_gpus = resources.workers * resources.gpus_per_worker
    if wanted_gpus > gpus:
        raise UsageError(
            f"resources: {resources.workers} workers × {resources.gpus_per_worker:g} GPUs need {wanted_gpus:g} GPUs and Ray "
            f"has {gpus:g}; lower resources.workers or resources.gpus_per_worker."
        )
    if resources.cpus_per_worker is None:
        share = (cpus - 1.0) / resources.workers
        # Ray counts in ten-thousandths; rounding up would take the last CPU from the data.
        per_worker = min(1.0, math.floor(share * 1000) / 1000)
    else:
        per_worker = resources.cpus_per_worker
    left = cpus - resources.workers * per_worker
    if left < 1.0 or per_worker <= 0.0:
        raise UsageError(
            f"resources: {resources.workers} workers × {per_worker:g} CPUs leave {max(left, 0):g} of Ray's {cpus:g} CPUs for "
            "reading data, which needs one; lower resources.workers or resources.cpus_per_worker."
        )
    return Placement(resources.workers, per_worker, resources.gpus_per_worker, left)


def cause_of(error: BaseException) -> BaseException:
    """The error of ours inside what Ray wrapped around it, or the innermost cause."""
    seen: set[int] = set()
    current: BaseException | None = error
    innermost = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        innermost = current
        if isinstance(current, RayMMError):
            return current
        worker_failures = getattr(current, "worker_failures", None)
        if worker_failures:
            current = next(iter(worker_failures.values()))
        else:
            current = getattr(current, "cause", None) or current.__cause__ or current.__context__
    return innermost
