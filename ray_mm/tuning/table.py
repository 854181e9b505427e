"""The trials of a search: what was drawn, how each stands, and how good it is. All that a search needs to go on.

<search>/trials.json    {"format", "version", "trials": [{"number", "settings", "state", "reason", "epoch"}]}
<search>/trials/0003/   the run of trial 3: an ordinary training, whose metrics.jsonl has its validations
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ray_mm.config.search import Settings
from ray_mm.config.tune import TuneJob
from ray_mm.errors import OutputFolderError
from ray_mm.storage import write_json
from ray_mm.training.tracking import read_metrics
from ray_mm.training.worker import is_better

TABLE_FILE = "trials.json"
_FORMAT, _VERSION = "ray_mm.trials", 1


class State(str, Enum):
    """How a trial stands."""

    BEGUN = "begun"
    """It is being trained, or was when the search was interrupted."""
    DONE = "done"
    STOPPED = "stopped"
    """Before its end, because others were better."""
    FAILED = "failed"
    DIVERGED = "diverged"
    """Its loss became infinite: a failure that would only come again."""


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: from 1.
        settings: key of the train job → value.
        state: how it stands.
        reason: why it was stopped, or failed.
        epoch: after which it was stopped.
        validations: by epoch, from 1.
    """

    number: int
    settings: Settings
    state: State = State.BEGUN
    reason: str = ""
    epoch: int | None = None
    validations: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def folder(self) -> str:
        """Of its run, relative to the search."""
        return f"trials/{self.number:04d}"

    @property
    def counts(self) -> bool:
        """Whether it can be the best: a failed one has no weights that anybody should use."""
        return self.state in (State.DONE, State.STOPPED) and bool(self.validations)


class Table:
    """The trials of one search, on disk after every change of how one stands.

    Args:
        job: the search.
        folder: of the search.

    Raises:
        OutputFolderError: the table is damaged, or newer.
    """

    def __init__(self, job: TuneJob, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self._trials: dict[int, Trial] = {}
        for row in _read_rows(folder / TABLE_FILE):
            trial = Trial(row["number"], row["settings"], State(row["state"]), row["reason"], row["epoch"])
            self._trials[trial.number] = replace(trial, validations=_validations(self.run(trial)))

    @property
    def trials(self) -> list[Trial]:
        """By number."""
        return [trial for _, trial in sorted(self._trials.items())]

    def trial(self, number: int) -> Trial:
        """One of them."""
        return self._trials[number]

    def run(self, trial: Trial) -> Path:
        """The folder of a trial's run."""
        return self.folder / trial.folder

    def begin(self, settings: Mapping[str, JsonValue]) -> Trial:
        """A new trial, with the next number."""
        trial = Trial(max(self._trials, default=0) + 1, dict(settings))
        self._put(trial)
        return trial

    def settle(self, number: int, state: State, reason: str = "", epoch: int | None = None) -> None:
        """Says how a trial stands now."""
        self._put(replace(self.trial(number), state=state, reason=reason, epoch=epoch))

    def add_validation(self, number: int, line: Mapping[str, Any]) -> None:
        """One more validation of a trial; it stands in the run's own metrics already."""
        trial = self.trial(number)
        self._trials[number] = replace(trial, validations=(*trial.validations, line))

    def value_after(self, trial: Trial, epoch: int | None = None) -> float | None:
        """The best value that a trial had after so many epochs, or has now; None where it has not come as far."""
        found = [float(line[self.job.metric]) for line in trial.validations if epoch is None or line["epoch"] <= epoch]
        if not found or (epoch is not None and trial.validations[-1]["epoch"] < epoch):
            return None
        return max(found) if self.job.higher_is_better else min(found)

    def best_line(self, trial: Trial) -> Mapping[str, Any]:
        """Of a trial that has validations, the one whose weights are published."""
        best: Mapping[str, Any] = {}
        for line in trial.validations:
            if is_better(self.job.train, dict(line), dict(best)):
                best = line
        return best

    def ranked(self) -> list[Trial]:
        """The best first; those without a value, or that failed, last."""
        sign = -1 if self.job.higher_is_better else 1

        def place(trial: Trial) -> tuple[bool, float, float, int]:
            if not trial.validations:
                return True, 0.0, 0.0, trial.number
            line = self.best_line(trial)
            return not trial.counts, sign * line[self.job.metric], line["loss"], trial.number

        return sorted(self.trials, key=place)

    def best(self) -> Trial | None:
        """The best of those that were trained or stopped."""
        return next((trial for trial in self.ranked() if trial.counts), None)

    def count(self, *states: State) -> int:
        """How many stand so."""
        return sum(trial.state in states for trial in self._trials.values())

    def _put(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        rows = [
            {
                "number": each.number,
                "settings": each.settings,
                "state": each.state.value,
                "reason": each.reason,
                "epoch": each.epoch,
            }
            for each in self.trials
        ]
        write_json(self.folder / TABLE_FILE, {"format": _FORMAT, "version": _VERSION, "trials": rows})


def _validations(run: Path) -> tuple[Mapping[str, Any], ...]:
    # What was written past the checkpoint that a trial goes on from comes again, and is the same.
    found = {line["epoch"]: line for line in read_metrics(run) if line["kind"] == "validation"}
    return tuple(line for _, line in sorted(found.items()))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == _FORMAT and content["version"] > _VERSION:
            raise OutputFolderError(
                f"{path}: has version {content['version']}, this ray_mm reads version {_VERSION}; upgrade ray_mm."
            )
        rows: list[dict[str, Any]] = content["trials"]
        for row in rows:
            State(row["state"])
            row["number"], row["settings"], row["reason"], row["epoch"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputFolderError(
            f"{path}: can't be read ({error}); the trials beside it are whole. Choose another output, or remove that folder."
        ) from None
    return rows
