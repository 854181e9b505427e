"""Asked to end, a training saves what it has learned first: a machine that is taken back gives some seconds of grace.

<run>/.stop    put there by the driver when it gets SIGTERM, or by hand: save, and end
<run>/.leave   put there by Ray Train's controller when machines go or come: save, and begin anew on those that there are
"""

from __future__ import annotations

import contextlib
import enum
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_EVERY_S = 0.5


class Ask(enum.IntEnum):
    """What a training is asked for."""

    NOTHING = 0
    LEAVE = 1
    STOP = 2


class LeaveRequested(Exception):  # noqa: N818 - no mistake of anybody's
    """The workers were asked to leave, and have saved their state: others begin where they ended. Counts as no failure."""


class StopSign:
    """The files that ask a training to end, or its workers to leave.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._stop = run / ".stop"
        self._leave = run / ".leave"
        self._looked_at = -math.inf
        self._seen = Ask.NOTHING

    def seen(self) -> Ask:
        """What is asked for. Looks twice a second at most: a shared disk may be slow."""
        now = time.monotonic()
        if self._seen is Ask.NOTHING and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._seen = Ask.STOP if self._stop.exists() else Ask.LEAVE if self._leave.exists() else Ask.NOTHING
        return self._seen

    def ask_to_leave(self) -> None:
        """Asks the workers to save, so that others can begin anew."""
        self._leave.touch()

    def have_left(self) -> None:
        """What earlier workers were asked for does not hold for the next ones."""
        self._leave.unlink(missing_ok=True)

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Within the block the first SIGTERM of this process asks for the end; a second one ends the process at once.

        What an earlier run left is taken away before. Only the main thread may take signals; in others nothing is done.
        """
        self._stop.unlink(missing_ok=True)
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(*_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._stop.touch()

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._stop.unlink(missing_ok=True)
