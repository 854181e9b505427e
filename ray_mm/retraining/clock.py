"""The clock of a retraining: one that tests can turn on by hand."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """What retraining asks of a clock."""

    def monotonic(self) -> float:
        """Seconds that only grow, also while the machine sleeps; of no meaning to other machines."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""

    def sleep(self, seconds: float) -> None:
        """Waits."""


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        """Seconds since the machine started."""
        # Linux' monotonic clock stands still while a laptop sleeps, and the lease of a sleeper runs out all the same.
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def time(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def written(seconds: float) -> str:
    """A time as it is written into documents, for people: ``2026-11-29T22:15:00Z``."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
