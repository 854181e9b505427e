"""What a run of all tests says while it goes on: failures when they happen, and every few minutes where it stands.

A quiet run tells of failures at its end, and one that is cut short never comes there.
"""

from __future__ import annotations

import threading
import time

import pytest

EVERY_S = 300.0
_LONG_S = 30.0


class Watch:
    """Watches a run from the process that leads it."""

    def __init__(self, reporter: pytest.TerminalReporter, every_s: float = EVERY_S) -> None:
        self._reporter = reporter
        self._every_s = every_s
        self._started = time.monotonic()
        self._running: dict[str, float] = {}
        self._done = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="watch", daemon=True)

    def pytest_sessionstart(self) -> None:
        """Begins to tell."""
        self._thread.start()

    def pytest_sessionfinish(self) -> None:
        """Tells no more."""
        self._over.set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self._running.pop(nodeid, None)
        self._done += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Shows a failure at once; pytest shows it again at the end."""
        if report.failed:
            self._reporter.write_line(
                f"\n{self._clock()} FAILED in {report.when}: {report.nodeid}\n{report.longreprtext}"
            )

    def standing(self) -> str:
        """How long it has run, how many tests are done, and which have been running for long."""
        now = time.monotonic()
        long = [
            f"{test} for {now - began:.0f} s" for test, began in list(self._running.items()) if now - began > _LONG_S
        ]
        running = f"; running: {', '.join(long)}" if long else ""
        return f"{self._clock()} {self._done:,} tests done{running}"

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"[{minutes}:{seconds:02d}]"

    def _tell(self) -> None:
        while not self._over.wait(self._every_s):
            self._reporter.write_line(f"\n{self.standing()}")
