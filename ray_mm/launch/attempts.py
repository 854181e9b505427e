"""``python -m ray_mm.launch.attempts job.json``: a submitted job on the cluster's head → its run, started again where it failed.

Ray Jobs starts a command once and lets it run for ever. Here it is started again when it fails, and asked to save and end after
a time; what it does then is what ``ray-mm run`` always does: it goes on from what is there.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray_mm.errors import GateRefused, StopRequested, UsageError
from ray_mm.progress import notice
from ray_mm.references import apply_references
from ray_mm.version import __version__

MODULE = "ray_mm.launch.attempts"
STOPPED = StopRequested.exit_status
_FINAL = (0, UsageError.exit_status, GateRefused.exit_status, 130)
"""Exit statuses that another start would not change."""
_POLL_S = 0.2
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0


@dataclass
class Attempts:
    """The starts of one command.

    Attributes:
        command: that runs the job.
        retries: how often it is started again.
        time_limit_s: over all starts; None: none.
        grace_s: how long it may take to end after it was asked to.
        first_pause_s: before it is started again; each further pause is twice as long, up to a minute.
    """

    command: Sequence[str]
    retries: int = 0
    time_limit_s: float | None = None
    grace_s: float = 120.0
    first_pause_s: float = _FIRST_PAUSE_S
    is_stopped: bool = False

    def run(self) -> int:
        """Runs it until it is done, and returns its last exit status; one that was ended by a signal counts as failed."""
        # Ray sends the signal to every process below it: handing it on would end at once what is about to save.
        signal.signal(signal.SIGTERM, self._stop)
        started = time.monotonic()
        deadline = None if self.time_limit_s is None else started + self.time_limit_s
        for attempt in range(1, self.retries + 2):
            status = self._start(deadline)
            if status in _FINAL:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                notice(
                    f"ended by its time limit of {self.time_limit_s:,.0f} s; what it saved is kept, and submitting it again goes "
                    "on from there."
                )
                return STOPPED
            if self.is_stopped or status == STOPPED:
                return STOPPED
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            if attempt > self.retries:
                if self.retries:
                    notice(f"failed ({how}); that was start {attempt} of {attempt}, and the last.")
                return status if status > 0 else 1
            pause_s = min(self.first_pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
            notice(f"failed ({how}); start {attempt + 1} of at most {self.retries + 1} follows in {pause_s:g} s.")
            self._pause(pause_s, deadline)
            if self.is_stopped or (deadline is not None and time.monotonic() >= deadline):
                return STOPPED
        raise AssertionError

    def _start(self, deadline: float | None) -> int:
        process = subprocess.Popen(self.command)
        while (status := process.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                if not self.is_stopped:  # then it has been told already
                    notice("the time limit is reached; it is asked to save and end.")
                    process.terminate()
                try:
                    return process.wait(self.grace_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    return process.wait()
            time.sleep(_POLL_S)
        return status

    def _pause(self, seconds: float, deadline: float | None) -> None:
        until = time.monotonic() + seconds
        until = until if deadline is None else min(until, deadline)
        while not self.is_stopped and time.monotonic() < until:
            time.sleep(_POLL_S)

    def _stop(self, *_: object) -> None:
        self.is_stopped = True


def require_version(theirs: str) -> None:
    """Refuses a job of another ray_mm than the one that is here.

    Raises:
        UsageError: it is another.
    """
    if theirs != __version__:
        raise UsageError(
            f"runtime.ships: image: the nodes have ray_mm {__version__}, and the job was submitted by {theirs}; install the same "
            "on both sides, or let it travel (ships: code)."
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--grace", type=float, default=120.0)
    parser.add_argument("--submitted-by", required=True)
    given = parser.parse_args()
    try:
        require_version(given.submitted_by)
        apply_references()
    except UsageError as error:
        notice(str(error))
        return error.exit_status
    command = [sys.executable, "-m", "ray_mm", "run", given.job, "--address", "auto"]
    return Attempts(command, given.retries, given.time_limit, given.grace).run()


if __name__ == "__main__":
    sys.exit(main())
