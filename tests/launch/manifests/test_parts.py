"""What every manifest needs: names, paths, nodes, commands."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from ray_mm.config.load import load_job
from ray_mm.errors import UsageError
from ray_mm.launch.manifests.parts import Call, dns_name, layout, local_command, placed_job
from tests.config.jobs import SMALLEST, names
from tests.launch.manifests.calls import called


@given(name=names)
def test_names_are_those_that_kubernetes_takes_and_tell_jobs_apart(name: str) -> None:
    found = dns_name(name)
    assert len(found) <= 40 and found[0].isalpha() and not found.endswith("-") and found == found.lower()
    assert dns_name(f"{name}_") != dns_name(f"{name}-") != found
    assert dns_name("a" * 64) != dns_name("a" * 63)


def test_paths_do_not_lead_out_of_the_storage() -> None:
    for path in ("../other", "a/../../etc", "~/x"):
        with pytest.raises(UsageError, match=r"leads out of the cluster's storage|means another folder on the cluster"):
            placed_job(called(output=path))
    with pytest.raises(UsageError, match="can't be in an object store"):
        placed_job(called(output="s3://bucket/run"))


@pytest.mark.parametrize(
    ("resources", "node", "expected"),
    [
        ({"workers": 4}, {}, (4, 4, 4, 0)),
        ({"workers": 4}, {"node_cpus": 3}, (2, 2, 3, 0)),
        ({"workers": 8, "gpus_per_worker": 1, "cpus_per_worker": 2}, {"node_gpus": 4}, (2, 2, 11, 4)),
        ({"workers": {"min": 1, "max": 5}, "gpus_per_worker": 0.5}, {"node_gpus": 1, "node_cpus": 8}, (1, 3, 8, 1)),
    ],
)
def test_nodes_are_as_many_as_the_workers_need(
    resources: dict[str, Any], node: dict[str, int], expected: tuple[int, int, int, int]
) -> None:
    job = load_job({**SMALLEST["train"], "resources": resources})
    found = layout(Call(job, Path("job.yaml"), **node))
    assert (found.fewest, found.most, found.shape.cpus, found.shape.gpus) == expected


def test_the_command_runs_the_job_here_or_on_the_cluster_that_was_named() -> None:
    call = Call(load_job(SMALLEST["train"]), Path("/jobs/a b.yaml"), overrides=("train.epochs=3",))
    python = [sys.executable, "-m", "ray_mm"]
    assert local_command(call) == [*python, "run", "/jobs/a b.yaml", "--set", "train.epochs=3"]
    there = replace(call, cluster="lab")
    assert local_command(there) == [
        *python,
        *("submit", "/jobs/a b.yaml", "--follow", "--cluster", "lab", "--set", "train.epochs=3"),
    ]


def test_a_worker_that_does_not_fit_on_a_node_is_refused() -> None:
    job = load_job({**SMALLEST["train"], "resources": {"cpus_per_worker": 8}})
    with pytest.raises(UsageError, match="does not fit on a node with 8 CPU"):
        layout(Call(job, Path("job.yaml"), node_cpus=8))
