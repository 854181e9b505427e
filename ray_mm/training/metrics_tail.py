"""New lines of a run's ``metrics.jsonl``, each once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mm.training.tracking import METRICS_FILE


class MetricsTail:
    """Follows a run's metrics while others write them.

    Workers that start again take back what lies behind their checkpoint and write it anew: the same figures, for a resume is
    exact. So a line counts as new if its step lies behind those of its kind so far.

    Args:
        run: the run's folder.
        known: kind of line → the last step that is known.
    """

    def __init__(self, run: Path, known: Mapping[str, int]) -> None:
        self._path = run / METRICS_FILE
        self._known = dict(known)
        self._file, self._offset = 0, 0

    def read(self) -> list[dict[str, Any]]:
        """The lines that are new since the last call; one that is being written comes with the next."""
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._file, self._offset = found.st_ino, 0
                stream.seek(self._offset)
                content = stream.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = []
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut short by a kill
                continue
            if line["step"] > self._known.get(line["kind"], -1):
                self._known[line["kind"]] = line["step"]
                lines.append(line)
        return lines
