"""``ray-mm doctor --cluster NAME``: a cluster → findings about its nodes, each with what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray_mm.doctor import Finding, Level
from ray_mm.version import __version__

if TYPE_CHECKING:
    from ray_mm.config.cluster import ClusterProfile

_SLOW_CLOCK_S = 1.0
_WRONG_CLOCK_S = 60.0
_SLOW_STORAGE_MB_S = 50.0
_SLOW_NETWORK_MB_S = 100.0
_DECIDING = ("python", "ray", "torch", "pyarrow")
"""Versions that must be the same on all nodes: what one writes another reads."""


def examine_cluster(cluster: ClusterProfile, allow_unauthenticated: bool = False) -> Iterator[Finding]:
    """Looks at a cluster, from here and from each of its nodes.

    Args:
        cluster: its profile.
        allow_unauthenticated: whether a job may be sent to one elsewhere that asks nobody for a token.

    Raises:
        UsageError: nothing answers, it asks for another token, or for none.
        RayMMError: its nodes could not be asked.
    """
    from ray_mm.launch import examining
    from ray_mm.launch.dashboard import is_loopback
    from ray_mm.launch.errand import run_errand
    from ray_mm.launch.jobs import connect

    jobs = connect(cluster)
    yield Finding(Level.OK, "dashboard", f"answers at {jobs.address}, in the version of Ray and Python that is here")
    yield token_finding(jobs.address, jobs.dashboard.is_open, is_loopback(jobs.address))
    arguments = [] if cluster.storage is None else ["--storage", cluster.storage]
    answer = json.loads(run_errand(jobs, examining.MODULE, arguments, allow_unauthenticated, timeout_s=300.0))
    yield from findings(answer, cluster.runtime.ships == "image")


def token_finding(url: str, is_open: bool, is_here: bool) -> Finding:
    """Whether a cluster is closed to those who have no business there."""
    if is_open:
        advice = "start it with RAY_AUTH_MODE=token and a token of ray-mm cluster token"
        return Finding(
            Level.WARN if is_here else Level.FAIL, "token", "asked of nobody: everybody can run code", advice
        )
    if urlsplit(url).scheme == "http" and not is_here:
        advice = "put a proxy with TLS before it, or reach it through a VPN or an SSH tunnel"
        return Finding(Level.WARN, "token", "asked for, and sent in the clear over http", advice)
    return Finding(Level.OK, "token", "asked for")


def findings(answer: Mapping[str, Any], ships_image: bool) -> Iterator[Finding]:
    """What nodes have told → findings.

    Args:
        answer: of ``ray_mm.launch.examining``.
        ships_image: whether the nodes should have ray_mm themselves.
    """
    nodes: Sequence[Mapping[str, Any]] = answer["nodes"]
    well = [node for node in nodes if "problem" not in node]
    cpus, gpus = sum(node["cpus"] for node in nodes), sum(node["ray_gpus"] for node in nodes)
    yield Finding(Level.OK, "nodes", f"{len(nodes)}, with {cpus:g} CPUs and {gpus:g} GPUs")
    for node in nodes:
        if "problem" in node:
            yield Finding(
                Level.FAIL, "node", f"{_name(node)} did not answer: {node['problem']}", "look at its raylet's log"
            )
    yield _versions(well)
    if ships_image and len({node["code"] for node in well}) > 1:
        yield Finding(Level.FAIL, "ray_mm", "is not the same on all nodes", "give all of them the same image")
    elif ships_image and well and (theirs := well[0]["versions"].get("ray_mm", "none")) != __version__:
        advice = (
            "jobs from here will be refused: install the same on both sides, or let it travel (runtime: {ships: code})"
        )
        yield Finding(Level.FAIL, "ray_mm", f"is {theirs} on the nodes, and {__version__} here", advice)
    yield _clocks(well)
    for node in well:
        if node["gpus"] != node["ray_gpus"]:
            found = f"{_name(node)} has {node['gpus']}, and Ray offers {node['ray_gpus']:g}"
            yield Finding(Level.WARN, "GPUs", found, "see its driver, and --num-gpus of ray start")
        for problem in node["references"].values():
            yield Finding(
                Level.FAIL, "secret", problem.split("; ")[0], "give it one there, or change the cluster's profile"
            )
    yield from _storage(answer, well)
    for link in answer["links"]:
        if "problem" in link:
            found = f"{link['from']} to {link['to']}: {link['problem']}"
            yield Finding(Level.FAIL, "network", found, "see that nodes reach each other on all ports that Ray uses")
    timed = [link for link in answer["links"] if "problem" not in link]
    if timed:
        slowest = min(timed, key=lambda link: link["mb_s"])
        found = f"from {slowest['mb_s']:,.0f} MB/s ({slowest['from']} to {slowest['to']})"
        slow = slowest["mb_s"] < _SLOW_NETWORK_MB_S
        advice = "training on several nodes will wait for gradients; see the network, or train on one" if slow else ""
        yield Finding(Level.WARN if slow else Level.OK, "network", found, advice)


def _versions(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    apart = []
    for package in _DECIDING:
        found = Counter(node["versions"].get(package, "none") for node in nodes)
        if len(found) > 1:
            apart.append(f"{package} {', '.join(f'{version} ({count})' for version, count in found.most_common())}")
    if apart:
        return Finding(Level.FAIL, "versions", f"differ between nodes: {'; '.join(apart)}", "give all the same image")
    same = nodes[0]["versions"] if nodes else {}
    return Finding(Level.OK, "versions", ", ".join(f"{name} {same[name]}" for name in _DECIDING if name in same))


def _clocks(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    worst = max(nodes, key=lambda node: abs(node["clock_s"]), default=None)
    if worst is None:
        return Finding(Level.FAIL, "clocks", "no node answered")
    offset, error = abs(worst["clock_s"]), worst["clock_error_s"]
    found = f"within {offset + error:.3f} s of the head's"
    if offset <= _SLOW_CLOCK_S + error:
        return Finding(Level.OK, "clocks", found)
    level = Level.FAIL if offset > _WRONG_CLOCK_S else Level.WARN
    return Finding(level, "clocks", f"{_name(worst)} is {offset:,.1f} s apart from the head", "let NTP set it")


def _storage(answer: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    storage = answer["storage"]
    if storage is None:
        advice = "name it as storage: in the cluster's profile, so that it can be looked at"
        yield Finding(Level.WARN, "storage", "not known", advice)
        return
    if answer["storage_problem"]:
        yield Finding(
            Level.FAIL, "storage", f"{storage}: {answer['storage_problem']}", "see its rights, and that it is there"
        )
        return
    good = [node for node in nodes if not node["storage"]["problem"]]
    for node in nodes:
        if node["storage"]["problem"]:
            found = f"{storage}: {_name(node)}: {node['storage']['problem']}"
            yield Finding(
                Level.FAIL, "storage", found, "mount it there under the same path, or give it the same rights"
            )
    if good:
        write = min(node["storage"]["write_mb_s"] for node in good)
        read = min(node["storage"]["read_mb_s"] for node in good)
        found = f"{storage}: {len(good)} of {len(nodes)} nodes read and write it, at {read:,.0f} and {write:,.0f} MB/s at least"
        slow = write < _SLOW_STORAGE_MB_S
        yield Finding(
            Level.WARN if slow else Level.OK, "storage", found, "checkpoints will take their time" if slow else ""
        )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['host']} ({node['ip']})"
