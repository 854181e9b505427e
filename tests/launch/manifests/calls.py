"""Jobs and profiles that are rendered, some of them made to escape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ray_mm.config.cluster import ClusterProfile, Reference
from ray_mm.config.load import load_job
from ray_mm.launch.manifests.parts import Call
from ray_mm.launch.manifests.render import render
from tests.config.jobs import SMALLEST

HOSTILE = '/mnt/a b/it\'s "$(touch canary)" `touch canary` ${HOME} %n %% {0} {{x}} \\ ; rm -rf / & | < > * ? [a] #: - @ ! ~ é 🎈'
SCHEDULE = {"cron": "30 2 * * mon-fri", "timezone": "Europe/Berlin"}
PROFILE = ClusterProfile.model_validate(
    {
        "storage": "/mnt/shared",
        "image": "ray-mm:0.1-cpu",
        "runtime": {
            "ships": "image",
            "env": {
                "GREETING": HOSTILE,
                "AWS_SECRET_ACCESS_KEY": {"env": "AWS_SECRET_ACCESS_KEY"},
                "HF_TOKEN": {"file": "/run/it's secret/hf.token"},
            },
        },
        "retries": 2,
        "time_limit": "12h",
        "stop_grace": 90,
    }
)
_AT_HOME = {"env": {**PROFILE.runtime.env, "HF_TOKEN": Reference(file="~/it's secret/hf.token")}}
AT_HOME = PROFILE.model_copy(update={"runtime": PROFILE.runtime.model_copy(update=_AT_HOME)})
PLAIN = ClusterProfile.model_validate({"storage": "/x", "runtime": {"ships": "image"}})
GPUS = {"resources": {"workers": {"min": 2, "max": 4}, "gpus_per_worker": 1, "cpus_per_worker": 4}}


def called(kind: str = "train", profile: ClusterProfile | None = PROFILE, **more: Any) -> Call:
    job = load_job({**SMALLEST[kind], "schedule": SCHEDULE, **more})
    return Call(job, Path("/home/me/jobs/job.yaml"), profile=profile)


def manifests(call: Call, form: str) -> list[dict[str, Any]]:
    (text,) = render("kuberay", call, form).values()
    found = list(yaml.safe_load_all(text))
    assert all(found)
    return found
