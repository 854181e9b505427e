"""Whether the machines of a cluster have this very ray_mm. Where one has not, Ray brings it there with the job.

That costs seconds of every start: the code is copied to each machine, and no process that Ray has ready can be used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ray_mm.errors import UsageError

PACKAGE = Path(__file__).parent
MOST_BYTES = 64 << 20
"""That may travel with a job; Ray itself takes 512 MiB, through the head's memory."""

_EXCLUDED = (
    "__pycache__",
    "*.pyc",
    ".git",
    ".venv",
    "venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "node_modules",
    ".env",
)
_PATIENCE_S = 20.0


def with_the_job(modules: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The runtime environment of a job that brings its ray_mm along.

    Args:
        modules: folders of more packages.

    Raises:
        UsageError: one of them is no package, or all together are too much to travel.
    """
    folders = [PACKAGE, *(Path(module).expanduser().absolute() for module in modules)]
    for folder in folders[1:]:
        if not folder.is_dir() or not folder.name.isidentifier():
            raise UsageError(
                f"runtime.modules: {folder}: expected the folder of a Python package, called as it is imported."
            )
    sizes = {path: path.stat().st_size for folder in folders for path in _travels(folder)}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        named = ", ".join(f"{path} ({sizes[path] / 2**20:,.0f} MiB)" for path in largest)
        raise UsageError(
            f"what would travel with the job takes {total / 2**20:,.0f} MiB, and at most {MOST_BYTES >> 20} MiB may; the largest "
            f"are {named}. Keep data out of packages, or put them into the nodes' image (runtime: {{ships: image}})."
        )
    return {"py_modules": [str(folder) for folder in folders], "excludes": list(_EXCLUDED)}


def _travels(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(
            fnmatch(part, name) for part in path.relative_to(folder).parts for name in _EXCLUDED
        ):
            yield path


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
