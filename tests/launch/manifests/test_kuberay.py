"""Manifests for KubeRay, held against Kubernetes' schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from ray_mm.config.cluster import ClusterProfile, load_cluster
from ray_mm.config.load import load_job
from ray_mm.config.tune import TuneJob
from ray_mm.launch.manifests.parts import layout, placed_job
from ray_mm.launch.manifests.render import FORMS, render
from ray_mm.launch.runtime import entrypoint
from tests.launch.manifests.calls import GPUS, HOSTILE, PROFILE, SCHEDULE, called, manifests
from tests.launch.schemas import require_valid


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [{}, GPUS, {"output": HOSTILE}], ids=["cpus", "gpus", "hostile"])
def test_kuberay_takes_every_form(form: str, more: dict[str, Any]) -> None:
    made = manifests(called(**more), form)
    assert made
    for manifest in made:
        require_valid(manifest)


def test_the_schemas_refuse_what_they_do_not_know() -> None:
    job = manifests(called(), "rayjob")[1]
    for spoil in ("entryPoint", "shutdownAfterJobFinish"):
        with pytest.raises(ValidationError):
            require_valid({**job, "spec": {**job["spec"], spoil: True}})
    deep = json.loads(json.dumps(job))
    deep["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(ValidationError, match="imagePullPolice"):
        require_valid(deep)
    with pytest.raises(ValidationError):
        require_valid({**job, "spec": {**job["spec"], "backoffLimit": "two"}})
    cron = manifests(called(), "cronjob")[1]
    with pytest.raises(ValidationError):
        require_valid({**cron, "spec": {**cron["spec"], "timezone": "UTC"}})


def test_a_ray_job_has_a_cluster_of_its_own_with_a_token_and_readers_beside_the_gpus() -> None:
    config, job = manifests(called(**GPUS), "rayjob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["entrypoint"] == entrypoint(PROFILE, "/etc/ray-mm/job.json"), "it is run as one that is submitted"
    assert "--retries 2 --time-limit 43200 --grace 90" in spec["entrypoint"] and "backoffLimit" not in spec
    assert spec["activeDeadlineSeconds"] > 43200 + 90 and spec["shutdownAfterJobFinishes"]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == "2.60.0"
    assert cluster["headGroupSpec"]["labels"] == {"ray-mm/role": "head", "ray-mm/grows-within-s": "1800"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"train", "data"}
    train, data = groups["train"], groups["data"]
    assert (train["minReplicas"], train["maxReplicas"], train["rayStartParams"]) == (2, 4, {"num-cpus": "4"})
    assert train["labels"] == {"ray-mm/role": "train"} and data["labels"] == {"ray-mm/role": "data"}
    assert data["minReplicas"] >= 1 and data["rayStartParams"] == {}
    pod = train["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] == 90
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["python", "-m", "ray_mm.launch.leave", "90"]
    assert all(
        found["template"]["spec"]["securityContext"]["runAsNonRoot"]
        and found["template"]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        for found in (cluster["headGroupSpec"], *groups.values())
    )
    # The job that travels is the one that was rendered.
    travels = load_job(json.loads(config["data"]["job.json"]))
    assert travels == placed_job(called(**GPUS)) and travels.output == "/mnt/shared/runs/fit"


def test_values_reach_kubernetes_as_they_are_and_secrets_not_at_all() -> None:
    _, job = manifests(called(), "rayjob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry for entry in head["env"]}
    assert env["GREETING"]["value"].replace("$$(", "$(") == HOSTILE and "$$(touch" in env["GREETING"]["value"]
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "ray-mm-secrets",
        "key": "AWS_SECRET_ACCESS_KEY",
    }
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "hf.token"
    mount = {"name": "secrets", "mountPath": "/run/it's secret/hf.token", "subPath": "hf.token", "readOnly": True}
    assert mount in head["volumeMounts"]
    # Whoever submits a job to these nodes finds the value where the profile says that they have it.
    there = {"storage": "/x", "image": "x:1", "runtime": {"ships": "image", "env": {"MINE": {"env": "THEIRS"}}}}
    (cluster,) = manifests(called(profile=ClusterProfile.model_validate(there)), "raycluster")
    env = {
        entry["name"]: entry for entry in cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert (
        env["MINE"]["valueFrom"]
        == env["THEIRS"]["valueFrom"]
        == {"secretKeyRef": {"name": "ray-mm-secrets", "key": "THEIRS"}}
    )


def test_a_cron_job_submits_with_the_profile(tmp_path: Path) -> None:
    config, cron_job = manifests(called(), "cronjob")
    (tmp_path / "cluster.yaml").write_text(config["data"]["cluster.yaml"])
    profile = load_cluster(tmp_path / "cluster.yaml")
    assert (profile.address, profile.token) == ("http://ray-mm-head-svc:8265", None)
    same = ("retries", "time_limit", "stop_grace", "storage")
    assert all(getattr(profile, key) == getattr(PROFILE, key) for key in same)
    assert (profile.runtime.ships, set(profile.runtime.env)) == ("image", {"GREETING"}), "secrets are the pods'"
    job = cron_job["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--cluster", "/etc/ray-mm/cluster.yaml"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2, 3, 143]


def test_the_schedule_is_the_jobs() -> None:
    cron_job, ray_cron_job = manifests(called(), "cronjob")[1]["spec"], manifests(called(), "raycronjob")[1]["spec"]
    for spec in (cron_job, ray_cron_job):
        assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * 1,2,3,4,5", "Europe/Berlin")
    assert (cron_job["concurrencyPolicy"], cron_job["startingDeadlineSeconds"]) == ("Forbid", 3600)
    never = called(schedule={**SCHEDULE, "catch_up": False})
    assert manifests(never, "cronjob")[1]["spec"]["startingDeadlineSeconds"] == 300
    assert "Persistent=false" in render("systemd", never)["ray-mm-fit.timer"]


def test_a_job_gets_what_the_cluster_gives_those_that_do_not_say_it() -> None:
    profile = ClusterProfile.model_validate(
        PROFILE.model_dump() | {"resources": {"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 2}}
    )
    config, job = manifests(called(profile=profile, resources={"cpus_per_worker": 3}), "rayjob")
    assert json.loads(config["data"]["job.json"])["resources"] == {
        "cpus_per_worker": 3,
        "gpus_per_worker": 1,
        "workers": 4,
    }
    (train, _) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (train["minReplicas"], train["rayStartParams"]) == (4, {"num-cpus": "3"})
    # Of a search each trial gets it, and the search itself is as it was.
    search = placed_job(called("tune", profile=profile))
    assert isinstance(search, TuneJob) and search.train.resources.workers == 4
    assert search.resources == called("tune").job.resources
    nodes = layout(called("tune", profile=profile))
    assert (nodes.fewest, nodes.shape.gpus) == (4, 1)
