"""Who trained what: every rank writes down the positions of every batch that it has trained on.

    <run>/ledger/attempt-0001-rank-0000.jsonl   [item, start, stop, [quarantined positions]]  after each optimizer step

An attempt is one start of the workers. What it did from the item on at which a later attempt began was lost and done
again, so that part of its ledger no longer counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ray_mm.data.plan import Schedule


@dataclass(frozen=True)
class Entry:
    """A rank's share of one optimizer step: positions ``start`` … ``stop`` − 1 of its epoch."""

    item: int
    start: int
    stop: int
    quarantined: tuple[int, ...]


class Ledger:
    """Writes one rank's entries of one attempt."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Line buffered: what a checkpoint covers must be on file before the checkpoint is.
        self._stream = (folder / f"attempt-{attempt:04d}-rank-{rank:04d}.jsonl").open("w", buffering=1)

    def write(self, entry: Entry) -> None:
        """Appends one entry."""
        self._stream.write(json.dumps([entry.item, entry.start, entry.stop, list(entry.quarantined)]) + "\n")

    def close(self) -> None:
        """No more entries."""
        self._stream.close()


@dataclass(frozen=True)
class EpochAudit:
    """How often each position of an epoch was trained on and quarantined, int64 [num_samples] each."""

    trained: npt.NDArray[np.int64]
    quarantined: npt.NDArray[np.int64]

    @property
    def exact(self) -> bool:
        """Whether every planned sample was met exactly once."""
        return bool((self.trained + self.quarantined == 1).all())


def audit(folder: Path, schedule: Schedule, attempt_starts: dict[int, int]) -> list[EpochAudit]:
    """Counts what the surviving part of every attempt did, epoch by epoch.

    Args:
        folder: the ledger.
        schedule: the whole training.
        attempt_starts: attempt → first item, from the run's ``attempts/`` (see ``training.state``).
    """
    epochs = [
        EpochAudit(np.zeros(schedule.train_samples, np.int64), np.zeros(schedule.train_samples, np.int64))
        for _ in range(schedule.epochs)
    ]
    attempts = sorted(attempt_starts)
    for place, attempt in enumerate(attempts):
        # Not only the next: where its checkpoints were damaged, the one after it may have begun further back.
        end = min((attempt_starts[later] for later in attempts[place + 1 :]), default=schedule.num_items)
        for path in folder.glob(f"attempt-{attempt:04d}-rank-*.jsonl"):
            for entry in read_entries(path):
                if entry.item >= end:
                    continue
                epoch = epochs[schedule.item(entry.item).epoch]
                epoch.trained[entry.start : entry.stop] += 1
                for position in entry.quarantined:
                    epoch.trained[position] -= 1
                    epoch.quarantined[position] += 1
    return epochs


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of one file; a last line that was cut short by a kill is left out."""
    for line in path.read_text().splitlines():
        try:
            item, start, stop, quarantined = json.loads(line)
        except ValueError:
            continue
        yield Entry(item, start, stop, tuple(quarantined))
