"""``ray-mm fetch ID``: a submitted job's run → its report, result, metrics and on request its model, here.

Where this machine sees the run's folder it is read from there; elsewhere a short job on the cluster's head sends the files.
"""

from __future__ import annotations

import json
from pathlib import Path

from ray_mm.errors import UsageError
from ray_mm.launch import sending
from ray_mm.launch.errand import run_errand
from ray_mm.launch.jobs import Jobs
from ray_mm.launch.packing import pack, require_free, unpack
from ray_mm.launch.submit import id_of


def is_run_of(folder: Path, submission: str) -> bool:
    """Whether a folder here is the run of a submission: its id tells what the job was."""
    try:
        content = json.loads((folder / "job.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and submission.partition(".")[0] == id_of(content)


def fetch(
    jobs: Jobs, submission: str, target: Path, with_model: bool = False, allow_unauthenticated: bool = False
) -> list[str]:
    """Brings a run's files here.

    Args:
        jobs: of the cluster.
        submission: id of the job.
        target: folder that they are written to.
        with_model: also the best checkpoint, or of a compress run the artifact.
        allow_unauthenticated: whether the cluster may be one elsewhere that asks nobody for a token.

    Returns:
        Their names.

    Raises:
        UsageError: the cluster knows no such job, it has written nothing yet, or the folder holds something else.
        RayMMError: they did not arrive.
    """
    output = (jobs.details(submission).metadata or {}).get("output")
    if not output:
        raise UsageError(f"{submission}: was not submitted by ray-mm, which then would know where its output lies.")
    require_free(target, submission)
    if is_run_of(Path(output), submission):
        archive = pack(Path(output), with_model)
    else:
        arguments = [*(["--checkpoint"] if with_model else []), "--", output]
        archive = run_errand(jobs, sending.MODULE, arguments, allow_unauthenticated)
    return unpack(archive, target, submission)
