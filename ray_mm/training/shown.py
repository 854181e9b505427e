"""Lines of ``metrics.jsonl`` → the bar of a training, and a line that stays for every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ray_mm.config.tasks import FIGURES
from ray_mm.figures import size
from ray_mm.progress import Progress

_METRICS = frozenset(task.main for task in FIGURES.values()) - {"loss"}
"""Of a validation: one of them is there; of several tasks one of each, behind its name."""

_LINES = 20
"""That the pace is taken from."""
_SHARE_OF_A_STEP = 1 / 3
"""That a batch of a validation takes, before one was timed: it has no gradient."""

_WAITING = "data_wait"
_MUCH_WAITING = 0.1
"""Share of the time. From here on a training would gain from faster reading, and that is told before all but the loss."""


class ShownTraining:
    """Brings a bar to where the metrics are.

    Args:
        bar: with the steps that an earlier run did as ``done``.
        epochs: of the whole training.
        validation_batches: of the validation that an epoch ends with; 0: there is none.
        clock: seconds since 1970.
    """

    def __init__(
        self, bar: Progress, epochs: int, validation_batches: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._bar = bar
        self._epochs = epochs
        self._validation_batches = validation_batches
        self._clock = clock
        self._last: Mapping[str, Any] = {}
        self._step_s: float | None = None
        self._validation_s: float | None = None
        bar.foretell = self._seconds_left
        # What an earlier run wrote is not told again.
        self._told_step = bar.done
        self._train: Mapping[str, Any] = {}

    def show(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Takes the newest lines, those shown before among them; after a restart of the workers the bar goes back."""
        self._bar.tick()
        if not lines:
            return
        self._take_pace(lines)
        shown: dict[str, float | str] = {}
        for line in lines:
            if line["kind"] == "train":
                shown["loss"] = round(line["loss"], 4)
                if self._train and line["epoch"] > self._train["epoch"] and not self._validation_batches:
                    self._tell(self._train)
                self._train = line
            else:
                shown |= {name: round(line[name], 4) for name in _metrics(line)}
                self._tell(line)
        step = int(lines[-1]["step"])
        if step != self._bar.done:
            # Given anew each time, it stays behind the metric, which comes later.
            for name in ("epoch", _WAITING):
                self._bar.shown.pop(name, None)
            shown["epoch"] = f"{self._train.get('epoch', 1)}/{self._epochs}"
            if self._train.get("data_wait", 0.0) >= _MUCH_WAITING:
                shown[_WAITING] = f"{self._train['data_wait']:.0%}"
            self._bar.details = tuple(_details(self._train))
            self._bar.advance(step - self._bar.done, **shown)
        elif shown.items() - self._bar.shown.items():
            self._bar.advance(0, **shown)

    def _take_pace(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """How long a step takes, and a validation."""
        self._last = lines[-1]
        steps, seconds = 0, 0.0
        for before, line in list(pairwise(lines))[-_LINES:]:
            taken = line["time"] - before["time"]
            if line["kind"] == "validation":
                self._validation_s = taken
            elif before["kind"] == "train" and line["step"] > before["step"] and "first_batch_s" not in line:
                steps, seconds = steps + line["step"] - before["step"], seconds + taken
        if steps:
            self._step_s = seconds / steps

    def _seconds_left(self) -> float | None:
        """The steps and the validations that are left, at the pace of the last ones."""
        rate = self._bar.rate()
        step_s = self._step_s or (1 / rate if rate else None)
        if step_s is None or self._bar.total is None:
            return None
        seconds = max(self._bar.total - self._bar.done, 0) * step_s
        if self._validation_batches and self._last:
            of_one = self._validation_s
            if of_one is None:
                of_one = _SHARE_OF_A_STEP * step_s * self._validation_batches
            is_over = self._last["kind"] == "validation"
            left = self._epochs - self._last["epoch"] + (not is_over)
            # Of the one that is under way, a part is done.
            going = not is_over and "epoch_loss" in self._last
            done = min(of_one, max(0.0, self._clock() - self._last["time"])) if going else 0.0
            seconds += left * of_one - done
        return seconds

    def end(self) -> None:
        """After the last lines."""
        if not self._validation_batches and self._train:
            self._tell(self._train)

    def _tell(self, line: Mapping[str, Any]) -> None:
        """The line that stays, once for each epoch.

        Args:
            line: its validation, or where there is none the last of its training, which tells of the whole epoch.
        """
        # Of the whole epoch: its last steps alone may be two samples.
        is_over = self._train.get("epoch") == line["epoch"] and "epoch_loss" in self._train
        if line["step"] <= self._told_step or (line["kind"] == "train" and not is_over):
            return
        self._told_step = line["step"]
        parts = []
        if is_over:
            parts.append(f"loss {self._train['epoch_loss']:.4g}")
        if line["kind"] == "validation":
            parts.append(f"validation loss {line['loss']:.4g}")
            parts += [f"{name} {line[name]:.4g}" for name in _metrics(line)]
        if is_over:
            parts.append(f"{self._train['epoch_samples_per_s']:,.0f} samples/s")
            if self._train["epoch_data_wait"] >= _MUCH_WAITING:
                parts.append(f"waited for data {self._train['epoch_data_wait']:.0%} of the time")
        self._bar.note(f"epoch {line['epoch']}/{self._epochs}: {', '.join(parts)}")


def _metrics(line: Mapping[str, Any]) -> list[str]:
    return [name for name in line if name.rpartition(".")[2] in _METRICS]


def _details(line: Mapping[str, Any]) -> Iterator[str]:
    """What a line of a training says beside its loss, what matters most first."""
    if "samples_per_s" in line:
        yield f"{_short(line['samples_per_s'])} samples/s"
    if line.get("data_wait", 1.0) < _MUCH_WAITING:
        yield f"data wait {line['data_wait']:.0%}"
    if "mfu" in line:
        yield f"MFU {line['mfu']:.0%}"
    elif "flops_per_s" in line:
        yield "MFU unknown"
    if "device_memory_bytes" in line:
        yield f"GPU memory {size(line['device_memory_bytes'])} ({line['device_memory']:.0%})"
    for name in ("tokens", "pixels"):
        if f"{name}_per_s" in line:
            yield f"{_short(line[f'{name}_per_s'])} {name}/s"


def _short(value: float) -> str:
    """Such as ``312``, ``45.1k`` or ``15.6M``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):.1f}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
