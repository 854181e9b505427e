"""``ray-mm submit job.yaml --cluster NAME``: job → submission on a Ray cluster, through the Ray Jobs API.

What travels: the job with every default filled in and every path in full, and this version of ray_mm unless the nodes have it.
The cluster brings Python with the libraries that ray_mm needs, and folders that all of its nodes see under the same paths.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails

from ray_mm.config.base import Resources, TrainResources, map_locations
from ray_mm.config.cluster import ClusterProfile, ClusterResources
from ray_mm.config.load import Job, load_job
from ray_mm.config.schedule import without_schedule
from ray_mm.errors import RayMMError, UsageError
from ray_mm.launch.dashboard import require_closed
from ray_mm.launch.jobs import GRACE_KEY, Jobs, short
from ray_mm.launch.runtime import JOB_FILE, entrypoint, runtime_env
from ray_mm.registered import PREFIX, is_registered, parse_reference
from ray_mm.storage import is_remote, local_path, write_json
from ray_mm.version import __version__


@dataclass(frozen=True)
class Submission:
    """A job on a cluster."""

    id: str
    is_new: bool
    """False where the same job was running there already."""


def submit(jobs: Jobs, job: Job, allow_unauthenticated: bool = False) -> Submission:
    """Submits a job, unless the very same job is still running there.

    Its id is derived from its name and content, so two submitters can't start it twice either; once it has ended,
    it may be submitted again, under the next number.

    Args:
        jobs: of the cluster. Retries and the time limit are those of its profile.
        job: with paths as its user wrote them.
        allow_unauthenticated: whether the cluster may be one elsewhere that asks nobody for a token.

    Raises:
        UsageError: the cluster asks for no token, or a path means nothing on it.
        RayMMError: the cluster did not take the job.
    """
    require_closed(jobs.dashboard, allow_unauthenticated)
    cluster = jobs.cluster
    resolved = resolve(job, cluster)
    content = resolved.model_dump(mode="json")
    base = id_of(content)
    earlier = _submissions(jobs, base)
    running = [number for number, details in earlier.items() if not details.status.is_terminal()]
    if running:
        return Submission(numbered(base, running[0]), is_new=False)
    submission = numbered(base, max(earlier, default=0) + 1)
    with tempfile.TemporaryDirectory(prefix="ray_mm_submit_") as folder:
        write_json(Path(folder) / JOB_FILE, content)
        try:
            jobs.client.submit_job(
                entrypoint=entrypoint(cluster),
                submission_id=submission,
                runtime_env={"working_dir": folder, **runtime_env(cluster)},
                metadata={
                    "kind": job.kind,
                    "name": job.name,
                    "output": resolved.output,
                    "ray_mm": __version__,
                    GRACE_KEY: f"{cluster.stop_grace:g}",
                },
            )
        except RuntimeError as error:
            if "already exists" in str(error):  # another submitter was faster
                return Submission(submission, is_new=False)
            raise RayMMError(f"{jobs.address}: the cluster did not take the job ({short(error)}).") from None
    return Submission(submission, is_new=True)


def resolve(job: Job, cluster: ClusterProfile) -> Job:
    """A job as it means the same on every node: paths in full, and the cluster's resources where it asks for none.

    Raises:
        UsageError: a path means nothing there.
    """
    placed = map_locations(job, _placing(cluster.storage))
    if is_remote(placed.output):
        raise UsageError(
            f"output: {placed.output}: a run's folder can't be in an object store; give the full path of a folder that every "
            "node of the cluster sees."
        )
    given = _with_defaults(placed, cluster.resources)
    return placed if given is None else load_job(given)


def _placing(storage: str | None) -> Callable[[str], str]:
    def place(path: str) -> str:
        if is_registered(path):
            root, mark, model = path.removeprefix(PREFIX).rpartition("#")
            return str(parse_reference(f"{PREFIX}{place(root)}{mark}{model}"))
        if is_remote(path):
            return path
        if storage is None or path.startswith("/"):
            return str(local_path(path))
        if path.startswith(("~", "file:")):
            raise UsageError(
                f"{path}: means another folder on the cluster; write it in full, or relative to its storage, {storage}."
            )
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise UsageError(f"{path}: leads out of the cluster's storage, {storage}; write it in full.")
        return "/".join([storage.rstrip("/"), *parts])

    return place


def _with_defaults(job: Job, defaults: ClusterResources) -> dict[str, object] | None:
    """The job's content with what the cluster gives those that do not say it; None if that changes nothing."""
    resources = job.resources
    if not isinstance(resources, (Resources, TrainResources)):
        return None
    wanted = defaults.model_dump(exclude_none=True)
    more = {key: value for key, value in wanted.items() if key not in resources.model_fields_set}
    if not more:
        return None
    content: dict[str, object] = job.model_dump(mode="json")
    return {**content, "resources": {**resources.model_dump(mode="json"), **more}}


def _submissions(jobs: Jobs, base: str) -> dict[int, JobDetails]:
    """Number → job, for all submissions of the same job."""
    found = {}
    for details in jobs.client.list_jobs():
        name, _, number = (details.submission_id or "").rpartition(".")
        if details.submission_id == base:
            found[1] = details
        elif name == base and number.isdigit():
            found[int(number)] = details
    return found


def id_of(content: Mapping[str, object]) -> str:
    """The id of a job's first submission, which follows from its name and content.

    Args:
        content: with every default filled in, as it lies in the run's folder, too. Its schedule does not count.
    """
    digest = hashlib.sha256(json.dumps(without_schedule(content), sort_keys=True).encode()).hexdigest()
    return f"{content.get('name')}-{digest[:10]}"


def numbered(base: str, number: int) -> str:
    """The id of the n-th submission of the same job."""
    return base if number == 1 else f"{base}.{number}"
