"""The plots of a search: each key's values against the metric, and every trial over its epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup
from pydantic import JsonValue

from ray_mm.config.tune import Space
from ray_mm.evaluation.report.svg import Format, Frame, Range, figure, number, percent, picture, short_percent, span
from ray_mm.tuning.table import State, Table, Trial

_MAX_LETTERS = 16
_ROOM = 0.06
_FEW = 6
"""So many options, though they be numbers, each have a place of their own."""

Place = Callable[[Any], float]


def key_plot(table: Table, key: str) -> Markup:
    """The best value of every trial over what it had for a key; failed trials have none."""
    space = table.job.search[key]
    best = table.best()
    shown = [trial for trial in table.trials if trial.counts]
    place, ticks, label = _axis(space)
    x_range = _x_range([place(value) for value in _ends(space)], are_options=label is not number and not space.is_log)
    frame = Frame(x_range, _metric_range(table, [_best(table, trial) for trial in shown]))
    parts = [frame.axes(short_name(key), table.job.metric, label, _metric_format(table), x_ticks=ticks)]
    for css, state in (("stopped", State.STOPPED), ("done", State.DONE)):
        chosen = [trial for trial in shown if trial.state is state and trial is not best]
        parts += [_dot(table, frame, place, key, trial, css, 4) for trial in chosen]
    if best is not None:
        parts.append(_dot(table, frame, place, key, best, "best", 6))
    return picture(parts, f"{table.job.metric} of {len(shown)} trials over {key}.")


def curves_plot(table: Table) -> Markup:
    """The metric of every trial over its epochs; where a trial was stopped there is a mark."""
    best = table.best()
    values = [float(line[table.job.metric]) for trial in table.trials for line in trial.validations]
    epochs = max((line["epoch"] for trial in table.trials for line in trial.validations), default=1)
    low, high = _metric_range(table, values)
    frame = Frame((1.0 - (epochs == 1), float(epochs) + (epochs == 1)), (low, high), height=300)
    step = max(1, math.ceil(epochs / 8))
    ticks = [float(epoch) for epoch in range(step if step > 1 else 1, epochs + 1, step)]
    parts = [frame.axes("epoch", f"validation {table.job.metric}", number, _metric_format(table), x_ticks=ticks)]
    for trial in sorted(table.trials, key=lambda trial: (trial is best, trial.state is State.DONE)):
        points = [
            (float(line["epoch"]), min(max(float(line[table.job.metric]), low), high)) for line in trial.validations
        ]
        if not points:
            continue
        css = "best" if trial is best else "failed" if not trial.counts else trial.state.value
        tip = f"trial {trial.number}: {_format(table, _best(table, trial))}, {trial.state.value}"
        parts.append(Markup("<g><title>{}</title>{}").format(tip, frame.line(points, f"line trial {css}")))
        if css in ("stopped", "failed") or len(points) == 1:
            parts.append(frame.dots(points[-1:], f"end {css}", 3))
        parts.append(Markup("</g>"))
    return picture(parts, f"Validation {table.job.metric} of {len(table.trials)} trials over their epochs.", height=300)


def short_name(key: str) -> str:
    """The last words of a key, which tell it from the others as a rule."""
    return ".".join(key.split(".")[-2:])


def value_text(value: JsonValue) -> str:
    """A value of a key in a cell."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        return json.dumps(value)
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def _axis(space: Space) -> tuple[Place, list[float] | None, Format]:
    """Where a value stands on the axis, which values are written there, and how."""
    if space.options is not None:
        options = space.options
        if _are_numbers(options) and len(set(options)) > _FEW:
            return float, None, number

        def option(value: float) -> str:
            text = value_text(options[round(value)])
            return text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 1]}…"

        # Of many options some are written: their letters would run into each other.
        step = math.ceil(len(options) / max(1, int(48 / max(len(value_text(each)) for each in options))))
        return lambda value: float(options.index(value)), [float(i) for i in range(0, len(options), step)], option
    if not space.is_log:
        return float, None, number
    assert space.bounds is not None
    low, high = (math.log10(bound) for bound in space.bounds)
    decades = [float(decade) for decade in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    ticks = decades if len(decades) > 1 else [low, (low + high) / 2, high]
    return lambda value: math.log10(float(value)), ticks, lambda value: number(float(f"{10**value:.2g}"))


def _ends(space: Space) -> Sequence[JsonValue]:
    return space.options if space.options is not None else tuple(space.bounds or ())


def _are_numbers(options: Sequence[JsonValue]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in options)


def _x_range(places: Sequence[float], are_options: bool) -> Range:
    low, high = min(places), max(places)
    # Options have words below them, which need room on both sides.
    room = 0.5 if are_options or high == low else (high - low) * _ROOM
    return low - room, high + room


def _metric_range(table: Table, values: Sequence[float]) -> Range:
    finite = sorted(value for value in values if math.isfinite(value))
    if table.job.higher_is_better:
        low, high = span(finite)
        return max(0.0, low), min(1.0, high)
    # A trial that was far off may tower over all others: the top is where nine in ten lie below.
    low, high = span(finite[: max(1, math.ceil(0.9 * len(finite)))], 0.1)
    return max(0.0, low), high


def _metric_format(table: Table) -> Format:
    return short_percent if table.job.higher_is_better else number


def _format(table: Table, value: float) -> str:
    return percent(value) if table.job.higher_is_better else figure(value)


def _best(table: Table, trial: Trial) -> float:
    return float(table.best_line(trial)[table.job.metric])


def _dot(table: Table, frame: Frame, place: Place, key: str, trial: Trial, css: str, radius: float) -> Markup:
    value = _best(table, trial)
    low, high = frame.y_range
    tip = f"trial {trial.number}: {_format(table, value)} with {value_text(trial.settings[key])}"
    dot = frame.dots([(place(trial.settings[key]), min(max(value, low), high))], f"trial {css}", radius)
    return Markup("<g><title>{}</title>{}</g>").format(tip, dot)
