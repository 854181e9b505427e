"""``ray-mm submit job.yaml --cluster NAME``: job → submission on a Ray cluster, through the Ray Jobs API.

What travels: the job with every default filled in and every path in full, and this version of ray_mm unless the nodes have it.
The cluster brings Python with the libraries that ray_mm needs, and folders that all of its nodes see under the same paths.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails

from ray_mm.config.load import Job
from ray_mm.config.schedule import without_schedule
from ray_mm.errors import RayMMError
from ray_mm.launch.dashboard import require_closed
from ray_mm.launch.jobs import GRACE_KEY, Jobs, short
from ray_mm.launch.placed import placed
from ray_mm.launch.runtime import JOB_FILE, entrypoint, runtime_env
from ray_mm.storage import write_json
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
    resolved = placed(job, cluster)
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
