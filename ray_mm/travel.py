"""Whether the machines of a cluster have this very ray_mm. Where one has not, Ray brings it there with the job.

That costs seconds of every start: the code is copied to each machine, and no process that Ray has ready can be used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
_PATIENCE_S = 20.0


def with_the_job() -> dict[str, Any]:
    """The runtime environment of a job that brings its ray_mm along."""
    return {"py_modules": [str(PACKAGE)]}


def code_digest() -> str:
    """Hex SHA-256 of the names and contents of all files of this package, but for what Python compiled."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def cluster_has_this_code() -> bool:
    """Asks every machine of the Ray that is joined; one that does not answer in time has it not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By name, so that each machine answers with the code that it has.
    ask = ray.remote(code_digest)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [
        ask.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    ]
    try:
        found = ray.get(asked, timeout=_PATIENCE_S)
    except Exception:  # it has none, another one without this function, or is going down
        return False
    return set(found) == {code_digest()}
