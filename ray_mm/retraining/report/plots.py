"""The plots of the history: figures of champion and challenger, new samples and seconds, night after night."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ray_mm.config.tasks import HIGHER_IS_BETTER
from ray_mm.evaluation.report.svg import Frame, number, percent, picture, short_percent, span

_MAX_TICKS = 8


def scores_plot(nights: Sequence[Mapping[str, Any]], metric: str, where: str) -> Markup:
    """The figure of both models on one dataset; a challenger that lost is a hollow mark.

    Args:
        nights: those that trained, in order: ``status``, ``day``, and ``scores``.
        metric: of the scores.
        where: ``frozen`` or ``newest``.
    """
    values = [
        value
        for night in nights
        for model in night["scores"].get(where, {}).values()
        for value in model.values()
        if value is not None
    ]
    share = metric in HIGHER_IS_BETTER
    low, high = span(values, 0.08)
    frame = Frame(_x_range(nights), (max(0.0, low), min(1.0, high)) if share else (max(0.0, low), high))
    shown = percent if share else number
    parts = [frame.axes("", metric, _day(nights), short_percent if share else number, _ticks(nights))]
    tasks = sorted({name for night in nights for name in night["scores"].get(where, {}).get("challenger", {})})
    for task in tasks:
        champion = [_value(night, where, "champion", task) for night in nights]
        parts.append(frame.line(((place, value) for place, value in enumerate(champion)), "line reference"))
        parts.append(frame.dots([(place, value) for place, value in enumerate(champion)], "champion", 2.5))
        for place, night in enumerate(nights):
            value = _value(night, where, "challenger", task)
            if math.isfinite(value):
                tip = f"{night['day']}: {task + ' ' if task else ''}{shown(value)}, {night['status']}"
                dot = frame.dots([(float(place), value)], f"challenger {night['status']}", 4)
                parts.append(Markup("<g><title>{}</title>{}</g>").format(tip, dot))
    return picture(parts, f"{metric} of champion and challenger over {len(nights)} nights, on the {where} samples.")


def bars_plot(nights: Sequence[Mapping[str, Any]], key: str, label: str) -> Markup:
    """A bar per night.

    Args:
        nights: all, in order.
        key: of what is drawn.
        label: of the axis.
    """
    top = max((float(night[key]) for night in nights), default=0.0) or 1.0
    frame = Frame(_x_range(nights), (0.0, top * 1.05))
    parts = [frame.axes("", label, _day(nights), number, _ticks(nights))]
    for place, night in enumerate(nights):
        tip = f"{night['day']}: {number(float(night[key]))}, {night['status']}"
        parts.append(frame.bar(place - 0.4, place + 0.4, float(night[key]), f"bar {night['status']}", tip))
    return picture(parts, f"{label} over {len(nights)} nights.")


def _value(night: Mapping[str, Any], where: str, who: str, task: str) -> float:
    value = night["scores"].get(where, {}).get(who, {}).get(task)
    return math.nan if value is None else float(value)


def _x_range(nights: Sequence[Any]) -> tuple[float, float]:
    return -0.6, max(len(nights) - 1, 0) + 0.6


def _ticks(nights: Sequence[Any]) -> list[float]:
    return [float(place) for place in range(0, len(nights), max(1, math.ceil(len(nights) / _MAX_TICKS)))]


def _day(nights: Sequence[Mapping[str, Any]]) -> Any:
    return lambda place: nights[round(place)]["day"][5:]
