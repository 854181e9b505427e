"""Whether all nodes of a cluster see a folder: asked before anything is written that only one of them would find."""

from __future__ import annotations

import contextlib
import platform
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from ray_mm.errors import UsageError

_PATIENCE_S = 120.0
"""For a node to bring a process of the job up; Ray notices earlier that one is gone."""
_NAMED = 5


def require_seen_by_all(folder: Path) -> str | None:
    """Asks every node of the Ray that is joined whether it sees a folder, or the one that it will be in.

    Args:
        folder: that a run will write.

    Returns:
        What is to be said of nodes that did not answer; None where all did.

    Raises:
        UsageError: a node does not, can't write there, or can't run a process of the job at all.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = _nodes()
    if len(nodes) < 2:
        return None
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    mark = folder / f".ray_mm.{secrets.token_hex(8)}"
    try:
        mark.touch()
    except OSError as error:
        raise UsageError(
            f"output: {folder} can't be written on {platform.node()} ({error.strerror}); choose another output."
        ) from None
    try:
        look = ray.remote(problem_with)
        asked = {
            look.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(str(mark)): node
            for node in nodes
        }
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE_S)
        problems: dict[str, str] = {}
        failed: dict[str, str] = {}
        for answer in done:
            try:
                if found := ray.get(answer):
                    problems[asked[answer]] = found
            except Exception as error:
                failed[asked[answer]] = _why(error)
    finally:
        mark.unlink(missing_ok=True)
    still_there = _nodes()
    for node, why in failed.items():
        if node in still_there:
            raise UsageError(f"the node {nodes[node]} can't run a process of this job: {why}")
    if problems:
        told = _listed([f"{nodes[node]} {problem}" for node, problem in problems.items()])
        raise UsageError(
            f"output: {folder}: not every node of the cluster has this folder: {told}. A run's folder must be one that all "
            "nodes see and write under the same path, such as a network file system; name one in output, or as storage: in the "
            "cluster's profile."
        )
    unheard = [nodes[asked[answer]] for answer in late if asked[answer] in still_there]
    if not unheard:
        return None
    return f"{_listed(unheard)} did not say within {_PATIENCE_S:.0f} s whether {folder} is seen there; if not, the run will fail."


def _nodes() -> dict[str, str]:
    """Id → name of the nodes that take work: not of one that will be taken back."""
    import ray

    draining = ray._private.state.state.get_draining_nodes()
    found = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    return {node["NodeID"]: node["NodeManagerHostname"] for node in found}


def _listed(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _NAMED} nodes more" if len(texts) > _NAMED else ""
    return f"{', '.join(texts[:_NAMED])}{more}"


def _why(error: Exception) -> str:
    """What ray_mm itself said where it failed, else the first line of what Ray says."""
    said = re.search(r"ray_mm\.errors\.\w+: (.+)", str(error))
    return said[1].strip() if said else (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def problem_with(mark: str) -> str | None:
    """What is wrong with the folder of a file that another node has just written; None if nothing is. Runs on a node."""
    path = Path(mark)
    # Network file systems remember for some seconds what was not there.
    with contextlib.suppress(OSError):
        list(path.parent.iterdir())
    if not path.exists():
        return "does not see what is written there"
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        beside.touch()
    except OSError as error:
        return f"can't write there ({error.strerror})"
    beside.unlink(missing_ok=True)
    return None
