"""``ray-mm render``: every job for every target, or a reason why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_mm.config.cluster import ClusterProfile
from ray_mm.config.load import JOB_KINDS, load_job
from ray_mm.errors import UsageError
from ray_mm.launch.manifests.parts import Call
from ray_mm.launch.manifests.render import render, write_files
from tests.config.jobs import SMALLEST
from tests.launch.cluster import REPOSITORY
from tests.launch.manifests.calls import PROFILE, SCHEDULE, called
from tests.launch.schemas import require_valid


@pytest.mark.parametrize("kind", JOB_KINDS)
@pytest.mark.parametrize("target", ["kuberay", "slurm", "systemd", "cron"])
def test_every_kind_of_job_is_rendered_for_every_target(kind: str, target: str) -> None:
    files = render(target, called(kind))
    assert files and all("ray-mm render" in content[:400] for content in files.values())


@pytest.mark.parametrize("target", ["systemd", "cron"])
def test_a_path_with_a_line_end_is_refused(target: str) -> None:
    job = load_job({**SMALLEST["train"], "schedule": SCHEDULE})
    for evil in ("/x\nExecStart=/bin/rm", "/x\r\n* * * * * rm", "/x\u2028y", "/x\x1b[2J"):
        with pytest.raises(UsageError, match="control character"):
            render(target, Call(job, Path(evil)))


@pytest.mark.parametrize(
    ("target", "form", "change", "reason"),
    [
        ("kuberay", None, {"image": None}, "image: the cluster's profile names none"),
        ("kuberay", None, {"runtime": {"ships": "code"}}, "runtime.ships"),
        ("kuberay", "rayservice", {}, "--form: takes rayjob, raycluster, raycronjob, cronjob; found 'rayservice'"),
        ("slurm", "rayjob", {}, "--form is a choice of kuberay"),
        ("slurm", None, {"runtime": {"ships": "code", "pip": ["timm"]}}, "nothing travels with a rendered job"),
        ("nomad", None, {}, "render: takes kuberay, slurm, systemd, cron; found 'nomad'"),
        (
            "kuberay",
            "rayjob",
            {"runtime": {"ships": "image", "env": {"X": {"file": "/x/it's"}}}},
            "can't be a key of a Kubernetes secret",
        ),
        (
            "kuberay",
            "raycluster",
            {"runtime": {"ships": "image", "env": {"X": {"file": "~/x"}}}},
            "give the full path, such as /run/secrets/x",
        ),
        ("kuberay", None, {"storage": None}, "is a relative path, and it is not known where all nodes see it"),
    ],
)
def test_what_can_not_be_rendered_is_refused_with_the_reason(
    target: str, form: str | None, change: dict[str, Any], reason: str
) -> None:
    profile = ClusterProfile.model_validate(PROFILE.model_dump() | change)
    with pytest.raises(UsageError) as caught:
        render(target, called(profile=profile), form)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("target", "form"), [("cron", None), ("kuberay", "cronjob"), ("kuberay", "raycronjob")])
def test_a_job_without_a_schedule_has_no_times_to_write(target: str, form: str | None) -> None:
    with pytest.raises(UsageError, match="has none; add one"):
        render(target, called(schedule=None), form)
    assert set(render("systemd", called(schedule=None))) == {"ray-mm-fit.service"}


def test_files_are_written_over_their_own_and_no_others(tmp_path: Path) -> None:
    files = render("systemd", called())
    assert write_files(files, tmp_path / "new") == write_files(files, tmp_path / "new")
    (tmp_path / "new" / "ray-mm-fit.timer").write_text("mine")
    with pytest.raises(UsageError, match="was not written by ray-mm render"):
        write_files(files, tmp_path / "new")
    assert (tmp_path / "new" / "ray-mm-fit.timer").read_text() == "mine"


def test_the_command_line_shows_them_or_writes_them(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps({**SMALLEST["train"], "schedule": SCHEDULE}))
    (tmp_path / "lab.yaml").write_text(
        "kind: cluster\nimage: ray-mm:cpu\nstorage: /mnt/shared\nruntime: {ships: image}\n"
    )
    arguments = ["render", "kuberay", "job.yaml", "--cluster", "lab.yaml", "--node-memory", "64GiB"]
    command = [sys.executable, "-m", "ray_mm", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    subprocess.run([*command, "--output", "k8s"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "k8s" / "fit.cronjob.yaml").read_text().strip() == shown.strip()
    for manifest in yaml.safe_load_all(shown):
        require_valid(manifest)
