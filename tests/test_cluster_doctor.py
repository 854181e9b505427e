"""What the nodes of a cluster have told becomes findings that name the node and say what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ray_mm.cluster_doctor import findings, token_finding
from ray_mm.doctor import Finding, Level
from ray_mm.version import __version__

NODE: dict[str, Any] = {
    "id": "a",
    "host": "one",
    "ip": "10.0.0.1",
    "cpus": 8.0,
    "ray_gpus": 1.0,
    "gpus": 1,
    "versions": {"ray_mm": __version__, "python": "3.11.7", "ray": "2.60.0", "torch": "2.9.0", "pyarrow": "20.0.0"},
    "code": "0123",
    "references": {},
    "clock_s": 0.01,
    "clock_error_s": 0.002,
    "storage": {"problem": "", "write_mb_s": 200.0, "read_mb_s": 400.0},
}


def answer(*changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    nodes = []
    for number, change in enumerate(changes):
        node = copy.deepcopy(NODE) | {"id": str(number), "host": f"host{number}", "ip": f"10.0.0.{number}"}
        for key, value in change.items():
            node[key] = {**node[key], **value} if isinstance(node.get(key), dict) else value
        nodes.append(node)
    links = [{"from": "host0", "to": "host1", "mb_s": 900.0}] if len(nodes) > 1 else []
    return {"nodes": nodes, "links": links, "storage": "/mnt/shared", "storage_problem": "", **more}


def worst(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level is not Level.OK]


def test_a_cluster_without_fault_is_told_in_lines_of_ok() -> None:
    found = list(findings(answer({}, {}), ships_image=True))
    assert worst(found) == []
    assert [finding.name for finding in found] == ["nodes", "versions", "clocks", "storage", "network"]
    assert found[0].found == "2, with 16 CPUs and 2 GPUs"
    assert found[3].found == "/mnt/shared: 2 of 2 nodes read and write it, at 400 and 200 MB/s at least"


@pytest.mark.parametrize(
    ("given", "level", "name", "told"),
    [
        (answer({}, {"versions": {"torch": "2.8.0"}}), Level.FAIL, "versions", "torch 2.9.0 (1), 2.8.0 (1)"),
        (
            answer({}, {"versions": {"ray_mm": __version__, "python": "3.10.1"}}),
            Level.FAIL,
            "versions",
            "python 3.11.7 (1), 3.10.1 (1)",
        ),
        (
            answer({"versions": {"ray_mm": "0.0.1"}}, {"versions": {"ray_mm": "0.0.1"}}),
            Level.FAIL,
            "ray_mm",
            f"is 0.0.1 on the nodes, and {__version__} here",
        ),
        (answer({}, {"code": "4567"}), Level.FAIL, "ray_mm", "not the same on all nodes"),
        (answer({}, {"clock_s": -5.0}), Level.WARN, "clocks", "host1 (10.0.0.1) is 5.0 s apart from the head"),
        (answer({}, {"clock_s": 3600.0}), Level.FAIL, "clocks", "host1 (10.0.0.1) is 3,600.0 s apart"),
        (answer({}, {"ray_gpus": 0.0}), Level.WARN, "GPUs", "host1 (10.0.0.1) has 1, and Ray offers 0"),
        (
            answer({}, {"references": {"KEY": "runtime.env.KEY: the node host1 has no variable X; give it one there"}}),
            Level.FAIL,
            "secret",
            "runtime.env.KEY: the node host1 has no variable X",
        ),
        (
            answer({}, {"storage": {"problem": "does not see what the head wrote there"}}),
            Level.FAIL,
            "storage",
            "/mnt/shared: host1 (10.0.0.1): does not see what the head wrote there",
        ),
        (answer({"storage": {"write_mb_s": 3.0}}), Level.WARN, "storage", "at 400 and 3 MB/s at least"),
        (answer({}, storage_problem="the head can't write there"), Level.FAIL, "storage", "the head can't write there"),
        (answer({}, storage=None), Level.WARN, "storage", "not known"),
        (answer({}, {"problem": "GetTimeoutError: x"}), Level.FAIL, "node", "host1 (10.0.0.1) did not answer"),
        (
            answer({}, {}, links=[{"from": "host0", "to": "host1", "mb_s": 11.0}]),
            Level.WARN,
            "network",
            "from 11 MB/s (host0 to host1)",
        ),
        (
            answer({}, {}, links=[{"from": "host0", "to": "host1", "problem": "GetTimeoutError: x"}]),
            Level.FAIL,
            "network",
            "host0 to host1: GetTimeoutError: x",
        ),
    ],
)
def test_a_fault_is_told_with_its_node_and_what_to_do(
    given: dict[str, Any], level: Level, name: str, told: str
) -> None:
    (found,) = worst(list(findings(given, ships_image=True)))
    assert (found.level, found.name) == (level, name) and told in found.found
    assert found.advice


def test_no_node_that_answers_is_no_cluster_that_works() -> None:
    found = list(findings(answer({"problem": "dead"}), ships_image=False))
    assert {finding.name for finding in found if finding.level is Level.FAIL} == {"node", "clocks"}


@pytest.mark.parametrize(
    ("url", "is_open", "is_here", "level"),
    [
        ("http://127.0.0.1:8265", True, True, Level.WARN),
        ("http://10.0.0.1:8265", True, False, Level.FAIL),
        ("http://10.0.0.1:8265", False, False, Level.WARN),
        ("https://ray.example.org", False, False, Level.OK),
        ("http://127.0.0.1:8265", False, True, Level.OK),
    ],
)
def test_a_token_that_is_not_asked_for_or_sent_in_the_clear_is_told(
    url: str, is_open: bool, is_here: bool, level: Level
) -> None:
    found = token_finding(url, is_open, is_here)
    assert found.level is level and bool(found.advice) == (level is not Level.OK)
