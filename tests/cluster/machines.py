"""A cluster of two machines on this one: a Ray head and a second raylet, each with processes of its own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ray_mm.session import ended_on_error

ROOT = Path(__file__).parents[2]
_STORE_BYTES = 100 << 20
_STARTS = 4


class Machines:
    """A head with three CPUs, and others with two that come and go: a worker of two CPUs finds room on each."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._is_drained = False
        # Ray gives a machine half a minute to start, which is too little on a busy one.
        for start in range(1, _STARTS + 1):
            try:
                with ended_on_error():
                    self._cluster = Cluster(
                        initialize_head=True,
                        head_node_args={
                            "num_cpus": 3,
                            "object_store_memory": _STORE_BYTES,
                            "include_dashboard": False,
                            # So that a machine that is gone is missed after some seconds.
                            "_system_config": {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000},
                        },
                    )
                break
            except Exception:
                if start == _STARTS:
                    raise
        self.second = self._add()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self._cluster.address)

    def _add(self) -> Any:
        for start in range(1, _STARTS + 1):
            try:
                with ended_on_error():
                    return self._cluster.add_node(num_cpus=2, object_store_memory=_STORE_BYTES)
            except Exception:
                if start == _STARTS:
                    raise
        raise AssertionError

    def lose_second(self) -> None:
        """The second machine goes, and what ran on it: no process of it gets a chance to say so."""
        self._cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def have_second(self) -> None:
        """There are two machines, or again; none of them is one that will be taken back."""
        if self._is_drained and self.second is not None:
            self.lose_second()
        if self.second is None:
            self.second = self._add()
            self._is_drained = False

    def drain_second(self, grace_s: float) -> None:
        """The second machine is told that it will be taken back, as a cloud does with one that it lends for less."""
        client = ray._raylet.GcsClient(address=self.address)
        accepted, why = client.drain_node(
            self.second.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "",
            int((time.time() + grace_s) * 1000),
        )
        assert accepted, why
        self._is_drained = True

    def restart(self) -> None:
        """All of Ray goes, and comes again, at another address."""
        self.end()
        self._start()

    def end(self) -> None:
        """All goes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """Two machines for the block. Their processes find this ray_mm."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        started = Machines()
        try:
            yield started
        finally:
            started.end()
