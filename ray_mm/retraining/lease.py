"""A lease: one run at a time does a retraining, whatever machine it is on, and whatever becomes of it.

    with Lease.take(documents, "lease.json", holder="nightly-2026-11-29") as lease:
        registry.admit(lease.fence)      # from here on, whoever held it before can't write any more
        watermark.admit(lease.fence)
        ...
        lease.check()                    # raises LeaseLost if it ran out: cheap, call it before every step
        lease.renew()                    # the same, and asks the store: call it before what can't be taken back
        registry.promote(4, expected=3, fence=lease.fence)

    {"format": "ray_mm.lease", "version": 1, "fence": 7, "held": true, "holder": ..., "token": ..., "ttl_s": 60, "beats": 12,
    ...}

The holder renews it every third of ``ttl_s``, which counts ``beats`` up. No two machines' clocks are compared: whoever wants
the lease watches the document, and takes it when nothing in it has changed for ``ttl_s`` and a quarter *by its own clock
since it first saw it so*. The holder takes it for lost when ``ttl_s`` have gone by its own clock since it *began* its last
renewal, which is earlier. So two never hold it at the same time as long as the clocks of two machines do not differ in *rate*
by a quarter; what time they show is of no matter.

That is not enough by itself: a process may be stopped for an hour between its last look at the clock and its next write. So
each taking has a number, the fencing token, that grows by one, and every shared document refuses a smaller one than it
has seen (``storage/shared.py``). A new holder shows its number to each of them first: ``admit``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from dataclasses import dataclass, replace
from typing import Any

from ray_mm.errors import LeaseHeld, LeaseLost, RayMMError, RegistryError, StorageError, WriteConflictError
from ray_mm.progress import notice
from ray_mm.retraining.clock import SYSTEM_CLOCK, Clock, written
from ray_mm.storage.conditional import Documents
from ray_mm.storage.shared import parsed

_log = logging.getLogger(__name__)

LEASE_FORMAT = 1
_KIND = "ray_mm.lease"
_RATE_MARGIN = 1.25
"""How much longer than ``ttl_s`` a lease is watched before it is taken from a holder that says nothing."""
_BEATS_PER_TTL = 3
_MAX_PAUSE_S = 2.0
"""Longest time between two looks at a lease that another one holds."""


@dataclass(frozen=True)
class _Note:
    """What the document says."""

    fence: int
    held: bool
    holder: str
    token: str
    ttl_s: float
    beats: int
    taken: str

    def encoded(self) -> bytes:
        content: dict[str, Any] = {"format": _KIND, "version": LEASE_FORMAT, **self.__dict__}
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


class Lease:
    """A lease that is held. Made by ``take``; a context manager that releases it.

    Attributes:
        fence: the fencing token: one more than that of the holder before.
        holder: who holds it.
        ttl_s: after so many seconds without a renewal it is lost.
    """

    def __init__(self, documents: Documents, name: str, note: _Note, version: str, began: float, clock: Clock) -> None:
        self.fence, self.holder, self.ttl_s = note.fence, note.holder, note.ttl_s
        self._documents, self._name, self._clock = documents, name, clock
        self._note, self._version = note, version
        self._renewed = began
        """When the last renewal that went well was begun."""
        self._reason: str | None = None
        """Why it is lost."""
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def take(
        cls,
        documents: Documents,
        name: str,
        holder: str,
        ttl_s: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        wait_s: float | None = None,
        heartbeat: bool = True,
        above: int = 0,
    ) -> Lease:
        """Takes a lease that nobody holds, or whose holder has fallen silent.

        Args:
            documents: where its document lies.
            name: of the document.
            holder: who takes it, for people: a run id.
            ttl_s: after so many seconds without a renewal it is lost.
            clock: of the machine.
            wait_s: how long another holder is waited for. None: until it is known whether that one is alive, which takes a
                third of its ``ttl_s`` if it is, and somewhat more than ``ttl_s`` if not. 0: not at all.
            heartbeat: renew it in a thread of its own. False: ``renew`` is called often enough by the caller.
            above: the largest fencing token that the shared documents have seen: the new one is larger, even where the lease's
                document was removed.

        Raises:
            LeaseHeld: another one holds it, and is alive or was not waited for any longer.
            RegistryError: the document is damaged, or of a newer version of ray_mm.
            StorageError: the store does not answer.
        """
        place = f"{documents.root}/{name}"
        started = clock.monotonic()
        watched: tuple[str, _Note] | None = None
        since = started
        while True:
            document = documents.read(name)
            now = clock.monotonic()
            found = None if document is None else _read(document.content, place)
            silent = False
            if document is not None and found is not None and found.held:
                if watched is None or watched[0] != document.version:
                    alive = watched is not None
                    watched, since = (document.version, found), now
                    if alive and wait_s is None:
                        raise _held(place, found, "it is alive")
                    if wait_s is None:
                        longest_s = found.ttl_s * _RATE_MARGIN
                        notice(
                            f"{found.holder} has the lease; it is known within {longest_s:.0f} s whether it is alive."
                        )
                silent = now - since > found.ttl_s * _RATE_MARGIN
                if not silent:
                    if wait_s is not None and now - started >= wait_s:
                        raise _held(place, found, f"it was waited for {wait_s:g} s")
                    pause_s = min(_MAX_PAUSE_S, found.ttl_s / (4 * _BEATS_PER_TTL))
                    clock.sleep(pause_s if wait_s is None else min(pause_s, max(0.001, started + wait_s - now)))
                    continue
            note = _Note(
                fence=max(above, 0 if found is None else found.fence) + 1,
                held=True,
                holder=holder,
                token=uuid.uuid4().hex,
                ttl_s=float(ttl_s),
                beats=0,
                taken=written(clock.time()),
            )
            began = clock.monotonic()
            try:
                if document is None:
                    version = documents.create(name, note.encoded())
                else:
                    version = documents.replace(name, note.encoded(), document.version)
            except WriteConflictError:
                continue  # another one was faster; the next look tells who
            if silent and found is not None:
                _log.warning("the holder of the lease fell silent lease=%s holder=%s", place, found.holder)
            lease = cls(documents, name, note, version, began, clock)
            if heartbeat:
                lease._start_beating()
            return lease

    def check(self) -> None:
        """Says whether it is still held, without asking the store.

        Raises:
            LeaseLost: it is not.
        """
        age_s = self._clock.monotonic() - self._renewed
        if self._reason is None and age_s > self.ttl_s:
            self._reason = f"it was not renewed for {age_s:.1f} s, and lasts {self.ttl_s:g} s"
        if self._reason is not None:
            raise LeaseLost(
                f"{self._place}: {self.holder} has lost its lease: {self._reason}. Nothing more is written; the same "
                "command goes on when the lease is free."
            )

    def renew(self) -> None:
        """Makes it last ``ttl_s`` from now.

        Raises:
            LeaseLost: it was lost already; it can't be had back by renewing.
            StorageError: the store does not answer; it is still held for what is left of ``ttl_s``.
        """
        with self._writing:
            self.check()
            began = self._clock.monotonic()
            note = replace(self._note, beats=self._note.beats + 1)
            try:
                try:
                    self._version = self._documents.replace(self._name, note.encoded(), self._version)
                except WriteConflictError:
                    # A renewal that was given up may have reached the store all the same.
                    self._version = self._documents.replace(self._name, note.encoded(), self._own_version())
            except WriteConflictError:
                self._reason = "another run has taken it"
                self.check()
            self._note, self._renewed = note, began

    def _own_version(self) -> str:
        document = self._documents.read(self._name)
        if document is None or _read(document.content, self._place).token != self._note.token:
            raise WriteConflictError(f"{self._place}: is of another holder.")
        return document.version

    def release(self) -> None:
        """Gives it back, so that the next one need not wait. One that was lost, or whose store is gone, is left to run out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self.ttl_s)
        if not self._writing.acquire(timeout=self.ttl_s):
            return  # a renewal hangs in the store
        try:
            if self._reason is not None:
                return
            self._reason = "it was released"
            note = replace(self._note, held=False)
            with contextlib.suppress(WriteConflictError):
                self._documents.replace(self._name, note.encoded(), self._version)
        except StorageError as error:
            _log.warning("the lease was not released, it runs out lease=%s error=%s", self._place, error)
        finally:
            self._writing.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def _place(self) -> str:
        return f"{self._documents.root}/{self._name}"

    def _start_beating(self) -> None:
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(self.ttl_s / _BEATS_PER_TTL):
            try:
                self.renew()
            except LeaseLost as error:
                _log.error("%s", error)
                return
            except RayMMError as error:
                _log.warning("the lease was not renewed, tried again lease=%s error=%s", self._place, error)


def _read(content: bytes, place: str) -> _Note:
    found = parsed(content, place, _KIND, LEASE_FORMAT)
    try:
        note = _Note(**{key: value for key, value in found.items() if key not in ("format", "version")})
        sound = note.fence >= 1 and note.ttl_s > 0 and isinstance(note.held, bool)
    except TypeError:
        sound = False
    if not sound:
        raise RegistryError(
            f"{place}: is damaged; if no retraining is at work, remove it: the next run makes a new one."
        )
    return note


def _held(place: str, note: _Note, why: str) -> LeaseHeld:
    return LeaseHeld(
        f"{place}: {note.holder} has had the lease since {note.taken}, and {why}; run this again when it has ended, or stop it."
    )
