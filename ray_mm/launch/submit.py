"""``ray-mm submit job.yaml --address URL``: job → submission on a Ray cluster, through the Ray Jobs API.

What travels: the job with every default filled in and every path absolute, and this version of ray_mm. The cluster brings
Python with the libraries that ray_mm needs, and folders that all of its nodes see under the same paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ray_mm.auth import auth_headers
from ray_mm.config.base import map_locations
from ray_mm.config.load import Job
from ray_mm.errors import RayMMError, UsageError
from ray_mm.launch.dashboard import dashboard_url, require_dashboard
from ray_mm.registered import absolute
from ray_mm.storage import write_json
from ray_mm.travel import with_the_job
from ray_mm.version import __version__

_JOB_FILE = "job.json"
_POLL_S = 1.0
_STOP_TIMEOUT_S = 30.0
_RETRIES = 5
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that set their own level and tell of every upload."""
_OWN_STATUSES = (2, 3)
"""Exit statuses of ``ray-mm run`` that say more than that it failed."""


@dataclass(frozen=True)
class Submission:
    """A job on a cluster."""

    id: str
    is_new: bool
    """False where the same job was running there already."""


@dataclass(frozen=True)
class Status:
    """How a submitted job stands."""

    id: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    started: datetime | None
    seconds: float | None
    """From its start to its end, or until now."""
    exit_status: int | None
    """What ``ray-mm run`` would have returned; None while it has not ended."""


def connect(address: str | None = None) -> Jobs:
    """Connects to a cluster's Jobs API.

    Args:
        address: of the dashboard, such as ``http://head:8265``. None: ``RAY_API_SERVER_ADDRESS``, else this machine.

    Raises:
        UsageError: nothing answers there within 15 seconds, it wants a token, or it runs another version of Ray.
    """
    url = dashboard_url(address)
    require_dashboard(url, ray.__version__)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray lets these variables win over the address that it is given.
    with _without_variables("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        return Jobs(url, JobSubmissionClient(url, headers=auth_headers()))


class Jobs:
    """The jobs of one cluster. Made by ``connect``."""

    def __init__(self, address: str, client: JobSubmissionClient) -> None:
        self.address = address
        self._client = client

    def submit(self, job: Job) -> Submission:
        """Submits a job, unless the very same job is still running there.

        Its id is derived from its name and content, so two submitters can't start it twice either; once it has ended,
        it may be submitted again, under the next number.
        """
        resolved = map_locations(job, absolute)
        content = resolved.model_dump(mode="json")
        base = f"{job.name}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]}"
        earlier = self._submissions(base)
        running = [number for number, details in earlier.items() if not details.status.is_terminal()]
        if running:
            return Submission(_numbered(base, running[0]), is_new=False)
        submission = _numbered(base, max(earlier, default=0) + 1)
        with tempfile.TemporaryDirectory(prefix="ray_mm_submit_") as folder:
            write_json(Path(folder) / _JOB_FILE, content)
            try:
                self._client.submit_job(
                    entrypoint=f"python -m ray_mm run {_JOB_FILE} --address auto",
                    submission_id=submission,
                    runtime_env={
                        "working_dir": folder,
                        **with_the_job(),
                        # A log that is followed shows a line when it is written.
                        "env_vars": {"PYTHONUNBUFFERED": "1"},
                    },
                    metadata={"kind": job.kind, "name": job.name, "output": resolved.output, "ray_mm": __version__},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # another submitter was faster
                    return Submission(submission, is_new=False)
                raise RayMMError(f"{self.address}: the cluster did not take the job ({_short(error)}).") from None
        return Submission(submission, is_new=True)

    def status(self, submission: str) -> Status:
        """How a job stands.

        Raises:
            UsageError: the cluster knows no such job.
        """
        return _status(self._details(submission))

    def list(self) -> list[Status]:
        """All jobs that were submitted to the cluster, by ray_mm or not; the newest first."""
        found = [_status(details) for details in self._client.list_jobs() if details.submission_id is not None]
        return sorted(found, key=lambda status: (status.started is not None, status.started), reverse=True)

    def logs(self, submission: str) -> str:
        """Everything that a job has written so far.

        Raises:
            UsageError: the cluster knows no such job.
        """
        self._details(submission)
        text: str = self._client.get_job_logs(submission)
        return text

    def follow(self, submission: str, write: Callable[[str], None]) -> Status:
        """Passes on what a job writes until it has ended, and returns how it ended.

        The stream of a log may end long before the job does; so the job's status alone decides, and the stream is
        taken up again where it broke off.

        Raises:
            UsageError: the cluster knows no such job.
            RayMMError: the cluster can't be reached any more.
        """
        status = self.status(submission)
        written = failures = 0
        while True:
            try:
                written = asyncio.run(self._tail(submission, written, write))
                status = self.status(submission)
                failures = 0
            except UsageError:
                raise
            except Exception as error:  # whatever the libraries below raise when a connection breaks
                failures += 1
                if failures > _RETRIES:
                    raise RayMMError(
                        f"{self.address}: the connection was lost ({_short(error)}). The job {submission} may go on; look "
                        "again with ray-mm status."
                    ) from error
            if status.exit_status is not None and not failures:
                write(self._client.get_job_logs(submission)[written:])
                return status
            time.sleep(_POLL_S)

    async def _tail(self, submission: str, written: int, write: Callable[[str], None]) -> int:
        seen = 0
        async for text in self._client.tail_job_logs(submission):
            write(text[max(0, written - seen) :])
            seen += len(text)
        return max(written, seen)

    def stop(self, submission: str) -> Status:
        """Stops a job and waits until it has ended. A job that has ended stays as it is.

        Raises:
            UsageError: the cluster knows no such job.
            RayMMError: it did not end in time.
        """
        status = self.status(submission)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        if status.exit_status is None:
            self._client.stop_job(submission)
        while status.exit_status is None:
            if time.monotonic() > deadline:
                raise RayMMError(
                    f"{submission}: still {status.state.lower()} {_STOP_TIMEOUT_S:.0f} s after it was told to stop."
                )
            time.sleep(_POLL_S / 5)
            status = self.status(submission)
        return status

    def _submissions(self, base: str) -> dict[int, JobDetails]:
        """Number → job, for all submissions of the same job."""
        found = {}
        for details in self._client.list_jobs():
            name, _, number = (details.submission_id or "").rpartition(".")
            if details.submission_id == base:
                found[1] = details
            elif name == base and number.isdigit():
                found[int(number)] = details
        return found

    def _details(self, submission: str) -> JobDetails:
        try:
            return self._client.get_job_info(submission)
        except AuthenticationError as error:
            raise UsageError(f"{self.address}: {_short(error)}") from None
        except RuntimeError as error:
            if "404" not in str(error):
                raise
        known = [status.id for status in self.list()]
        hint = f"it knows {', '.join(known[:5])}{' and others' if len(known) > 5 else ''}" if known else "it knows none"
        raise UsageError(f"{submission}: the cluster at {self.address} knows no such job; {hint}.")


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}.{number}"


def _status(details: JobDetails) -> Status:
    ended = details.status.is_terminal()
    started, end = details.start_time, details.end_time
    seconds = None if started is None else (end / 1000 if end and ended else time.time()) - started / 1000
    exit_status: int | None = None
    if details.status == JobStatus.SUCCEEDED:
        exit_status = 0
    elif ended:
        exit_status = details.driver_exit_code if details.driver_exit_code in _OWN_STATUSES else 1
    return Status(
        id=details.submission_id or details.job_id or "",
        state=str(details.status),
        # Ray appends the end of the log, which is shown elsewhere.
        message=(details.message or "").strip().split("\n", 1)[0].split(", last available logs", 1)[0],
        started=None if started is None else datetime.fromtimestamp(started / 1000),
        seconds=seconds,
        exit_status=exit_status,
    )


@contextlib.contextmanager
def _without_variables(*names: str) -> Iterator[None]:
    taken: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
