"""The jobs of a cluster, through the Ray Jobs API: how they stand, their logs, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ray_mm.config.cluster import ClusterProfile
from ray_mm.errors import RayMMError, StopRequested, UsageError
from ray_mm.launch.dashboard import Dashboard, find_dashboard

_POLL_S = 1.0
_STOP_TIMEOUT_S = 30.0
"""Beyond the time that the job itself has for saving."""
_RETRIES = 5
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that set their own level and tell of every upload."""
_OWN_STATUSES = (2, 3, StopRequested.exit_status)
"""Exit statuses of ``ray-mm run`` that say more than that it failed."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
GRACE_KEY = "stop_grace_s"
"""Of a job's metadata: how long it has for saving when it is stopped."""


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


def connect(cluster: ClusterProfile) -> Jobs:
    """Connects to a cluster's Jobs API.

    Args:
        cluster: its profile.

    Raises:
        UsageError: nothing answers there within 15 seconds, it wants another token, or it runs another version of Ray or Python.
    """
    dashboard = find_dashboard(cluster, ray.__version__)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray lets these variables win over the address that it is given.
    with _without_variables("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        # Without a header of ours Ray would show the environment's token, also to a cluster that asks for none.
        headers = dashboard.headers or {"Authorization": "none"}
        return Jobs(cluster, dashboard, JobSubmissionClient(dashboard.url, headers=headers))


class Jobs:
    """The jobs of one cluster. Made by ``connect``."""

    def __init__(self, cluster: ClusterProfile, dashboard: Dashboard, client: JobSubmissionClient) -> None:
        self.cluster = cluster
        self.dashboard = dashboard
        self.client = client

    @property
    def address(self) -> str:
        """URL of the cluster's dashboard."""
        return self.dashboard.url

    def status(self, submission: str) -> Status:
        """How a job stands.

        Raises:
            UsageError: the cluster knows no such job.
        """
        return _status(self.details(submission))

    def list(self) -> list[Status]:
        """All jobs that were submitted to the cluster, by ray_mm or not; the newest first."""
        found = [_status(details) for details in self.client.list_jobs() if details.submission_id is not None]
        return sorted(found, key=lambda status: (status.started is not None, status.started), reverse=True)

    def logs(self, submission: str) -> str:
        """Everything that a job has written so far.

        Raises:
            UsageError: the cluster knows no such job.
        """
        self.details(submission)
        text: str = self.client.get_job_logs(submission)
        return text

    def follow(self, submission: str, write: Callable[[str], None]) -> Status:
        """Passes on what a job writes until it has ended, and returns how it ended.

        The stream of a log may end long before the job does, or never begin behind some proxies; so the job's status alone
        decides, and what the stream did not bring is read from the whole log.

        Raises:
            UsageError: the cluster knows no such job.
            RayMMError: the cluster can't be reached any more.
        """
        status = self.status(submission)
        shown, failures = _Once(write), 0
        while True:
            try:
                with contextlib.suppress(Exception):  # whatever the libraries below raise when a connection breaks
                    asyncio.run(self._tail(submission, shown))
                status = self.status(submission)  # before the log, so that the log of an ended job is whole
                shown.begin()
                shown(self.client.get_job_logs(submission))
                failures = 0
            except UsageError:
                raise
            except Exception as error:
                failures += 1
                if failures > _RETRIES:
                    raise RayMMError(
                        f"{self.address}: the connection was lost ({short(error)}). The job {submission} may go on; look "
                        "again with ray-mm status."
                    ) from error
            if status.exit_status is not None and not failures:
                return status
            time.sleep(_POLL_S)

    async def _tail(self, submission: str, shown: _Once) -> None:
        shown.begin()
        async for text in self.client.tail_job_logs(submission):
            shown(text)

    def stop(self, submission: str) -> Status:
        """Stops a job and waits until it has ended: a training saves its state first. A job that has ended stays as it is.

        Raises:
            UsageError: the cluster knows no such job.
            RayMMError: it did not end in time.
        """
        status = self.status(submission)
        deadline = time.monotonic() + _grace_s(self.details(submission)) + _STOP_TIMEOUT_S
        if status.exit_status is None:
            self.client.stop_job(submission)
        while status.exit_status is None:
            if time.monotonic() > deadline:
                raise RayMMError(
                    f"{submission}: still {status.state.lower()} although it was told to stop; its log may say why: ray-mm logs "
                    f"{submission} --cluster {self.address}"
                )
            time.sleep(_POLL_S / 5)
            status = self.status(submission)
        return status

    def details(self, submission: str) -> JobDetails:
        """What Ray knows of a job.

        Raises:
            UsageError: the cluster knows no such job.
        """
        if not _ID.fullmatch(submission):  # it becomes part of a URL
            raise UsageError(
                f"{submission[:80]!r} is no id of a job: one has letters, digits, '.', '_' and '-'. ray-mm list shows them."
            )
        try:
            return self.client.get_job_info(submission)
        except AuthenticationError as error:
            raise UsageError(f"{self.address}: {short(error)}") from None
        except RuntimeError as error:
            if "404" not in str(error):
                raise
        known = [status.id for status in self.list()]
        hint = f"it knows {', '.join(known[:5])}{' and others' if len(known) > 5 else ''}" if known else "it knows none"
        raise UsageError(f"{submission}: the cluster at {self.address} knows no such job; {hint}.")


class _Once:
    """Passes on what was not passed on before, of a text that is told from its beginning again and again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = self._seen = 0

    def begin(self) -> None:
        """What comes now is the beginning."""
        self._seen = 0

    def __call__(self, text: str) -> None:
        new = text[max(0, self._written - self._seen) :]
        self._seen += len(text)
        if new:
            self._write(new)
            self._written = max(self._written, self._seen)


def _grace_s(details: JobDetails) -> float:
    with contextlib.suppress(ValueError):
        return float((details.metadata or {}).get(GRACE_KEY, "0"))
    return 0.0


def _status(details: JobDetails) -> Status:
    ended = details.status.is_terminal()
    started, end = details.start_time, details.end_time
    seconds = None if started is None else (end / 1000 if end and ended else time.time()) - started / 1000
    exit_status: int | None = None
    if details.status == JobStatus.SUCCEEDED:
        exit_status = 0
    elif ended:
        stopped = StopRequested.exit_status if details.status == JobStatus.STOPPED else 1
        exit_status = details.driver_exit_code if details.driver_exit_code in _OWN_STATUSES else stopped
    return Status(
        id=_shown(details.submission_id or details.job_id or ""),
        state=str(details.status),
        # Ray appends the end of the log, which is shown elsewhere.
        message=_shown((details.message or "").strip().split("\n", 1)[0].split(", last available logs", 1)[0]),
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


def short(error: BaseException) -> str:
    """The first line of what a library says, as far as it is worth reading."""
    return _shown((str(error).strip().splitlines() or [type(error).__name__])[0][:300])


def _shown(text: str) -> str:
    """Others choose ids and messages; none of them may steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)
