"""What every manifest needs of a job and its cluster."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ray_mm.config.base import Size
from ray_mm.config.cluster import ClusterProfile
from ray_mm.config.load import Job
from ray_mm.errors import UsageError
from ray_mm.launch.placed import placed, resources_of, with_defaults

READING_CPUS = 3
"""That a node has for reading data beside what its worker reserves, unless it is told otherwise."""
_BYTES_PER_CPU = 4 << 30
_HEADER = "Written by ray-mm render from {file}: change the job and render it again."


@dataclass(frozen=True)
class NodeShape:
    """What a node has.

    Attributes:
        cpus: of it.
        gpus: likewise.
        memory_bytes: likewise.
    """

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True)
class Layout:
    """How many nodes of which shape a job takes.

    Attributes:
        shape: of a node.
        fewest: nodes that it can do with.
        most: nodes that it takes when there are as many.
        worker_cpus: that the workers of one node reserve.
    """

    shape: NodeShape
    fewest: int
    most: int
    worker_cpus: int


@dataclass(frozen=True)
class Call:
    """What is rendered.

    Attributes:
        job: loaded.
        file: where it was read from.
        overrides: as they were given, ``KEY=VALUE``.
        profile: of the cluster; None where none was named.
        cluster: the name, file or address that was given for it.
        node_cpus: of a node; None: what a worker needs, and some to read data.
        node_gpus: of a node; None: what a worker needs.
        node_memory_bytes: of a node; None: 4 GiB for each CPU.
    """

    job: Job
    file: Path
    overrides: tuple[str, ...] = ()
    profile: ClusterProfile | None = None
    cluster: str | None = None
    node_cpus: int | None = None
    node_gpus: int | None = None
    node_memory_bytes: int | None = None

    @property
    def of_cluster(self) -> ClusterProfile:
        """The profile, or one of defaults."""
        return self.profile or ClusterProfile()

    @property
    def header(self) -> str:
        """What a rendered file says of itself, on one line."""
        return _HEADER.format(file=one_line(self.file.name))


def memory_of(text: str) -> int:
    """Bytes of ``--node-memory``.

    Raises:
        UsageError: it is no size.
    """
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError:
        raise UsageError(f"--node-memory {text}: expected a size such as 64GiB.") from None


def layout(call: Call) -> Layout:
    """How many nodes of which shape.

    Raises:
        UsageError: a worker does not fit on such a node.
    """
    asked = resources_of(with_defaults(call.job, call.of_cluster.resources))
    fewest, most = asked.range
    cpus, gpus = asked.cpus_per_worker or 1.0, asked.gpus_per_worker
    node_gpus = call.node_gpus if call.node_gpus is not None else math.ceil(gpus)
    side_by_side = max(1, math.floor(node_gpus / gpus + 1e-6)) if gpus else 1
    node_cpus = call.node_cpus if call.node_cpus is not None else math.ceil(cpus * side_by_side) + READING_CPUS
    per_node = math.floor((node_cpus - 1) / cpus + 1e-6) if call.node_cpus is not None else side_by_side
    per_node = min(per_node, math.floor(node_gpus / gpus + 1e-6)) if gpus else per_node
    if per_node < 1:
        raise UsageError(
            f"resources: a worker with {cpus:g} CPU(s) and {gpus:g} GPU(s), and a CPU to read data, does not fit on a node with "
            f"{node_cpus} CPU(s) and {node_gpus} GPU(s); give a larger one with --node-cpus and --node-gpus, or lower what a "
            "worker reserves."
        )
    memory = call.node_memory_bytes or node_cpus * _BYTES_PER_CPU
    return Layout(
        NodeShape(node_cpus, node_gpus, memory),
        math.ceil(fewest / per_node),
        math.ceil(most / per_node),
        math.ceil(per_node * cpus),
    )


def require_ray_mm_there(call: Call) -> ClusterProfile:
    """The profile, of a cluster whose nodes have ray_mm: nothing travels with a job that is rendered.

    Raises:
        UsageError: it says that something does.
    """
    profile = call.of_cluster
    if profile.runtime.ships != "image":
        raise UsageError(
            "runtime.ships: nothing travels with a rendered job, so its nodes need ray_mm, and every package that it takes, in "
            "their image or environment (cluster/README.md); set runtime: {ships: image} in the cluster's profile, and name it "
            "with --cluster."
        )
    return profile


def placed_job(call: Call) -> Job:
    """The job with every path in full, as the nodes see it, and the cluster's resources where it asks for none.

    Raises:
        UsageError: a path is relative, and the profile does not say where it is meant from; or the output lies in a store.
    """
    return placed(call.job, call.of_cluster, seen_from_here=False)


def local_command(call: Call) -> list[str]:
    """The command that runs the job from this machine: here, or on the cluster that was named."""
    settings = [argument for override in call.overrides for argument in ("--set", override)]
    how = ["run", str(call.file)] if call.cluster is None else ["submit", str(call.file), "--follow"]
    cluster = [] if call.cluster is None else ["--cluster", call.cluster]
    return [sys.executable, "-m", "ray_mm", *how, *cluster, *settings]


def dns_name(name: str, most: int = 40) -> str:
    """A name that Kubernetes takes, of a job's name; two names that would become one are told apart.

    Args:
        name: letters, digits, ``_`` and ``-``, and not empty.
        most: characters. KubeRay appends some of its own to a RayJob's.
    """
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9]", "-", name.lower())).strip("-") or "job"
    if plain[0].isdigit():
        plain = f"job-{plain}"
    if plain == name and len(plain) <= most:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{plain[: most - 7].rstrip('-')}-{digest}"


def one_line(text: str) -> str:
    """A text that can stand in a comment."""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", text)


def plain_line(what: str, text: str) -> str:
    """A text that stands on a line of its own in a file whose lines are read one by one.

    Raises:
        UsageError: it has line ends or other control characters.
    """
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
        raise UsageError(f"{what} {text!r} holds a control character, which can't be written safely; rename it.")
    return text


def commented(lines: Mapping[str, str] | list[str]) -> str:
    """Lines as comments."""
    texts = list(lines) if isinstance(lines, list) else [f"{key}: {value}" for key, value in lines.items()]
    return "".join(f"# {one_line(line)}\n" if line else "#\n" for line in texts)
