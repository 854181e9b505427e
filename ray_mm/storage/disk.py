"""The disk under a cache: one that is full or broken is told once, and must not stop the run."""

from __future__ import annotations

import logging
from pathlib import Path

_LOG = logging.getLogger(__name__)


class CacheDisk:
    """Whether a process still writes to a cache.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.is_broken = False

    def give_up(self, error: OSError) -> None:
        """Takes note that the disk refuses, and says so the first time."""
        if not self.is_broken:
            self.is_broken = True
            reason = error.strerror or error
            _LOG.warning("the cache in %s can't be written (%s); reading goes on without it", self._folder, reason)
