"""A search while it runs: hands out trials, hears of their validations and ends, decides. Ray Tune calls; nothing here is Ray.

A trial is never killed: it is asked to end by the stop sign of its run (see ``training.stopping``), saves its state and ends, and
can be gone on with by hand.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ray_mm import figures
from ray_mm.config.search import num_trials
from ray_mm.config.tune import AshaMethod, TuneJob
from ray_mm.progress import Progress
from ray_mm.training.stopping import Ask, StopSign
from ray_mm.tuning.draw import next_settings
from ray_mm.tuning.halving import Decision, judge
from ray_mm.tuning.table import State, Table, Trial

_log = logging.getLogger(__name__)


class Search:
    """What is decided while trials run.

    Args:
        job: the search.
        table: its trials so far; those that were begun go on first.
        sign: asks the whole search to end.
        bar: counts the trials that have ended.
        clock: seconds, monotonic.
    """

    def __init__(
        self, job: TuneJob, table: Table, sign: StopSign, bar: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._table = table
        self._sign = sign
        self._bar = bar
        self._clock = clock
        self._waiting = [trial.number for trial in table.trials if trial.state in (State.BEGUN, State.FAILED)]
        self._running: set[int] = set()
        self._stopping: dict[int, tuple[int, str]] = {}
        self._failed_now = 0
        self._handed_at: dict[int, float] = {}
        self._seen_at: dict[int, float] = {}
        # Seconds from a trial's start to its first epoch, and from one epoch to the next.
        self._firsts: list[float] = []
        self._gaps: list[float] = []
        bar.foretell, bar.tells_rate = self.seconds_left, False

    @property
    def num_left(self) -> int:
        """Trials that are not handed out yet."""
        return len(self._waiting) + max(0, num_trials(self._job) - len(self._table.trials))

    @property
    def has_failed(self) -> bool:
        """Whether more trials have failed than may."""
        return self._table.count(State.FAILED, State.DIVERGED) > self._job.max_failed_trials and self._failed_now > 0

    @property
    def was_asked_to_end(self) -> bool:
        """Whether somebody else wants it to end."""
        return self._sign.seen() is Ask.STOP

    def next_trial(self) -> Trial | None:
        """The next trial to be trained; None where there is none left, or no more are wanted."""
        if self.has_failed or self.was_asked_to_end or not self.num_left:
            return None
        if self._waiting:
            trial = self._table.trial(self._waiting.pop(0))
            if trial.state is State.FAILED:
                self._table.settle(trial.number, State.BEGUN)
        else:
            trial = self._table.begin(next_settings(self._job, self._table))
        self._running.add(trial.number)
        self._handed_at[trial.number] = self._clock()
        self._show()
        return self._table.trial(trial.number)

    def validated(self, number: int, line: Mapping[str, Any]) -> None:
        """A trial has finished an epoch: it goes on, or is asked to end."""
        self._table.add_validation(number, line)
        now = self._clock()
        if number in self._seen_at:
            self._gaps.append(now - self._seen_at[number])
        elif number in self._handed_at:
            self._firsts.append(now - self._handed_at[number])
        self._seen_at[number] = now
        epoch = int(line["epoch"])
        reason = self._reason_to_stop(number, epoch)
        if reason is not None:
            self._stopping[number] = (epoch, reason)
        self._show()

    def ended(self, number: int, state: State | None, reason: str = "") -> None:
        """A trial has ended.

        Args:
            number: of the trial.
            state: how; None: it was asked to, and has saved its state.
            reason: of a failure.
        """
        self._running.discard(number)
        asked = self._stopping.pop(number, None)
        if state is not None:
            self._table.settle(number, state, reason)
            self._failed_now += state in (State.FAILED, State.DIVERGED)
            if reason:
                self._bar.note(f"trial {number} failed: {reason}")
        elif asked is not None:
            epoch, reason = asked
            self._table.settle(number, State.STOPPED, reason, epoch)
            self._bar.note(f"trial {number} was stopped: {reason}")
        elif not (self.was_asked_to_end or self.has_failed):
            self._table.settle(number, State.STOPPED, "its .stop file was put there by hand", self._epochs(number))
        else:
            self._show()
            return
        self._show(ended=1)

    def keep_signs(self) -> None:
        """Asks trials to end that shall. Again and again: a training that is just starting takes an old sign away."""
        everybody = self.was_asked_to_end or self.has_failed
        for number in self._running if everybody else self._stopping:
            sign = self._run(number) / ".stop"
            if sign.parent.is_dir() and not sign.exists():
                sign.touch()

    def seconds_left(self) -> float | None:
        """How long the rest will take; None before this command has seen a trial go from one epoch to the next.

        A trial is taken to need as many epochs as those that have ended: with ``asha`` most are short.
        """
        whole = self._job.train.train.epochs
        if not self._firsts or not (self._gaps or whole == 1):
            return None
        first, gap = fmean(self._firsts), fmean(self._gaps) if self._gaps else 0.0
        ended = [len(trial.validations) for trial in self._table.trials if trial.state in (State.DONE, State.STOPPED)]
        usual = fmean(ended) if ended else float(whole)
        coming = [usual] * max(0, num_trials(self._job) - len(self._table.trials))
        coming += [usual - self._epochs(number) for number in self._waiting]
        coming += [usual - self._epochs(number) for number in self._running if number not in self._seen_at]
        going = [usual - self._epochs(number) for number in self._running if number in self._seen_at]
        seconds = sum(first + max(left - 1, 0.0) * gap for left in coming) + sum(max(left, 1.0) * gap for left in going)
        return seconds / max(1, len(self._running))

    def _reason_to_stop(self, number: int, epoch: int) -> str | None:
        method, table, trial = self._job.method, self._table, self._table.trial(number)
        value = table.value_after(trial, epoch)
        if not isinstance(method, AshaMethod) or value is None:
            return None
        found = [
            (other.number, table.value_after(other, epoch))
            for other in table.trials
            if other.number != number and other.state not in (State.FAILED, State.DIVERGED)
        ]
        others = [value for _, value in found if value is not None]
        judged = judge(
            epoch,
            value,
            others,
            grace=method.grace,
            reduction=method.reduction,
            epochs=self._job.train.train.epochs,
            higher=self._job.higher_is_better,
        )
        if judged.decision is not Decision.STOPS:
            return None
        edge = sorted(others, reverse=self._job.higher_is_better)[judged.kept - 1]
        metric = self._job.metric
        kept = "the best goes on" if judged.kept == 1 else f"the best {judged.kept} go on"
        return (
            f"after epoch {epoch} its {figures.label(metric)} of {figures.text(metric, value)} was number {judged.rank} of the "
            f"{judged.compared} trials that had come as far; {kept}, which took {figures.text(metric, edge)}"
        )

    def _show(self, ended: int = 0) -> None:
        shown: dict[str, float | int | str] = {"running": len(self._running)}
        for name, states in (("stopped", (State.STOPPED,)), ("failed", (State.FAILED, State.DIVERGED))):
            if count := self._table.count(*states):
                shown[name] = count
        best = self._table.best() or next((trial for trial in self._table.ranked() if trial.validations), None)
        if best is not None:
            value = self._table.best_line(best)[self._job.metric]
            shown["best"] = f"{figures.text(self._job.metric, value)} (trial {best.number})"
        self._bar.shown.clear()  # else what comes later stands behind the best
        self._bar.advance(ended, **shown)

    def _epochs(self, number: int) -> int:
        return len(self._table.trial(number).validations)

    def _run(self, number: int) -> Path:
        return self._table.run(self._table.trial(number))
