"""``python -m ray_mm.launch.leave SECONDS``: a machine that will be gone → nothing runs on it any more, or its time is over.

Ray is told that this node will be taken back: nothing new is begun on it, and trainings save their state and go on elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
from ray.core.generated import autoscaler_pb2

from ray_mm.errors import RayMMError
from ray_mm.progress import notice

_LOOK_EVERY_S = 0.5
_IDLE_LOOKS = 4
"""In a row: what has just begun on a node is known to the head a little later."""
_MARGIN_S = 5.0
_REASON = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def leave(seconds: float, address: str = "auto", node: str | None = None) -> bool:
    """Tells Ray that a node will be gone, and waits until nothing runs on it.

    Args:
        seconds: until it is gone. Some seconds before, the waiting ends in any case.
        address: of the head, HOST:PORT.
        node: its id; None: this one.

    Returns:
        Whether nothing runs on it.

    Raises:
        RayMMError: Ray does not take it.
    """
    gone, last = time.time() + seconds, time.monotonic() + seconds - _MARGIN_S
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        context = ray.get_runtime_context()
        node = node or context.get_node_id()
        accepted, why = ray._raylet.GcsClient(address=context.gcs_address).drain_node(
            node, _REASON, "it leaves", int(gone * 1000)
        )
        if not accepted:
            raise RayMMError(f"Ray does not let the node go: {why}")
        idle, told = 0, False
        while idle < _IDLE_LOOKS and time.monotonic() < last:
            idle = idle + 1 if _is_idle(node) else 0
            if not idle and not told:
                notice("something runs on this node, and is asked to go on elsewhere; waits for its end.")
                told = True
            time.sleep(_LOOK_EVERY_S)
        return idle >= _IDLE_LOOKS
    finally:
        ray.shutdown()


def _is_idle(node: str) -> bool:
    left = ray._private.state.available_resources_per_node().get(node)
    totals = {found["NodeID"]: found["Resources"] for found in ray.nodes() if found["Alive"]}.get(node)
    if left is None or totals is None:  # it is gone already
        return True
    return all(left.get(name, 0.0) >= totals.get(name, 0.0) for name in ("CPU", "GPU"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_mm.launch.leave")
    parser.add_argument("seconds", type=float, help="until this machine is gone")
    parser.add_argument("--address", default="auto", help="of the head, HOST:PORT")
    parser.add_argument("--node", help="id of a node; unset: this one")
    given = parser.parse_args()
    try:
        idle = leave(given.seconds, given.address, given.node)
    except RayMMError as error:
        notice(str(error))
        return error.exit_status
    notice(
        "nothing runs on this node any more." if idle else "the time is over, and something may still run on this node."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
