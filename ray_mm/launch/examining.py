"""``python -m ray_mm.launch.examining``: on a cluster's head, every node of it → what each has, sees and takes, as an answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from ray_mm.errors import RayMMError
from ray_mm.launch.answer import give_answer
from ray_mm.progress import notice
from ray_mm.references import VARIABLE, apply_references, resolved
from ray_mm.storage import is_remote
from ray_mm.travel import code_digest

MODULE = "ray_mm.launch.examining"
_PATIENCE_S = 120.0
_PROBE_BYTES = 32 << 20
_CLOCK_ROUNDS = 5
_GPUS = Path("/proc/driver/nvidia/gpus")


class Probe:
    """A process on one node."""

    def clock(self) -> float:
        """Seconds since 1970, as the node has it."""
        return time.time()

    def look(self) -> dict[str, Any]:
        """What the node has."""
        from ray_mm.run_folder import versions

        return {
            "host": platform.node(),
            "versions": versions(),
            "code": code_digest(),
            "gpus": len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0,
            "references": _references(),
        }

    def storage(self, folder: str, mark: str) -> dict[str, Any]:
        """Whether the node sees what the head has written to the storage, whether it can write there, and how fast."""
        content = secrets.token_bytes(1 << 20) * (_PROBE_BYTES >> 20)
        try:
            apply_references()
            seen = read_probe(folder, mark) == mark.encode()
            name = f"{mark}.{secrets.token_hex(8)}"
            started = time.perf_counter()
            write_probe(folder, name, content)
            written = time.perf_counter()
            same = read_probe(folder, name) == content
            ended = time.perf_counter()
            remove_probe(folder, name)
        except Exception as error:  # whatever a file system or a store raises
            return {"problem": _said(error)}
        problem = (
            ""
            if seen and same
            else "does not see what the head wrote there"
            if same
            else "reads other bytes than it wrote"
        )
        return {
            "problem": problem,
            "write_mb_s": _PROBE_BYTES / 1e6 / (written - started),
            "read_mb_s": _PROBE_BYTES / 1e6 / (ended - written),
        }

    def make(self) -> Any:
        """Some bytes, in the node's object store."""
        import ray

        return [ray.put(secrets.token_bytes(1 << 20) * (_PROBE_BYTES >> 20))]

    def take(self, made: list[Any]) -> float:
        """MB/s at which they come here."""
        import ray

        started = time.perf_counter()
        ray.get(made[0])
        return _PROBE_BYTES / 1e6 / (time.perf_counter() - started)


def write_probe(folder: str, name: str, content: bytes) -> None:
    """Writes a small file or object."""
    if is_remote(folder):
        from ray_mm.storage.remote import join, put_if_absent

        put_if_absent(join(folder, name), content)
        return
    path = Path(folder, name)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def read_probe(folder: str, name: str) -> bytes:
    """Reads it."""
    if is_remote(folder):
        from ray_mm.storage.remote import join, read_object

        return read_object(join(folder, name))
    list(Path(folder).iterdir())  # network file systems remember for some seconds what was not there
    return Path(folder, name).read_bytes()


def remove_probe(folder: str, name: str) -> None:
    """Takes it away."""
    if is_remote(folder):
        import obstore

        from ray_mm.storage.remote import join
        from ray_mm.storage.stores import split_url, store_of

        url = join(folder, name)
        obstore.delete(store_of(url), split_url(url)[2])
        return
    Path(folder, name).unlink(missing_ok=True)


def examine(storage: str | None) -> dict[str, Any]:
    """Asks every node of the Ray that is joined.

    Args:
        storage: folder or URL that all nodes should see; None: that is not asked.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    probe = ray.remote(Probe)
    probes = {
        node["NodeID"]: probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    found: list[dict[str, Any]] = []
    mark = f".ray_mm.{secrets.token_hex(8)}"
    problem = ""
    if storage is not None:
        try:
            write_probe(storage, mark, mark.encode())
        except Exception as error:
            problem = f"the head can't write there ({_said(error)})"
    looks = {
        node: each.look.remote() for node, each in probes.items()
    }  # on all of them at once: a process takes its time
    for node in nodes:
        each = probes[node["NodeID"]]
        one: dict[str, Any] = {
            "id": node["NodeID"],
            "host": node["NodeManagerHostname"],
            "ip": node["NodeManagerAddress"],
        }
        one["cpus"], one["ray_gpus"] = node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)
        try:
            one |= ray.get(looks[node["NodeID"]], timeout=_PATIENCE_S)
            one["clock_s"], one["clock_error_s"] = _offset(each)
            if storage is not None:
                one["storage"] = ray.get(each.storage.remote(storage, mark), timeout=_PATIENCE_S)
        except Exception as error:
            one["problem"] = _said(error)
        found.append(one)
    if storage is not None:
        with contextlib.suppress(Exception):
            remove_probe(storage, mark)
    well = [one for one in found if "problem" not in one]
    links = []
    for one, other in zip(well, [*well[1:], *well[:1]], strict=True):
        if one is not other:
            link: dict[str, Any] = {"from": one["host"], "to": other["host"]}
            try:
                made = ray.get(probes[one["id"]].make.remote(), timeout=_PATIENCE_S)
                link["mb_s"] = ray.get(probes[other["id"]].take.remote(made), timeout=_PATIENCE_S)
            except Exception as error:
                link["problem"] = _said(error)
            links.append(link)
    return {"nodes": found, "links": links, "storage": storage, "storage_problem": problem}


def _offset(probe: Any) -> tuple[float, float]:
    """By how much a node's clock is ahead of the head's, and how exactly that is known; in seconds."""
    import ray

    best = (0.0, float("inf"))
    for _ in range(_CLOCK_ROUNDS):
        before = time.time()
        there = ray.get(probe.clock.remote(), timeout=_PATIENCE_S)
        after = time.time()
        if after - before < 2 * best[1]:
            best = (there - (before + after) / 2, (after - before) / 2)
    return best


def _said(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _references() -> dict[str, str]:
    """Variable → why the node has no value for it."""
    missing = {}
    for name, where in json.loads(os.environ.get(VARIABLE, "{}")).items():
        try:
            resolved({name: where})
        except RayMMError as error:
            missing[name] = str(error)
    return missing


def main() -> int:
    """Examines the cluster; its exit status."""
    import ray

    parser = argparse.ArgumentParser()
    parser.add_argument("--storage")
    given = parser.parse_args()
    with contextlib.suppress(RayMMError):  # it is among what is found
        apply_references()
    try:
        ray.init(address="auto", log_to_driver=False, configure_logging=False)
        answer = json.dumps(examine(given.storage)).encode()
        ray.shutdown()
    except Exception as error:
        notice(f"{type(error).__name__}: {error}")
        return 1
    give_answer(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
