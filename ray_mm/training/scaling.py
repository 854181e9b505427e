"""How many workers, while machines go and come: Ray Train's own elastic training, with two things more.

A CPU is kept for reading data. And before the workers leave for others they are asked to save: Ray Train by itself takes no
checkpoint when it changes their number, nor when a machine tells that it will be taken back (Ray calls that draining), and the
steps since the last one would be done again.

``TorchTrainer`` has no place for policies of one's own; ``tests/cluster`` fails where Ray changes its inside.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.scaling_policy import NoopDecision, ResizeDecision

from ray_mm.placement import Placement, describe, ray_nodes
from ray_mm.progress import notice
from ray_mm.training.failures import LeavingIsNoFailure
from ray_mm.training.stopping import StopSign

_LOOK_EVERY_S = 60.0
"""For room for more workers. To use it costs a start of all workers."""
_LOOK_FOR_ROOM_EVERY_S = 5.0
_TELL_AGAIN_EVERY_S = 600.0
_REMEDY = (
    "It goes on by itself when there is room. To go on with fewer: Ctrl-C, and the same command with a lower resources.workers, "
    "from the last checkpoint."
)


def scaling_config(placement: Placement) -> ray.train.ScalingConfig:
    """What Ray Train is told of the workers."""
    is_fixed = placement.fewest == placement.most
    return ray.train.ScalingConfig(
        num_workers=placement.most if is_fixed else (placement.fewest, placement.most),
        use_gpu=placement.gpus_per_worker > 0,
        resources_per_worker={"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker},
        **({} if is_fixed else {"elastic_resize_monitor_interval_s": _LOOK_EVERY_S}),
    )


class Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]  # Ray is not typed
    """Ray Train's trainer for torch, with the policies below.

    Args:
        placement: of the workers.
        run: the run's folder.
        settings: of the trainer.
    """

    def __init__(self, *args: Any, placement: Placement, run: Path, **settings: Any) -> None:
        super().__init__(*args, scaling_config=scaling_config(placement), **settings)
        self._placement, self._run = placement, run

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = LeavingIsNoFailure(self.run_config.failure_config)
        settings["callbacks"] = [*settings["callbacks"], _LeavesInTime(self._run)]
        if self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = _RoomForData(self.scaling_config, self._placement, self._run)
        return super()._initialize_and_run_controller(**settings)


class _RoomForData(ElasticScalingPolicy):  # type: ignore[misc]
    """Starts as many workers as find room beside a CPU for data; has them save before their number changes."""

    def __init__(self, config: ray.train.ScalingConfig, placement: Placement, run: Path) -> None:
        super().__init__(config)
        self._placement, self._run = placement, run

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # What Ray reserves is up to 20 s old; the machines that are there now are the limit. With workers on one that is gone,
        # a start would wait for them for a minute.
        possible: int = super()._count_possible_workers(reserved_resources)
        return min(possible, self._placement.fits(ray_nodes(must_answer=True)))

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            # They leave when they have saved; their number is decided anew then.
            StopSign(self._run).ask_to_leave()
            return NoopDecision()
        return decision


class _LeavesInTime(ControllerCallback):  # type: ignore[misc]
    """Asks the workers to save and leave when one of their machines is being taken back."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            StopSign(self._run).ask_to_leave()


@contextlib.contextmanager
def told_what_is_waited_for(placement: Placement) -> Iterator[None]:
    """Within the block one is told when machines go and the workers no longer fit on those that are left.

    Ray Train waits for others, without a word and without an end: a cluster may be about to replace them. So it is said again and
    again, and whoever runs the training decides how long it is worth it.
    """
    ended = threading.Event()
    wanted = f"{placement.describe()} do not fit on those"

    def watch() -> None:
        lacked = False
        lacks_since = told_at = 0.0
        while not ended.wait(_LOOK_FOR_ROOM_EVERY_S):
            try:
                nodes = ray_nodes()
            except Exception:  # Ray is going down, which the training itself will tell
                return
            now = time.monotonic()
            lacks = placement.fits(nodes) < placement.fewest
            if lacks and not lacked:
                lacks_since = now
            # Twice in a row: a machine that comes at once in place of another is not worth a word.
            elif lacks and not told_at:
                notice(f"waits for machines: {wanted} that Ray has now ({describe(nodes)}). {_REMEDY}")
                told_at = now
            elif lacks and now - told_at >= _TELL_AGAIN_EVERY_S:
                minutes = (now - lacks_since) / 60
                notice(
                    f"still waits for machines, {minutes:.0f} minutes now: {wanted} that Ray has ({describe(nodes)}). {_REMEDY}"
                )
                told_at = now
            elif told_at and not lacks:
                notice(f"there is room again ({describe(nodes)}).")
                told_at = 0.0
            lacked = lacks

    thread = threading.Thread(target=watch, name="room", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
