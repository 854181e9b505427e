"""A job and a cluster's profile → manifests for KubeRay, as Python values; ``render.py`` writes them as YAML.

RayJob       a cluster for this job alone, which goes when it has ended
RayCluster   one that stays, for ``ray-mm submit``
RayCronJob   a RayJob at the times of the schedule; alpha, behind KubeRay's feature gate of that name
CronJob      Kubernetes' own, which submits to a RayCluster: at its times, never two at once
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from pathlib import PurePosixPath
from typing import Any

from ray_mm.config.cluster import ClusterProfile, Reference
from ray_mm.config.schedule import cron_line
from ray_mm.errors import GateRefused, StopRequested, UsageError
from ray_mm.launch.manifests.parts import Call, Layout, dns_name, layout, placed_job, require_ray_mm_there
from ray_mm.launch.runtime import entrypoint
from ray_mm.launch.schedule import schedule_of
from ray_mm.placement import GROWS_WITHIN_S

Manifest = dict[str, Any]

JOB_FILE = "/etc/ray-mm/job.json"
_CLUSTER_FILE = "/etc/ray-mm/cluster.yaml"
CLUSTER = "ray-mm"
"""The name of the RayCluster that stays, and of the secret with its token, which KubeRay makes."""
SECRETS = "ray-mm-secrets"
"""The secret that values by reference are read from."""
STORAGE = "ray-mm-storage"
"""The claim of the volume that all nodes see."""
ROLE = "ray-mm/role"
_HEAD_CPUS, _HEAD_MEMORY = 2, 8 << 30
_GROWS_WITHIN_S = 1800
_DEADLINE_S = 3600
_LATE_S = 300
_KEEP_S = 24 * 3600
_FOLLOWERS = 3
_ENDS = (1, UsageError.exit_status, GateRefused.exit_status, StopRequested.exit_status)
"""Exit statuses of ``ray-mm submit --follow`` that another pod would not change."""


def ray_job(call: Call) -> list[Manifest]:
    """A RayJob, and the ConfigMap that holds the job."""
    name = dns_name(call.job.name)
    return [_config_map(name, call), _of("ray.io/v1", "RayJob", name, call, spec=_job_spec(name, call))]


def ray_cron_job(call: Call) -> list[Manifest]:
    """A RayCronJob, and the ConfigMap that holds the job."""
    schedule, name = schedule_of(call.job), dns_name(call.job.name)
    spec = {"schedule": cron_line(schedule), "timeZone": schedule.timezone, "jobTemplate": _job_spec(name, call)}
    return [_config_map(name, call), _of("ray.io/v1", "RayCronJob", name, call, spec=spec)]


def ray_cluster(call: Call) -> list[Manifest]:
    """A RayCluster with nodes for such jobs as this one, which grows and shrinks."""
    spec = _cluster_spec(call, layout(call), stays=True)
    return [_of("ray.io/v1", "RayCluster", CLUSTER, call, spec=spec)]


def cron_job(call: Call) -> list[Manifest]:
    """A CronJob that submits the job to the RayCluster ``ray-mm`` and follows it, and the ConfigMap that holds the job."""
    schedule, name, profile = schedule_of(call.job), dns_name(call.job.name), _of_image(call)
    command = [profile.runtime.python, "-m", "ray_mm", "submit", JOB_FILE, "--follow", "--cluster", _CLUSTER_FILE]
    container = {
        "name": "submit",
        "image": profile.image,
        "command": command,
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            # KubeRay names it as the cluster.
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": CLUSTER, "key": "auth_token"}}},
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "volumeMounts": [{"name": "job", "mountPath": str(PurePosixPath(JOB_FILE).parent), "readOnly": True}],
        "securityContext": _CONTAINER,
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [_job_volume(name)],
        "securityContext": _POD,
        "automountServiceAccountToken": False,
    }
    job = {
        # A pod that is taken away is followed by one that finds the run at work. How the run ended is the end.
        "backoffLimit": _FOLLOWERS,
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(_ENDS)}}]
        },
        "ttlSecondsAfterFinished": _KEEP_S,
        "template": {"spec": pod},
    }
    spec = {
        "schedule": cron_line(schedule),
        "timeZone": schedule.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": _DEADLINE_S if schedule.catch_up else _LATE_S,
        "successfulJobsHistoryLimit": 7,
        "failedJobsHistoryLimit": 7,
        "jobTemplate": {"spec": job},
    }
    files = {PurePosixPath(_CLUSTER_FILE).name: _own_profile(profile)}
    return [_config_map(name, call, files), _of("batch/v1", "CronJob", name, call, spec=spec)]


def _own_profile(profile: ClusterProfile) -> str:
    """The profile as a pod beside the RayCluster needs it. Secrets are variables of the cluster's pods already."""
    env = {name: value for name, value in profile.runtime.env.items() if isinstance(value, str)}
    found = profile.model_copy(
        update={
            "address": f"http://{CLUSTER}-head-svc:8265",
            "token": None,
            "runtime": profile.runtime.model_copy(update={"env": env}),
        }
    )
    content = found.model_dump(mode="json", exclude_defaults=True, exclude={"image", "resources"})
    return json.dumps({"kind": found.kind, **content}, indent=2) + "\n"


_POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _of(version: str, kind: str, name: str, call: Call, **more: Any) -> Manifest:
    labels = {"app.kubernetes.io/managed-by": "ray-mm", "app.kubernetes.io/name": dns_name(call.job.name)}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **more}


def _config_map(name: str, call: Call, files: dict[str, str] | None = None) -> Manifest:
    content = json.dumps(placed_job(call).model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    return _of("v1", "ConfigMap", name, call, data={PurePosixPath(JOB_FILE).name: content, **(files or {})})


def _job_volume(name: str) -> Manifest:
    return {"name": "job", "configMap": {"name": name}}


def _of_image(call: Call) -> ClusterProfile:
    if call.of_cluster.image is None:
        raise UsageError(
            "image: the cluster's profile names none, and pods are made from one; add image: to it (cluster/README.md says how "
            "to build one), and name the profile with --cluster."
        )
    return require_ray_mm_there(call)


def _job_spec(name: str, call: Call) -> Manifest:
    profile = _of_image(call)
    limit = {}
    if profile.time_limit is not None:
        # It saves and ends by itself before; this is for one that does not.
        most = profile.time_limit + profile.stop_grace + _GROWS_WITHIN_S
        limit = {"activeDeadlineSeconds": math.ceil(most)}
    return {
        # It starts the run again where it failed, and not where it is wrong, which KubeRay's backoffLimit does not tell apart.
        "entrypoint": entrypoint(profile, JOB_FILE),
        **limit,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "submissionMode": "K8sJobMode",
        "rayClusterSpec": _cluster_spec(call, layout(call), stays=False, job=name),
    }


def _cluster_spec(call: Call, nodes: Layout, stays: bool, job: str | None = None) -> Manifest:
    """The nodes: a head that only directs, workers that train, and where those have GPUs others that read data."""
    _of_image(call)
    shape = nodes.shape
    with_gpus = shape.gpus > 0
    grows = stays or nodes.fewest != nodes.most or with_gpus
    # Where there are nodes for reading, a node with GPUs offers no more CPUs than its workers take: no reader finds room on it.
    cpus = nodes.worker_cpus if with_gpus else shape.cpus
    train = _worker_group(
        call,
        "train",
        0 if stays else nodes.fewest,
        nodes.most,
        {"num-cpus": str(cpus)},
        {"cpu": shape.cpus, "memory": shape.memory_bytes, "gpu": shape.gpus},
        job,
    )
    data = _worker_group(
        call,
        "data",
        1,
        max(2, nodes.most),
        {},
        {"cpu": max(4, shape.cpus), "memory": max(16 << 30, shape.memory_bytes), "gpu": 0},
        job,
    )
    return {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": grows,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300, "upscalingMode": "Default"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            # A job that asks for more than there is waits for it.
            "labels": {ROLE: "head", **({GROWS_WITHIN_S: str(_GROWS_WITHIN_S)} if grows else {})},
            "template": _template(call, "ray-head", {"cpu": _HEAD_CPUS, "memory": _HEAD_MEMORY, "gpu": 0}, job),
        },
        "workerGroupSpecs": [train, data] if with_gpus else [train],
    }


def _worker_group(
    call: Call, role: str, fewest: int, most: int, params: dict[str, str], needs: dict[str, int], job: str | None
) -> Manifest:
    return {
        "groupName": role,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "labels": {ROLE: role},
        "rayStartParams": params,
        "template": _template(call, "ray-worker", needs, job, grace=True),
    }


def _template(call: Call, container: str, needs: dict[str, int], job: str | None, grace: bool = False) -> Manifest:
    profile = call.of_cluster
    amounts: dict[str, str] = {"cpu": str(needs["cpu"]), "memory": f"{needs['memory'] >> 20}Mi"}
    if needs["gpu"]:
        amounts["nvidia.com/gpu"] = str(needs["gpu"])
    mounts: list[Manifest] = []
    volumes: list[Manifest] = []
    if job is not None:
        mounts.append({"name": "job", "mountPath": str(PurePosixPath(JOB_FILE).parent), "readOnly": True})
        volumes.append(_job_volume(job))
    if profile.storage is not None and "://" not in profile.storage:
        mounts.append({"name": "storage", "mountPath": profile.storage})
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": STORAGE}})
    references = [value for value in profile.runtime.env.values() if isinstance(value, Reference)]
    if files := sorted({value.file for value in references if value.file is not None}):
        # A job that is submitted looks for them where the profile says that the nodes have them.
        mounts += [
            {"name": "secrets", "mountPath": file, "subPath": PurePosixPath(file).name, "readOnly": True}
            for file in files
        ]
        volumes.append({"name": "secrets", "secret": {"secretName": SECRETS, "defaultMode": 0o440}})
    made: Manifest = {
        "name": container,
        "image": profile.image,
        "env": _environment(profile),
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": mounts,
        "securityContext": _CONTAINER,
    }
    pod: Manifest = {"securityContext": _POD, "automountServiceAccountToken": container == "ray-head"}
    if grace:
        seconds = math.ceil(profile.stop_grace)
        # A node that will be taken back says so: trainings save, and go on elsewhere, before it is gone.
        leave = [profile.runtime.python, "-m", "ray_mm.launch.leave", str(seconds)]
        made["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
        pod["terminationGracePeriodSeconds"] = seconds
    if needs["gpu"]:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"spec": {**pod, "containers": [made], **({"volumes": volumes} if volumes else {})}}


def _environment(profile: ClusterProfile) -> list[Manifest]:
    """Variables of all processes. One by reference comes from a key of a secret: the variable's name, or the file's."""
    found: list[Manifest] = [
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    for name, value in profile.runtime.env.items():
        if not isinstance(value, Reference):
            # In a value Kubernetes puts $(NAME) in the place of another variable.
            found.append({"name": name, "value": value.replace("$(", "$$(")})
            continue
        key = value.env if value.env is not None else PurePosixPath(value.file or "").name
        if value.file is not None and value.file.startswith("~"):
            raise UsageError(
                f"runtime.env.{name}: {value.file}: a pod's home is its image's; give the full path, such as /run/secrets/{key}."
            )
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key):
            raise UsageError(
                f"runtime.env.{name}: {key!r} can't be a key of a Kubernetes secret, which has letters, digits, -, _ and .; "
                "rename the file."
            )
        secret = {"valueFrom": {"secretKeyRef": {"name": SECRETS, "key": key}}}
        found.append({"name": name, **secret})
        # For jobs that are submitted, likewise.
        if value.env not in (None, *profile.runtime.env, *(entry["name"] for entry in found)):
            found.append({"name": value.env, **secret})
    return found
