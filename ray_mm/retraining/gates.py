"""Metrics of champion and challenger on the same two datasets + limits → a verdict. Pure; what was not measured is missed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_mm.compression.gate import Check, Verdict, drop_of, judged
from ray_mm.config.retrain import Gates, Limits
from ray_mm.config.tasks import FIGURES, HIGHER_IS_BETTER, SeveralTask, TaskConfig


@dataclass(frozen=True)
class Scores:
    """What two models reached on one dataset: ``metrics`` of their evaluations.

    Attributes:
        challenger: the new model's.
        champion: None: there is no champion.
    """

    challenger: Mapping[str, Any]
    champion: Mapping[str, Any] | None


def judge(scores: Mapping[str, Scores], config: Gates, task: TaskConfig, compressed: bool | None) -> Verdict:
    """Whether the challenger becomes the champion.

    Args:
        scores: ``frozen`` and ``newest`` → what was reached there.
        config: the limits.
        task: of both models.
        compressed: what the gate of the compression said; None: nothing is compressed.
    """
    limits = {"frozen": config.frozen, "newest": config.newest}
    checks = [check for name, limit in limits.items() for check in _judge(name, scores.get(name), limit, config, task)]
    if compressed is not None:
        checks.append(judged("compression", float(compressed), 1.0, at_most=False))
    return Verdict(tuple(checks))


def main_figure(task: TaskConfig, config: Gates) -> str:
    """The figure by which models of a task are compared."""
    return config.metric or FIGURES[task.type].gate


def figures_of(metrics: Mapping[str, Any], config: Gates, task: TaskConfig) -> dict[str, float | None]:
    """Task (of one alone the name is empty) → the figure that decides about it."""
    return {name: _value(found, main_figure(each, config)) for name, each, found in _tasks(metrics, task)}


def _judge(place: str, scores: Scores | None, limits: Limits, config: Gates, task: TaskConfig) -> Iterator[Check]:
    challenger = scores.challenger if scores is not None else {}
    champion = scores.champion if scores is not None else None
    for name, each, found in _tasks(challenger, task):
        figure = main_figure(each, config)
        title = f"{place}: {f'{name} ' if name else ''}{figure}"
        value = _value(found, figure)
        if limits.at_least is not None:
            yield judged(title, value, limits.at_least, at_most=figure not in HIGHER_IS_BETTER)
        if champion is None:
            # Nobody to be compared with: it has to be a number at least.
            yield judged(f"{title} is measured", None if value is None else 1.0, 1.0, at_most=False)
            continue
        before = next((kept for other, _, kept in _tasks(champion, task) if other == name), {})
        yield judged(f"{title}, gain", _gain(figure, before, found), limits.min_gain, at_most=False)
        if limits.max_drop_subset is None:
            continue
        theirs, ours = before.get("subsets") or {}, found.get("subsets") or {}
        # All fields together are what the gain is of.
        whole = max(theirs, key=lambda name: name.count("+"), default=None)
        for subset in (name for name in theirs if name != whole):
            drop = drop_of(figure, _value(theirs[subset], figure), _value(ours.get(subset, {}), figure))
            yield judged(f"{title}, drop with only {subset}", drop, limits.max_drop_subset, at_most=True)


def _tasks(metrics: Mapping[str, Any], task: TaskConfig) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    if isinstance(task, SeveralTask):
        for name, each in task.tasks.items():
            yield name, each, (metrics.get("tasks") or {}).get(name, {})
    else:
        yield "", task, metrics


def _gain(figure: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    """How much better; of an error relative to what it was."""
    drop = drop_of(figure, _value(before, figure), _value(now, figure))
    return None if drop is None else 0.0 - drop


def _value(metrics: Mapping[str, Any], figure: str) -> float | None:
    value = metrics.get(figure)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
