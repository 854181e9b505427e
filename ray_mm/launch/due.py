"""A schedule, what became of its earlier times, and now → which run is due, and when. The file that remembers it.

<output>.schedule.json   beside a job's output folder: the newest time that was dealt with, a run that has begun, the last ones
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError

from ray_mm.config.base import Config
from ray_mm.config.schedule import JobSchedule, missed, times
from ray_mm.errors import GateRefused, UsageError
from ray_mm.storage import local_path, write_atomic

_FORMAT = 1
_MAX_RUNS = 100
_CLOCK_AHEAD = timedelta(days=1)
_ON_TIME = timedelta(minutes=2)
"""How late a run may begin and still is no missed one: the clock is looked at twice a minute."""
_RESULTS = (0, GateRefused.exit_status)
"""Exit statuses of a run that has come to its end, also where it was just asked to."""


class ScheduledRun(Config):
    """A run that was begun at its time, or for times that had gone by."""

    planned: datetime
    """The newest time that it is for."""
    merged: int = 0
    """Earlier times that it makes up for as well."""
    begun: datetime
    """When it was begun."""
    ended: datetime | None = None
    """When it ended; None: it has not, or nobody saw it."""
    exit_status: int | None = None
    """Of its command."""


class ScheduleState(Config):
    """What became of a job's schedule so far."""

    format: Literal[1] = 1
    """Of this file."""
    schedule: JobSchedule
    """As it was then."""
    settled: datetime
    """No time up to this one is due any more."""
    running: ScheduledRun | None = None
    """A run that was begun and has not come to an end by itself."""
    runs: tuple[ScheduledRun, ...] = ()
    """The last ones that ended, the newest last."""


@dataclass(frozen=True)
class Due:
    """The next run."""

    planned: datetime
    """The newest time that it is for, in the schedule's time zone."""
    at: datetime
    """When to begin it: then, or at once where that time has gone by."""
    merged: int = 0
    """Earlier times that it makes up for as well."""
    goes_on: bool = False
    """Whether it continues one that was interrupted."""


def first_state(schedule: JobSchedule, now: datetime) -> ScheduleState:
    """That of a schedule which nobody has kept yet: nothing was missed."""
    return ScheduleState(schedule=schedule, settled=now)


def next_due(state: ScheduleState, now: datetime) -> Due:
    """The run that comes next.

    Args:
        state: of the schedule.
        now: with a time zone.
    """
    schedule, before = state.schedule, state.running
    gone_by = missed(schedule, state.settled, now) if schedule.catch_up else []
    if gone_by:
        merged = len(gone_by) - 1 + (0 if before is None else 1 + before.merged)
        return Due(gone_by[-1], now, merged, goes_on=before is not None)
    if before is not None:
        return Due(before.planned.astimezone(schedule.zone), now, before.merged, goes_on=True)
    comes = next(times(schedule, max(state.settled, now)))
    return Due(comes, comes)


def when_it_comes(state: ScheduleState, due: Due, now: datetime) -> Due | None:
    """What a run that was waited for is by then: a machine may have slept over its time, and over others.

    Args:
        state: of the schedule.
        due: as it was planned.
        now: with a time zone.

    Returns:
        None: its time went by, and it is not made up for.
    """
    if due.goes_on or now < due.at:
        return due
    if state.schedule.catch_up:
        return next_due(state, now)
    return due if now - due.at <= _ON_TIME else None


def begun(state: ScheduleState, due: Due, now: datetime) -> ScheduleState:
    """The state while a run is at work."""
    run = ScheduledRun(planned=due.planned, merged=due.merged, begun=now)
    return state.model_copy(update={"settled": max(state.settled, due.planned), "running": run})


def ended(state: ScheduleState, exit_status: int, now: datetime, interrupted: bool) -> ScheduleState:
    """The state when a run has ended.

    Args:
        state: while it ran.
        exit_status: of its command.
        now: with a time zone.
        interrupted: whether it was asked to end, and is to go on when the schedule is kept again.
    """
    assert state.running is not None
    run = state.running.model_copy(update={"ended": now, "exit_status": exit_status})
    if interrupted and exit_status not in _RESULTS:
        return state.model_copy(update={"running": run})
    return state.model_copy(update={"running": None, "runs": (*state.runs, run)[-_MAX_RUNS:]})


def state_path(output: str) -> Path:
    """The file of a job's schedule, beside its output folder.

    Raises:
        UsageError: the output lies in a store.
    """
    if "://" in output and not output.startswith("file://"):
        raise UsageError(
            f"output {output} lies in a store, where no schedule is remembered; name a file for it with --state FILE, on a disk "
            "that stays."
        )
    folder = local_path(output)
    return folder.with_name(f"{folder.name}.schedule.json")


def read_state(path: Path, schedule: JobSchedule, now: datetime) -> ScheduleState:
    """The state that a schedule is taken up from. One that has changed since, or that nobody has kept, has missed nothing.

    Args:
        path: of the file.
        schedule: of the job as it is now.
        now: with a time zone.

    Raises:
        UsageError: the file is of a newer version, or damaged.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return first_state(schedule, now)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: what is known of the schedule can't be read ({error}).") from None
    try:
        found = json.loads(content)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number > _FORMAT:
            raise UsageError(
                f"{path}: is of format {number}, and this version knows {_FORMAT}; use the ray_mm that wrote it, or a newer one."
            )
        state = ScheduleState.model_validate_json(content)
    except (ValueError, ValidationError):
        raise UsageError(
            f"{path}: is damaged, or no schedule's file; remove it, and the schedule begins anew with nothing missed."
        ) from None
    aware = [state.settled, *(run.planned for run in (state.running, *state.runs) if run is not None)]
    if any(time.tzinfo is None for time in aware):
        raise UsageError(f"{path}: holds a time without a time zone; remove it, and the schedule begins anew.")
    # A clock that was set right by some seconds repeats no run; one that was far ahead does not hold the schedule up until then.
    settled = now if state.settled > now + _CLOCK_AHEAD else state.settled
    if (state.schedule.cron, state.schedule.timezone) != (schedule.cron, schedule.timezone):
        settled = max(now, settled)
    return state.model_copy(update={"schedule": schedule, "settled": settled})


def write_state(path: Path, state: ScheduleState) -> None:
    """Writes it, whole or not at all.

    Raises:
        UsageError: the disk does not take it.
    """
    try:
        write_atomic(path, state.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"{path}: can't be written ({error.strerror}); make room, or name another file with --state."
        ) from None


@contextlib.contextmanager
def kept_by_one(path: Path) -> Iterator[IO[str]]:
    """Keeps every other process from keeping this schedule. Yields the lock: a run that inherits it holds it to its end.

    Raises:
        UsageError: another one does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: can't be written ({error.strerror}); name another file with --state, on a disk that stays."
        ) from None
    with lock as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UsageError(
                f"{path}: another process keeps this schedule, or a run that it began is still at work "
                f"({stream.read().strip() or 'not known which'}); stop it, or leave it to it."
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path}: the file system can't lock ({error.strerror}), so two schedules could run at once; name a file on a "
                "local disk with --state."
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}")
        stream.flush()
        yield stream


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(timezone.utc)
