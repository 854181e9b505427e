"""Measurements + limits → a verdict. Pure: the driver measures before and acts after.

It fails closed: what was not measured, or is not a finite number, is missed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_mm.config.compress import GateConfig
from ray_mm.config.tasks import FIGURES, HIGHER_IS_BETTER, SeveralTask, TaskConfig

# Ratios and differences of measured figures carry rounding: 0.98 − 0.97 is 0.010000000000000009.
_ROUNDING = 1e-9


class Outcome(enum.Enum):
    """What the gate decided."""

    PASSED = "passed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Measurements:
    """What is known about an artifact. None: not measured.

    Attributes:
        metric_drop: loss of the main metric, see ``metric_drop``.
        size_ratio: bytes of the artifact's graph over bytes of the checkpoint's weights.
        speedups: batch size → median latency of the original over that of the artifact.
        num_quantized: operators of the graph that run on 8-bit integers.
        reloads: whether the artifact, loaded again from disk, predicted finite values of the right shape.
    """

    metric_drop: float | None = None
    size_ratio: float | None = None
    speedups: Mapping[int, float | None] = field(default_factory=dict)
    num_quantized: int | None = None
    reloads: bool | None = None


@dataclass(frozen=True)
class Check:
    """One criterion: what was measured, the limit, and whether it is met.

    Attributes:
        criterion: its name.
        measured: None where it was not measured or is not a number.
        limit: largest or smallest value that is accepted.
        at_most: whether ``limit`` is the largest value; else it is the smallest.
        passed: whether the measured value meets it.
    """

    criterion: str
    measured: float | None
    limit: float
    at_most: bool
    passed: bool

    @property
    def missed_by(self) -> float | None:
        """How far the measured value is beyond the limit; 0 where it passed, None where nothing was measured."""
        if self.measured is None:
            return None
        return 0.0 if self.passed else abs(self.measured - self.limit)


@dataclass(frozen=True)
class Verdict:
    """What the gate says, criterion by criterion."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """Passed if there is something to judge and every criterion is met."""
        return Outcome.PASSED if self.checks and all(check.passed for check in self.checks) else Outcome.REFUSED

    @property
    def missed(self) -> tuple[Check, ...]:
        """The criteria that are not met."""
        return tuple(check for check in self.checks if not check.passed)


def judge(measurements: Measurements, config: GateConfig, batch_sizes: tuple[int, ...]) -> Verdict:
    """Compares measurements with limits.

    Args:
        measurements: what was measured.
        config: the limits.
        batch_sizes: every batch size whose latency must have been measured.
    """
    checks = [
        judged("metric_drop", measurements.metric_drop, config.max_metric_drop, at_most=True),
        judged("size_ratio", measurements.size_ratio, config.max_size_ratio, at_most=True),
        *(
            judged(f"speedup_p50 at batch {size}", measurements.speedups.get(size), config.min_speedup, at_most=False)
            for size in sorted(set(batch_sizes))
        ),
        judged("quantized operators", measurements.num_quantized, 1, at_most=False),
        judged("reloads and predicts", measurements.reloads, 1, at_most=False),
    ]
    return Verdict(tuple(checks))


def judged(criterion: str, measured: float | None, limit: float, *, at_most: bool) -> Check:
    """One criterion, judged: what was not measured, or is not a finite number, is missed."""
    if measured is None or not math.isfinite(measured):
        return Check(criterion, None, limit, at_most, passed=False)
    value = float(measured)
    passed = value <= limit + _ROUNDING if at_most else value >= limit - _ROUNDING
    return Check(criterion, value, limit, at_most, passed)


def metric_drop(task: str, original: Mapping[str, float | None], artifact: Mapping[str, float | None]) -> float | None:
    """How much of the main metric the artifact lost; negative where it is better.

    Args:
        task: its type; ``classify``: difference of the accuracies. ``regress``: relative rise of the root mean squared error.
        original: overall metrics of the checkpoint.
        artifact: overall metrics of the artifact, on the same data.

    Returns:
        The loss, or None where a metric is missing or not finite, or the error rose from zero.
    """
    name = FIGURES[task].gate
    return drop_of(name, original.get(name), artifact.get(name))


def drop_of(figure: str, before: float | None, after: float | None) -> float | None:
    """How much of a figure was lost; of an error relative to what it was. None where that can't be told."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    if figure in HIGHER_IS_BETTER:
        return before - after
    if before <= 0.0:
        return 0.0 if after == before else None
    return (after - before) / before


def worst_drop(task: TaskConfig, original: Mapping[str, Any], artifact: Mapping[str, Any]) -> float | None:
    """``metric_drop`` of a model; of one with several tasks that of the task that lost the most.

    Args:
        task: of the model.
        original: ``metrics`` of the checkpoint's evaluation.
        artifact: of the artifact's, on the same data.

    Returns:
        None where one of them can't be told.
    """
    if not isinstance(task, SeveralTask):
        return metric_drop(task.type, original, artifact)
    before, after = original.get("tasks", {}), artifact.get("tasks", {})
    drops = [metric_drop(task.tasks[name].type, before[name], after.get(name, {})) for name in before]
    known = [drop for drop in drops if drop is not None]
    return max(known) if known and len(known) == len(drops) else None


def speedup_p50(measurements: Measurements) -> float | None:
    """The smallest speed-up over the batch sizes, or None where one is missing or not finite."""
    values = list(measurements.speedups.values())
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    return min(value for value in values if value is not None)


def describe(verdict: Verdict) -> str:
    """A line per criterion: what was measured, the limit, and by how much it was missed."""
    lines = []
    for check in verdict.checks:
        sign = "≤" if check.at_most else "≥"
        measured = "not measured" if check.measured is None else f"{check.measured:.4g}"
        end = "ok" if check.passed else "MISSED" if check.missed_by is None else f"MISSED by {check.missed_by:.4g}"
        lines.append(f"  {check.criterion:<26} {measured:>12}  {sign} {check.limit:<8.4g} {end}")
    return "\n".join(lines)
