"""The watermark: which shards retraining has seen, up to which event time, in which run.

    {"format": "ray_mm.watermark", "version": 1, "revision", "fence",
     "event_time": up to which (seconds since 1970), "parts": [{"digest", "run", "num_shards", "num_samples", "set_aside"},
     ...]}
    parts/<digest>.json    {"consumed": [[path, version, num_samples, event_time], ...], "set_aside": [...]}

A run's shards are written first, as a part that is named by its digest and never changes, then the watermark is moved by
compare-and-swap: a run that is killed between the two has consumed nothing, and does the same again. A shard is known by its
path; its version tells whether it is still the same one. A path is consumed once and never again, and so are bytes (a version
that is a digest of them) under another path: no sample is counted twice, whatever is moved, copied or written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ray_mm.errors import RegistryError, WriteConflictError
from ray_mm.storage.conditional import Documents
from ray_mm.storage.shared import Content, SharedState, State

WATERMARK_FORMAT = 1
_KIND = "ray_mm.watermark"
_DIGESTS = ("sha256:", "etag:")
"""Versions that are of a shard's bytes, not of when it was written."""


@dataclass(frozen=True)
class Arrival:
    """A shard that is there.

    Attributes:
        path: absolute, or a URL.
        version: ``sha256:…``, ``etag:…`` or ``mtime:…``, as a dataset's ``shards.parquet`` has it.
        num_samples: in it.
        event_time: of its newest sample, in seconds since 1970, UTC.
    """

    path: str
    version: str
    num_samples: int
    event_time: float


@dataclass(frozen=True)
class Sorted:
    """Arrivals, held against the watermark; each in the order in which they were given.

    Attributes:
        new: not seen yet, and not too late.
        done: consumed, and still the same.
        set_aside: refused before, and still the same.
        changed: consumed, and written anew since. They are not consumed again: some of their samples would count twice.
        copies: their bytes were consumed under another path, or come before them in this list.
        too_late: not seen yet, and older than the late data window allows.
    """

    new: tuple[Arrival, ...]
    done: tuple[Arrival, ...]
    set_aside: tuple[Arrival, ...]
    changed: tuple[Arrival, ...]
    copies: tuple[Arrival, ...]
    too_late: tuple[Arrival, ...]


@dataclass(frozen=True)
class Mark:
    """How far retraining has come.

    Attributes:
        event_time: up to which everything was consumed that was there; None: nothing yet.
        runs: that moved the watermark, in order.
        num_shards: consumed.
        num_samples: in them.
        revision: of the document.
        fence: the largest fencing token that it has seen.
    """

    event_time: float | None
    runs: tuple[str, ...]
    num_shards: int
    num_samples: int
    revision: int
    fence: int


class Watermark:
    """The watermark of one retraining.

    Args:
        documents: below which it lies.
        name: its folder there.
    """

    def __init__(self, documents: Documents, name: str = "watermark") -> None:
        self._documents, self._name = documents, name
        self._shared = SharedState(documents, f"{name}/watermark.json", _KIND, WATERMARK_FORMAT)
        self._parts: dict[str, dict[str, Any]] = {}

    def read(self) -> Mark:
        """How far retraining has come.

        Raises:
            RegistryError: damaged, or written by a newer version of ray_mm.
            StorageError: it can't be read.
        """
        return _mark(self._shared.read())

    def admit(self, fence: int) -> None:
        """Shows a new holder's fencing token: older ones are refused from now on. Raises as ``commit``."""
        self._shared.admit(fence)

    def sort(self, arrivals: Iterable[Arrival], late_window_s: float = 0.0) -> Sorted:
        """Which of the shards that are there are new.

        Args:
            arrivals: all that are there.
            late_window_s: a shard counts as late if its event time is before the watermark's by more than this.

        Raises:
            RegistryError: the watermark is damaged, or written by a newer version of ray_mm.
            StorageError: it can't be read.
        """
        state = self._shared.read()
        consumed, aside = self._known(state.content)
        seen = {version for version in consumed.values() if version.startswith(_DIGESTS)}
        event_time = state.content.get("event_time")
        kinds: dict[str, list[Arrival]] = {name: [] for name in Sorted.__dataclass_fields__}
        for arrival in arrivals:
            if arrival.path in consumed:
                kind = "done" if consumed[arrival.path] == arrival.version else "changed"
            elif aside.get(arrival.path) == arrival.version:
                kind = "set_aside"
            elif arrival.version in seen:
                kind = "copies"
            elif event_time is not None and arrival.event_time < event_time - late_window_s:
                kind = "too_late"
            else:
                kind = "new"
                if arrival.version.startswith(_DIGESTS):
                    seen.add(arrival.version)
            kinds[kind].append(arrival)
        return Sorted(**{name: tuple(found) for name, found in kinds.items()})

    def consumed(self) -> dict[str, str]:
        """Path → version of every shard that was consumed; for replay, and for counting. Raises as ``read``."""
        return self._known(self._shared.read().content)[0]

    def commit(
        self,
        run: str,
        consumed: Sequence[Arrival],
        fence: int,
        set_aside: Sequence[Arrival] = (),
        until: float | None = None,
    ) -> Mark:
        """Moves the watermark: the last thing that a run does. Doing it again changes nothing.

        Args:
            run: its id. Each run moves it once.
            consumed: shards that were trained on, or judged by a challenger that lost.
            fence: the fencing token of the run's lease.
            set_aside: shards that were refused; written anew they are new again.
            until: event time up to which the run looked. None: that of the newest shard. The watermark never goes back.

        Raises:
            LeaseLost: a later holder of the lease has been here.
            WriteConflictError: one of the shards was consumed already.
            RegistryError: the run has moved it already, over other shards; or it is damaged, or newer.
            StorageError: it can't be written.
        """
        part = {
            "consumed": sorted(astuple(arrival) for arrival in consumed),
            "set_aside": sorted(astuple(arrival) for arrival in set_aside),
        }
        content = (json.dumps({"run": run, **part}, indent=0) + "\n").encode()
        digest = hashlib.sha256(content).hexdigest()
        times = [arrival.event_time for arrival in (*consumed, *set_aside)]

        def change(content: Content) -> Content | None:
            parts = list(content.get("parts", []))
            for known in parts:
                if known["run"] == run:
                    if known["digest"] == digest:
                        return None
                    raise RegistryError(
                        f"{self._shared.place}: run {run!r} has moved the watermark already, over other shards; a run of other "
                        "shards needs an id of its own."
                    )
            self._require_new(content, consumed)
            parts.append(
                {
                    "digest": digest,
                    "run": run,
                    "num_shards": len(consumed),
                    "num_samples": sum(arrival.num_samples for arrival in consumed),
                    "set_aside": len(set_aside),
                }
            )
            reached = [content.get("event_time"), max(times, default=None) if until is None else until]
            return {"event_time": max((time for time in reached if time is not None), default=None), "parts": parts}

        # Nobody looks at a part that the watermark does not name.
        try:
            self._documents.create(self._part_name(digest), content)
        except WriteConflictError:
            self._part(digest)  # this run wrote it, before it was interrupted
        return _mark(self._shared.update(change, fence))

    def _require_new(self, content: Content, consumed: Sequence[Arrival]) -> None:
        known, _ = self._known(content)
        digests = {version for version in known.values() if version.startswith(_DIGESTS)}
        for arrival in consumed:
            if arrival.path in known or arrival.version in digests:
                raise WriteConflictError(
                    f"{arrival.path}: was consumed already{'' if arrival.path in known else ' under another path'}; the "
                    "watermark was not moved, for its samples would count twice."
                )
            known[arrival.path] = arrival.version
            if arrival.version.startswith(_DIGESTS):
                digests.add(arrival.version)

    def _known(self, content: Content) -> tuple[dict[str, str], dict[str, str]]:
        """Path → version of what was consumed, and of what was set aside."""
        consumed: dict[str, str] = {}
        aside: dict[str, str] = {}
        for known in content.get("parts", []):
            part = self._part(known["digest"])
            consumed.update((path, version) for path, version, _, _ in part["consumed"])
            aside.update((path, version) for path, version, _, _ in part["set_aside"])
        return consumed, aside

    def _part(self, digest: str) -> Mapping[str, Any]:
        if digest not in self._parts:
            name = self._part_name(digest)
            document = self._documents.read(name)
            if document is None or hashlib.sha256(document.content).hexdigest() != digest:
                raise RegistryError(
                    f"{self._documents.root}/{name}: {'is missing' if document is None else 'is damaged'}; it says which "
                    "shards were consumed, and without it samples would count twice. Put a copy of it back."
                )
            self._parts[digest] = json.loads(document.content)
        return self._parts[digest]

    def _part_name(self, digest: str) -> str:
        return f"{self._name}/parts/{digest}.json"


def _mark(state: State) -> Mark:
    parts = state.content.get("parts", [])
    return Mark(
        event_time=state.content.get("event_time"),
        runs=tuple(part["run"] for part in parts),
        num_shards=sum(part["num_shards"] for part in parts),
        num_samples=sum(part["num_samples"] for part in parts),
        revision=state.revision,
        fence=state.fence,
    )
