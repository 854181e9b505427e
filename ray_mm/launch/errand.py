"""A module that runs on a cluster's head for some seconds → its answer."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence

from ray_mm.errors import RayMMError, UsageError
from ray_mm.launch.answer import find_answer
from ray_mm.launch.dashboard import require_closed
from ray_mm.launch.jobs import Jobs, short
from ray_mm.launch.runtime import module_command, runtime_env

_POLL_S = 0.3
_FORGOTTEN_WITHIN_S = 60.0
_SAID = "ray-mm: "
_NOT_NEEDED = ("pip", "worker_process_setup_hook")
"""What takes long, and what keeps a node that lacks a secret from saying so."""


def run_errand(
    jobs: Jobs, module: str, arguments: Sequence[str], allow_unauthenticated: bool = False, timeout_s: float = 120.0
) -> bytes:
    """Runs a module on the cluster's head, and leaves nothing there.

    Args:
        jobs: of the cluster.
        module: that ends with ``give_answer``.
        arguments: of it.
        allow_unauthenticated: whether the cluster may be one elsewhere that asks nobody for a token.
        timeout_s: until its answer is there.

    Returns:
        What it answered.

    Raises:
        UsageError: the cluster asks for no token, or the module says that the call is wrong.
        RayMMError: it failed, or took too long.
    """
    require_closed(jobs.dashboard, allow_unauthenticated)
    submission = f"{module.rpartition('.')[2]}-{secrets.token_hex(5)}"
    try:
        jobs.client.submit_job(
            entrypoint=module_command(jobs.cluster, module, arguments),
            submission_id=submission,
            runtime_env={key: value for key, value in runtime_env(jobs.cluster).items() if key not in _NOT_NEEDED},
        )
    except RuntimeError as error:
        raise RayMMError(f"{jobs.address}: the cluster did not take the job ({short(error)}).") from None
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            ended = jobs.status(submission).exit_status
            log = jobs.client.get_job_logs(submission)
            answer = find_answer(log)
            if answer is not None:
                return answer
            if ended is not None:
                said = [line.removeprefix(_SAID) for line in log.splitlines() if line.startswith(_SAID)]
                problem = said[-1] if said else f"it ended with status {ended} and said: {log.strip()[-300:]}"
                raise (UsageError if ended == UsageError.exit_status else RayMMError)(f"on the cluster: {problem}")
            time.sleep(_POLL_S)
        raise RayMMError(
            f"{jobs.address}: the cluster did not answer within {timeout_s:g} s; it may have no room for a job."
        )
    finally:
        _forget(jobs, submission)


def _forget(jobs: Jobs, submission: str) -> None:
    with contextlib.suppress(Exception):  # whatever happened is told already
        jobs.client.stop_job(submission)
        deadline = time.monotonic() + _FORGOTTEN_WITHIN_S
        while jobs.status(submission).exit_status is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        jobs.client.delete_job(submission)
