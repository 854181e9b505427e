"""State that several runs share, as one JSON document: compare-and-swap, and a fence against whoever comes too late.

    {"format": "ray_mm.registry", "version": 1, "revision": 12, "fence": 7, ...}

Every change counts ``revision`` up, so that no two states have the same bytes. ``fence`` is the largest fencing token (see
``retraining/lease.py``) that the document has seen: whoever brings a smaller one held the lease before and does not any more.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mm.errors import LeaseLost, RegistryError, WriteConflictError
from ray_mm.storage.conditional import Document, Documents

_ATTEMPTS = 200
_PAUSE_S = 0.02
_OWN_KEYS = ("format", "version", "revision", "fence")

Content = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What a shared document said at one moment.

    Attributes:
        content: of its user; empty before the first write.
        revision: how many writes there were.
        fence: the largest fencing token that it has seen; 0: none yet.
    """

    content: Content
    revision: int
    fence: int


class SharedState:
    """One document that several runs read and change.

    Args:
        documents: where it lies.
        name: of the document.
        kind: of its content, such as ``ray_mm.registry``.
        newest: the newest version of its format that this ray_mm reads, and the one that it writes.
    """

    def __init__(self, documents: Documents, name: str, kind: str, newest: int) -> None:
        self._documents, self._name, self._kind, self._newest = documents, name, kind, newest

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return f"{self._documents.root}/{self._name}"

    def read(self) -> State:
        """What it says now.

        Raises:
            RegistryError: it is damaged, of another kind, or newer.
            StorageError: it can't be read.
        """
        return self._state(self._documents.read(self._name))

    def admit(self, fence: int) -> None:
        """Writes a new holder's fencing token down, before the holder does anything: from now on older ones are refused.

        Raises:
            LeaseLost: a larger one has been here.
            StorageError: it can't be written.
        """
        self.update(lambda content: content, fence)

    def update(self, change: Callable[[Content], Content | None], fence: int | None = None) -> State:
        """Changes it. Where another writer is faster, ``change`` is called again with what that one wrote.

        Args:
            change: content → new content, or None if there is nothing to change. What it raises ends the update; nothing is
                written.
            fence: the fencing token of the lease under which this is done. None: done without a lease, by a person.

        Returns:
            What the document says now.

        Raises:
            LeaseLost: ``fence`` is smaller than one that the document has seen.
            RegistryError: it is damaged, of another kind, or newer.
            StorageError: it can't be read or written.
        """
        for attempt in range(_ATTEMPTS):
            document = self._documents.read(self._name)
            state = self._state(document)
            if fence is not None and fence < state.fence:
                raise LeaseLost(
                    f"{self.place}: was not written. This run took the lease with the number {fence}, and a later one has "
                    f"been here with {state.fence}; it was held up for longer than its lease lasts."
                )
            content = change(self._state(document).content)  # which may be changed in place
            if content is None or (content == state.content and (fence is None or fence == state.fence) and document):
                return state
            new = State(content, state.revision + 1, max(state.fence, fence or 0))
            try:
                self._write(new, document)
            except WriteConflictError:
                time.sleep(random.uniform(0, _PAUSE_S * min(attempt + 1, 25)))
            else:
                return new
        raise WriteConflictError(
            f"{self.place}: was not written, other writers were faster {_ATTEMPTS} times in a row."
        )

    def _write(self, state: State, replaced: Document | None) -> None:
        own = {"format": self._kind, "version": self._newest, "revision": state.revision, "fence": state.fence}
        encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
        # A line per key, for people; indenting all of it would take ten times as long.
        lines = (f"{encoder.encode(key)}: {encoder.encode(value)}" for key, value in {**own, **state.content}.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        if replaced is None:
            self._documents.create(self._name, text.encode())
        else:
            self._documents.replace(self._name, text.encode(), replaced.version)

    def _state(self, document: Document | None) -> State:
        if document is None:
            return State({}, 0, 0)
        content = parsed(document.content, self.place, self._kind, self._newest)
        revision, fence = content.get("revision"), content.get("fence")
        if not isinstance(revision, int) or not isinstance(fence, int):
            raise RegistryError(f"{self.place}: is damaged, it lacks its revision or its fence; put a copy of it back.")
        return State({key: value for key, value in content.items() if key not in _OWN_KEYS}, revision, fence)


def parsed(content: bytes, place: str, kind: str, newest: int) -> Content:
    """A JSON document with ``format`` and ``version``.

    Args:
        content: its bytes.
        place: where it lies, for the error.
        kind: the format that it must have.
        newest: the newest version of it that this ray_mm reads.

    Raises:
        RegistryError: not JSON, of another format, or newer.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise RegistryError(
            f"{place}: is damaged, it can't be read as JSON ({error}); put a copy of it back."
        ) from None
    if not isinstance(found, dict) or found.get("format") != kind:
        name = found.get("format") if isinstance(found, dict) else None
        raise RegistryError(f"{place}: has format {name!r}, expected {kind!r}; name the right folder.")
    version = found.get("version")
    if not isinstance(version, int) or version < 1:
        raise RegistryError(
            f"{place}: has format version {version!r}, expected a number from 1; put a copy of it back."
        )
    if version > newest:
        raise RegistryError(
            f"{place}: was written by a newer version of ray_mm (format version {version}, this one reads 1 to {newest}); "
            "upgrade ray_mm here. Nothing was changed."
        )
    return found
