"""Who gets which CPUs and GPUs: the nodes of a Ray → what each worker reserves, so that some is left to read data with."""

from __future__ import annotations

import bisect
import contextlib
import contextvars
import math
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ray_mm.config.base import Resources, TrainResources
from ray_mm.errors import UsageError
from ray_mm.progress import notice

GROWS_WITHIN_S = "ray-mm/grows-within-s"
"""A label of the head of a cluster that gets machines when they are asked for: how many seconds they may take."""
_LOOK_EVERY_S = 2.0
_TELL_EVERY_S = 600.0
_ASKED_AT_ONCE = 32
_ANSWER_TIMEOUT_S = 2.0

_share: contextvars.ContextVar[float] = contextvars.ContextVar("ray_mm_share", default=1.0)


@contextlib.contextmanager
def use_share(share: float) -> Iterator[None]:
    """Lets the trainings in the block take only a part of the Ray that is running; others run beside them.

    Args:
        share: of its CPUs and its object store.
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


@dataclass(frozen=True)
class Node:
    """What a machine of a cluster offers to Ray."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Placement:
    """What each worker reserves, so that the data pipeline keeps something to run on.

    Attributes:
        workers: for which there is room now; never fewer than ``fewest``, never more than ``most``.
        cpus_per_worker: that Ray reserves for each.
        gpus_per_worker: likewise.
        data_cpus: that so many workers leave.
        fewest: workers that the job can do with.
        most: workers that it takes when there is room.
        share: of the Ray that is running, that all of this is; 1: it has nobody beside it.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    data_cpus: float
    fewest: int
    most: int
    share: float = 1.0

    @property
    def threads(self) -> int | None:
        """That each worker may use for computing; None: all of its node, for there are no other runs."""
        return None if self.share == 1 else max(1, int(self.cpus_per_worker + self.data_cpus / self.workers))

    def within(self, share: float, cpus: float) -> Placement:
        """The same for a run that has others beside it: as few workers as it can do with, and its share for the data.

        Args:
            share: of all CPUs.
            cpus: that there are.
        """
        left = max(1.0, cpus * share - self.fewest * self.cpus_per_worker)
        return replace(self, workers=self.fewest, most=self.fewest, data_cpus=left, share=share)

    def fits(self, nodes: Sequence[Node]) -> int:
        """How many of these workers find room on some nodes; see ``room``."""
        return min(self.most, room(nodes, self.cpus_per_worker, self.gpus_per_worker))

    def describe(self) -> str:
        """What is asked for, for people."""
        each = f"{self.cpus_per_worker:g} CPU(s)" + (
            f" and {self.gpus_per_worker:g} GPU(s)" if self.gpus_per_worker else ""
        )
        return f"{self.fewest} worker(s) with {each} each"


def place(resources: Resources | TrainResources) -> Placement:
    """Divides the CPUs of the Ray that is running, or a share of them, between the workers and Ray Data; see ``divide``.

    Where there is too little, a cluster that grows is asked for more, and waited for.
    """
    try:
        placement = divide(resources, ray_nodes())
    except UsageError as lack:
        placement = _when_grown(resources, lack, grows_within_s())
    nodes = ray_nodes()
    if crowded := crowding(placement, nodes):
        notice(crowded)
    share = _share.get()
    return placement if share == 1 else placement.within(share, sum(node.cpus for node in nodes))


def grows_within_s() -> float:
    """Seconds in which machines come that the Ray that is running is asked for, as a label of its head says; 0: none come."""
    import ray

    labels = [node.get("Labels") or {} for node in ray.nodes() if node["Alive"]]
    found = [label[GROWS_WITHIN_S] for label in labels if GROWS_WITHIN_S in label]
    try:
        return max(map(float, found), default=0.0)
    except ValueError:
        raise UsageError(
            f"the label {GROWS_WITHIN_S} of Ray's head is {found[0]!r}; expected seconds, such as 1800."
        ) from None


def bundles(resources: Resources | TrainResources) -> list[dict[str, float]]:
    """What an autoscaler is asked for: the fewest workers, and a CPU to read data with."""
    worker = {"CPU": resources.cpus_per_worker or 1.0}
    if resources.gpus_per_worker:
        worker["GPU"] = resources.gpus_per_worker
    return [*(dict(worker) for _ in range(resources.range[0])), {"CPU": 1.0}]


def _when_grown(resources: Resources | TrainResources, lack: UsageError, patience_s: float) -> Placement:
    """Asks for the machines that are lacking, and waits until they are there.

    Args:
        resources: what the job asks for.
        lack: what is said of it now.
        patience_s: how long it waits; 0: not at all.

    Raises:
        UsageError: the same, where nothing comes.
    """
    if not patience_s:
        raise lack
    from ray.autoscaler.sdk import request_resources

    told_s, started = 0.0, time.monotonic()
    try:
        while (waited_s := time.monotonic() - started) < patience_s:
            if waited_s >= told_s:
                notice(f"waits for machines, which were asked for; up to {patience_s - waited_s:.0f} s more. {lack}")
                told_s = waited_s + _TELL_EVERY_S
            request_resources(bundles=bundles(resources))  # every time: another job may have asked for other ones since
            time.sleep(_LOOK_EVERY_S)
            try:
                return divide(resources, ray_nodes())
            except UsageError as still:
                lack = still
    finally:
        request_resources(bundles=[])  # or they would be kept for ever; workers keep what they are on
    raise UsageError(f"{lack} No more machines came within {patience_s:.0f} s, although they were asked for.")


def ray_nodes(must_answer: bool = False) -> list[Node]:
    """The machines of the Ray that is running.

    Args:
        must_answer: leaves out those that no longer do. Ray takes up to half a minute to notice that a machine is gone.
    """
    import ray

    # Nothing new is started on a machine that will be taken back.
    draining = ray._private.state.state.get_draining_nodes()
    found = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    if must_answer and len(found) > 1:
        with ThreadPoolExecutor(min(len(found), _ASKED_AT_ONCE)) as threads:
            found = [node for node, answers in zip(found, threads.map(_answers, found), strict=True) if answers]
    return [Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in found]


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        where = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(where, timeout=_ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def object_store_bytes() -> float:
    """Bytes of the object store of the Ray that is running, or of a share of it, on all its machines together."""
    import ray

    return float(ray.cluster_resources().get("object_store_memory", 0.0)) * _share.get()


def room(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many workers find room, when a CPU of one node is kept for reading data. A worker lies on one node as a whole.

    Args:
        nodes: that there are.
        cpus: of a worker, more than 0.
        gpus: of a worker.
    """

    def fit(node: Node, kept: float = 0.0) -> int:
        # Shares such as 1/3 are no round numbers.
        by_cpu = math.floor((node.cpus - kept) / cpus + 1e-6)
        return by_cpu if gpus == 0 else min(by_cpu, math.floor(node.gpus / gpus + 1e-6))

    fits = [fit(node) for node in nodes]
    # It is kept where it costs the fewest workers.
    return max(
        (sum(fits) - all_of_it + fit(node, 1.0) for node, all_of_it in zip(nodes, fits, strict=True) if node.cpus >= 1),
        default=0,
    )


def crowding(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """What is to be said of workers that get in each other's way; None where they don't."""
    cpus = sum(node.cpus for node in nodes)
    if placement.workers <= cpus or placement.gpus_per_worker:
        return None
    return (
        f"resources.workers: {placement.workers} workers share the {cpus:g} CPUs that Ray has, which makes them slower, not "
        f"faster; set it to {max(1, math.floor(cpus) - 1)}."
    )


def divide(resources: Resources | TrainResources, nodes: Sequence[Node]) -> Placement:
    """Divides CPUs between the workers and Ray Data.

    A worker gets one CPU where there are enough. On a small machine the workers share what is left after one CPU has
    been kept for data: without it the pipeline would never start and the run would hang.

    Args:
        resources: what the job asks for.
        nodes: the machines that Ray has.

    Raises:
        UsageError: the workers ask for more CPUs or GPUs than there are, or than lie together on one node.
    """
    fewest, most = resources.range
    cpus, gpus, per_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), resources.gpus_per_worker
    wanted_gpus = fewest * per_gpus
    if wanted_gpus > gpus:
        raise UsageError(
            f"resources: {fewest} worker(s) with {per_gpus:g} GPU(s) each need {wanted_gpus:g} and Ray has {gpus:g}; lower "
            "resources.workers or resources.gpus_per_worker."
        )
    per_worker = resources.cpus_per_worker
    if per_worker is None:
        per_worker = _share_of_cpus(nodes, fewest, per_gpus)
    left = cpus - fewest * per_worker
    if left < 1.0 or per_worker <= 0.0:
        raise UsageError(
            f"resources: {fewest} worker(s) with {per_worker:g} CPU(s) each leave {max(left, 0):g} of Ray's {cpus:g} CPUs for "
            "reading data, which needs one; lower resources.workers or resources.cpus_per_worker."
        )
    workers = min(most, room(nodes, per_worker, per_gpus))
    placement = Placement(
        workers=workers,
        cpus_per_worker=per_worker,
        gpus_per_worker=per_gpus,
        data_cpus=cpus - workers * per_worker,
        fewest=fewest,
        most=most,
    )
    if workers < fewest:
        raise UsageError(
            f"resources: {placement.describe()} do not fit on Ray's nodes ({describe(nodes)}): there is room for {workers} "
            "beside the CPU that reads data, and a worker lies on one node; lower resources.workers, or what each of them "
            "reserves."
        )
    return placement


def describe(nodes: Sequence[Node]) -> str:
    """Such as ``2 × 8 CPUs and 1 GPU``."""
    counts = Counter(f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes)
    return ", ".join(f"{count} × {what}" for what, count in counts.items()) or "none"


def _share_of_cpus(nodes: Sequence[Node], workers: int, gpus: float) -> float:
    """The most CPUs, up to one, with which so many workers find room; 0 where there is none for them."""
    # Ray counts in ten-thousandths; rounding up would take the last CPU from the data.
    shares = {
        math.floor(cpus / number * 1000) / 1000
        for node in set(nodes)
        for number in range(1, workers + 1)
        for cpus in (node.cpus, node.cpus - 1)
    }
    descending = sorted({1.0} | {share for share in shares if 0 < share < 1}, reverse=True)
    place = bisect.bisect_left(descending, workers, key=lambda share: room(nodes, share, gpus))
    return descending[place] if place < len(descending) else 0.0
