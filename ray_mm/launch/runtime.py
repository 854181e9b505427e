"""A cluster's profile → the command that a job is there, and the environment that it runs in."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from ray_mm.config.cluster import ClusterProfile, Reference
from ray_mm.launch.attempts import MODULE
from ray_mm.references import SETUP_HOOK, VARIABLE
from ray_mm.travel import with_the_job
from ray_mm.version import __version__

JOB_FILE = "job.json"
_MARGIN_S = 10.0
"""That Ray waits longer for a job that it has told to stop than the job waits for its run."""


def entrypoint(cluster: ClusterProfile, job_file: str = JOB_FILE) -> str:
    """The command, for a shell, that runs a job on the cluster's head: started again and ended as the profile says.

    Args:
        cluster: its profile.
        job_file: where the job lies, relative to the folder in which the command runs, or in full.
    """
    limit = [] if cluster.time_limit is None else ["--time-limit", f"{cluster.time_limit:g}"]
    starts = ["--retries", str(cluster.retries), *limit, "--grace", f"{cluster.stop_grace:g}"]
    return module_command(cluster, MODULE, [job_file, *starts, "--submitted-by", __version__])


def module_command(cluster: ClusterProfile, module: str, arguments: Sequence[str] = ()) -> str:
    """The command, for a shell, that runs a module there; the shell gives way to it, so that signals reach it."""
    return f"exec {shlex.join([cluster.runtime.python, '-m', module, *arguments])}"


def runtime_env(cluster: ClusterProfile) -> dict[str, Any]:
    """Ray's runtime environment of a job, but for the folder in which it runs. Of a secret it holds only where it is.

    Raises:
        UsageError: what the profile lets travel does not.
    """
    runtime = cluster.runtime
    references = {
        name: value.model_dump(exclude_none=True) for name, value in runtime.env.items() if isinstance(value, Reference)
    }
    variables = {name: value for name, value in runtime.env.items() if isinstance(value, str)}
    # A log that is followed shows a line when it is written.
    variables |= {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(cluster.stop_grace + _MARGIN_S))}
    found: dict[str, Any] = {"env_vars": variables}
    if runtime.ships == "code":
        found |= with_the_job(runtime.modules)
    if runtime.pip:
        found["pip"] = list(runtime.pip)
    if references:
        variables[VARIABLE] = json.dumps(references, sort_keys=True)
        found["worker_process_setup_hook"] = SETUP_HOOK
    return found
