"""Asked to end, a training saves what it has learned first: a machine that is taken back gives some seconds of grace.

<run>/.stop    put there by the driver when it gets SIGTERM, or by hand
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_EVERY_S = 0.5


class StopSign:
    """The file that asks a training to end.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / ".stop"
        self._looked_at = -math.inf
        self._seen = False

    def seen(self) -> bool:
        """Whether it is there. Looks twice a second at most: a shared disk may be slow."""
        now = time.monotonic()
        if not self._seen and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._seen = self._path.exists()
        return self._seen

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Within the block the first SIGTERM of this process puts it there; a second one ends the process at once.

        What an earlier run left is taken away before. Only the main thread may take signals; in others nothing is done.
        """
        self._path.unlink(missing_ok=True)
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(*_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._path.touch()

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._path.unlink(missing_ok=True)
