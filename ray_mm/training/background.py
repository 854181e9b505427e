"""Files that are written while the training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

_log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes in a thread, one thing at a time: who gives it more than the disk takes waits, instead of filling the memory.

    A context: at its end everything is written. What went wrong is raised by the next call, or there; but not where another
    error is on its way.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Waits for what was begun before, then begins this."""
        self.wait()
        self._running = self._pool.submit(write)

    def check(self) -> None:
        """Raises what went wrong so far; waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all is written."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            _log.warning("a checkpoint was not written reason=%s", failure)
        finally:
            self._pool.shutdown()
