"""``ray-mm schedule job.yaml``: a job with a ``schedule`` → its command, at its times, one run after the other, until SIGTERM.

APScheduler wakes at the next time and nothing more: what is due is decided by ``due.py``, from a file that survives this process.
(APScheduler's own stores are pickles, and its cron lines count weekdays from Monday.)

A run is a process of its own. When this one is asked to end, it asks the run to, waits until it has saved its state, and goes on
with it when it is started again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from ray_mm.config.load import Job
from ray_mm.config.schedule import JobSchedule, times
from ray_mm.errors import RayMMError, UsageError
from ray_mm.launch.due import (
    Due,
    begun,
    ended,
    kept_by_one,
    next_due,
    read_state,
    utc_now,
    when_it_comes,
    write_state,
)
from ray_mm.progress import duration

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_EVERY_S = 30
"""How often the clock is looked at: it may have been set, or the machine may have slept."""


def schedule_of(job: Job) -> JobSchedule:
    """A job's schedule.

    Raises:
        UsageError: it has none.
    """
    if job.schedule is None:
        raise UsageError(
            f"schedule: the {job.kind} job {job.name!r} has none; add one, such as schedule: {{cron: '0 2 * * *', timezone: "
            "Europe/Berlin}."
        )
    return job.schedule


def next_runs(schedule: JobSchedule, count: int, now: datetime | None = None) -> list[tuple[str, str, str]]:
    """The next times, for people.

    Returns:
        For each the time on the schedule's clocks, in UTC, and what is unusual about it.
    """
    now = now or utc_now()
    rows, before = [], now.astimezone(schedule.zone)
    for time, _ in zip(times(schedule, now), range(count), strict=False):
        rows.append(
            (f"{time:%a %Y-%m-%d %H:%M %Z}", f"{time.astimezone(now.tzinfo):%Y-%m-%d %H:%M}", _unusual(before, time))
        )
        before = time
    return rows


def _unusual(before: datetime, time: datetime) -> str:
    shift = (time.utcoffset() or timedelta()) - (before.utcoffset() or timedelta())
    if not shift:
        return ""
    how = "forward" if shift > timedelta() else "back"
    return f"clocks go {how} by {duration(abs(shift.total_seconds()))} before"


def keep_schedule(
    schedule: JobSchedule,
    command: Sequence[str],
    state_file: Path,
    tell: Callable[[str], None],
) -> None:
    """Runs a command at the times of a schedule until it is asked to end by SIGTERM, SIGINT or SIGHUP.

    Args:
        schedule: of the job.
        command: that runs the job.
        state_file: where what became of it is remembered.
        tell: what happens is told here, a line each.

    Raises:
        UsageError: the schedule is kept by another process, its file can't be used, or an extra is not installed.
    """

    def told(text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone, or whoever read: that ends nothing
            tell(text)

    with kept_by_one(state_file) as lock, _signals() as events:
        keeper = _Keeper(schedule, command, state_file, told, lock, events)
        keeper.start()
        try:
            event = _first(events)
            if isinstance(event, BaseException):
                raise event
            told(f"{signal.Signals(event).name}: ending")
        finally:
            keeper.end()


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[Any]]:
    """A queue that signals come into: putting is safe in a handler, whatever the process does at that moment."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    put = events.put
    # Under nohup a terminal that closes is nothing to it.
    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda found, _: put(found)) for number in taken}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first(events: queue.SimpleQueue[Any]) -> Any:
    """Waits for an event. Looks up now and then: a signal that another thread was given does not end a wait of this one."""
    while True:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.5)


class _Keeper:
    """Plans the next run, runs it, plans the next one."""

    def __init__(
        self,
        schedule: JobSchedule,
        command: Sequence[str],
        state_file: Path,
        tell: Callable[[str], None],
        lock: IO[str],
        events: queue.SimpleQueue[Any],
    ) -> None:
        self._command, self._file, self._tell, self._lock, self._events = list(command), state_file, tell, lock, events
        self._state = read_state(state_file, schedule, utc_now())
        self._scheduler = _scheduler()
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False

    def start(self) -> None:
        write_state(self._file, self._state)
        self._scheduler.start()
        # Waiting goes by a clock that stands still while a machine sleeps; so it is woken now and then.
        self._scheduler.add_job(lambda: None, "interval", seconds=_LOOK_EVERY_S, misfire_grace_time=None, coalesce=True)
        self._plan()

    def end(self) -> None:
        """Asks a run that is at work to end, and waits for it; asked once more, it kills it. A terminal that closes may say so
        more than once."""
        with self._changing:
            self._ending = True
            process = self._process
        if process is not None and process.poll() is None:
            self._tell("waiting for the run to save its state; the same signal again kills it")
            _signal(process, signal.SIGTERM)
            while process.poll() is None:
                with contextlib.suppress(queue.Empty):
                    if self._events.get(timeout=0.2) in (signal.SIGTERM, signal.SIGINT):
                        _signal(process, signal.SIGKILL)
        self._scheduler.shutdown(wait=True)

    def _plan(self) -> None:
        with self._changing:  # a scheduler that is ending waits for this thread, and would keep it from adding anything
            if not self._ending:
                due = next_due(self._state, utc_now())
                self._tell(_told(due))
                self._scheduler.add_job(self._run, "date", run_date=due.at, args=[due], misfire_grace_time=None)

    def _run(self, planned: Due) -> None:
        try:
            due = when_it_comes(self._state, planned, utc_now())
            if due is None:
                self._tell(
                    f"the run of {planned.planned:%Y-%m-%d %H:%M %Z} was missed, and is left out (catch_up: false)"
                )
                self._plan()
                return
            if due.planned != planned.planned:
                self._tell(_told(due))
            self._state = begun(self._state, due, utc_now())
            write_state(self._file, self._state)
            status = self._wait_for_command()
            if status is None:
                return
            self._state = ended(self._state, status, utc_now(), interrupted=self._ending)
            write_state(self._file, self._state)
            run = self._state.running or self._state.runs[-1]
            seconds = ((run.ended or run.begun) - run.begun).total_seconds()
            self._tell(
                f"the run of {due.planned:%Y-%m-%d %H:%M %Z} ended with status {status} after {duration(seconds)}"
            )
            self._plan()
        except BaseException as error:
            self._events.put(error)

    def _wait_for_command(self) -> int | None:
        """Its exit status, as a shell would say it; None: this process is ending, and it was not begun."""
        with self._changing:
            if self._ending:
                return None
            try:
                # In a session of its own: a key pressed in this terminal is for this process, which passes it on.
                self._process = subprocess.Popen(
                    self._command, start_new_session=True, pass_fds=(self._lock.fileno(),), stdin=subprocess.DEVNULL
                )
            except OSError as error:
                raise RayMMError(f"{self._command[0]}: can't be started ({error.strerror}).") from None
        status = self._process.wait()
        return status if status >= 0 else 128 - status


def _scheduler() -> Any:
    try:
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler
    except ModuleNotFoundError:
        raise UsageError(
            'ray-mm schedule needs APScheduler, which is not installed: pip install "ray_mm[schedule]"; or let cron, systemd or '
            "KubeRay keep the time: ray-mm render."
        ) from None
    return BackgroundScheduler(timezone="UTC", executors={"default": ThreadPoolExecutor(2)})


def _told(due: Due) -> str:
    planned = f"{due.planned:%Y-%m-%d %H:%M %Z}"
    if due.goes_on:
        more = "" if due.merged == 0 else f", {due.merged + 1} times in one"
        return f"going on with the run of {planned}, which was interrupted{more}"
    if due.at > due.planned:
        return f"the run of {planned} was missed" + (
            f", and {due.merged} before it; one run for all" if due.merged else ""
        )
    return f"next run at {planned}"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)  # with what it started
        else:
            process.send_signal(number)
