"""A night's folder: what it has done, step by step, so that it can be gone on with wherever it was interrupted.

<output>/nights/<id>/night.json      when it began, what it began with, how it ended; {"status": null} while it is under way
<output>/nights/<id>/steps/NN-*.json what a step found; written when the step is done, so that it is not done again
<output>/nights/<id>/data/           the new samples as datasets: train/ and newest/ (what no training sees)
<output>/nights/<id>/train/ evaluate/ compress/ report.html
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_mm.errors import OutputFolderError
from ray_mm.retraining.clock import written
from ray_mm.storage import write_json

NIGHT_FORMAT = 1
_KIND = "ray_mm.night"
Watch = Callable[[str], None]
"""Called with ``begin NAME``, ``done NAME`` (before it is noted) and ``noted NAME``."""


@dataclass(frozen=True)
class Facts:
    """What ``night.json`` says.

    Attributes:
        id: of the night: the job's name and the data interval.
        since: where the interval begins, in seconds since 1970; None: at the first sample.
        until: where it ends.
        number: of the nights that train, from 1: this one's, if it does.
        champion: the version that it is compared with; None: there was none.
        num_runs: how often the watermark had been moved when it began.
        opened: when it began, in seconds since 1970.
        status: how it ended; None: it has not.
        reason: why, in a sentence.
        seconds: that it took, over all of its commands.
        starts: commands that worked on it.
        failed: why the last of them failed; None: it did not, or it was killed.
        promoted: the version that it made the champion.
        figures: numbers for the history.
    """

    id: str
    since: float | None
    until: float
    number: int
    champion: int | None
    num_runs: int
    opened: float
    status: str | None = None
    reason: str = ""
    seconds: float = 0.0
    starts: int = 0
    failed: str | None = None
    promoted: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)


class Night:
    """A night that is under way, or has ended.

    Args:
        folder: of it.
        facts: of it.
        watch: see ``Watch``; what it raises ends the night's command as a failure of the step would.
    """

    def __init__(self, folder: Path, facts: Facts, watch: Watch) -> None:
        self.folder, self.facts, self._watch = folder, facts, watch
        self._earlier_s, self._began = facts.seconds, time.monotonic()

    def save(self, **changes: Any) -> None:
        """Changes what ``night.json`` says."""
        seconds = round(self._earlier_s + time.monotonic() - self._began, 3)
        self.facts = replace(self.facts, seconds=seconds, **changes)
        write_json(self.folder / "night.json", {"format": _KIND, "version": NIGHT_FORMAT, **vars(self.facts)})

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Does a step, unless it was done before.

        Args:
            name: of it, such as ``05-train``.
            work: what is done; it may be done again after it was interrupted anywhere.

        Returns:
            What it found, as plain values.
        """
        marker = self.folder / "steps" / f"{name}.json"
        known = read_note(marker)
        if known is not None:
            return known
        self._watch(f"begin {name}")
        began = time.monotonic()
        found = work()
        self._watch(f"done {name}")
        note = {**found, "seconds": round(time.monotonic() - began, 3)}
        write_json(marker, note)
        self.save()
        self._watch(f"noted {name}")
        return note

    def note(self, name: str) -> dict[str, Any]:
        """What a step found; empty where it was not done."""
        return read_note(self.folder / "steps" / f"{name}.json") or {}

    def durations(self) -> dict[str, float]:
        """Step → seconds of the command that finished it."""
        markers = sorted((self.folder / "steps").glob("*.json"))
        return {path.stem.partition("-")[2]: float((read_note(path) or {}).get("seconds", 0)) for path in markers}


def night_id(name: str, since: float | None, until: float) -> str:
    """The name of a night: of its job, and of its data interval, in UTC."""
    first = "start" if since is None else _compact(since)
    return f"{name}-{first}-{_compact(until)}"


def read_nights(output: Path, watch: Watch = lambda point: None) -> list[Night]:
    """All nights, the first one first.

    Raises:
        OutputFolderError: one is damaged, or of a newer ray_mm.
    """
    found = []
    for path in (output / "nights").glob("*/night.json"):
        content = read_note(path)
        version = content.pop("version", None) if content else None
        if content is None or content.pop("format", None) != _KIND or not isinstance(version, int):
            raise OutputFolderError(f"{path}: is damaged; remove that night's folder if it can be done without.")
        if version > NIGHT_FORMAT:
            raise OutputFolderError(
                f"{path}: has version {version}, this ray_mm reads version {NIGHT_FORMAT}; upgrade ray_mm."
            )
        try:
            found.append(Night(path.parent, Facts(**content), watch))
        except TypeError as error:
            raise OutputFolderError(f"{path}: is damaged ({error}); remove that night's folder if it can be.") from None
    return sorted(found, key=lambda night: (night.facts.opened, night.facts.id))


def read_note(path: Path) -> dict[str, Any] | None:
    """A note as it was written; None where there is none.

    Raises:
        OutputFolderError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputFolderError(
            f"{path}: can't be read ({error}); remove it, and the night does that step again."
        ) from None
    if not isinstance(content, dict):
        raise OutputFolderError(f"{path}: is damaged; remove it, and the night does that step again.")
    return content


def _compact(seconds: float) -> str:
    return re.sub(r"[-:]", "", written(seconds))
