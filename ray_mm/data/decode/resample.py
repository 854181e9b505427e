"""Sensor streams with times → one series at one rate.

Between two samples a signal is a straight line. A stream that is as slow as the result or slower is read off that line;
a faster one is averaged over the period of each step, exactly, so that what the result can't show does not alias into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_mm.data.decode.error import DecodeError

MAX_STEPS = 10_000_000
"""Longer results are refused: their times are most likely in another unit."""

Floats = npt.NDArray[np.float64]


class Stream(NamedTuple):
    """Samples of one sensor.

    Attributes:
        times: float64 [T], in seconds of any clock that all streams of a sample share; not descending.
        values: float64 [T, C].
    """

    times: Floats
    values: Floats


def align(streams: Sequence[Stream], rate_hz: float, max_steps: int | None = None) -> Floats:
    """All streams at the same times, side by side.

    Args:
        streams: at least one. The result starts when the last of them has started, and ends with the first that ends.
        rate_hz: of the result.
        max_steps: what is beyond is left out.

    Returns:
        float64 [steps, sum of the channels].

    Raises:
        DecodeError: times that descend, or are not as many as there are values; streams that do not overlap.
    """
    for stream in streams:
        require_sound(stream)
    start = max(float(stream.times[0]) for stream in streams)
    stop = min(float(stream.times[-1]) for stream in streams)
    if stop < start:
        raise DecodeError(f"has streams that do not overlap in time: one ends {start - stop:g} s before another starts")
    # Not floor alone: 0.3 s at 10 Hz are four steps, and 0.3 × 10 is a little less than 3.
    steps = (stop - start) * rate_hz + 1e-6
    if steps >= MAX_STEPS and max_steps is None:
        raise DecodeError(f"is {stop - start:g} s long, {steps:.0f} steps at {rate_hz:g} Hz; times must be in seconds")
    count = int(min(steps, max_steps - 1 if max_steps is not None else steps)) + 1
    grid = start + np.arange(count) / rate_hz
    return np.concatenate([_at(stream, grid, 1 / rate_hz) for stream in streams], axis=1)


def require_sound(stream: Stream) -> None:
    """Checks one stream by itself.

    Raises:
        DecodeError: times that descend, or are not as many as there are values; nothing in it, or nothing finite.
    """
    times, values = stream
    if times.shape != (len(values),):
        raise DecodeError(f"has times of shape {list(times.shape)} for {len(values)} steps")
    if len(times) == 0:
        raise DecodeError("the series is empty")
    if not np.isfinite(times).all() or not np.isfinite(values).all():
        raise DecodeError("has values or times that are not finite (NaN or infinity)")
    if (np.diff(times) < 0).any():
        raise DecodeError("has times that go back")


def _at(stream: Stream, grid: Floats, period: float) -> Floats:
    """One stream at the times of the grid: [steps, C]."""
    times, values = stream
    span = float(times[-1] - times[0])
    # A little faster may be rounding, and averaging blurs.
    if len(times) < 3 or span == 0 or (len(times) - 1) * period <= span * 1.001:
        return np.stack([np.interp(grid, times, column) for column in values.T], axis=1)
    low = np.clip(grid - period / 2, times[0], times[-1])
    high = np.clip(grid + period / 2, times[0], times[-1])
    areas = np.diff(times)[:, None] * (values[1:] + values[:-1]) / 2
    before = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(areas, axis=0)])
    width = np.maximum(high - low, np.finfo(np.float64).tiny)[:, None]
    return (_integral(stream, before, high) - _integral(stream, before, low)) / width


def _integral(stream: Stream, before: Floats, x: Floats) -> Floats:
    """The area under the line from the first time to each x: [len(x), C]. ``before``: the same at the stream's times."""
    times, values = stream
    left = np.clip(np.searchsorted(times, x, side="right") - 1, 0, len(times) - 2)
    gap = times[left + 1] - times[left]
    past = x - times[left]
    slope = (values[left + 1] - values[left]) / np.where(gap > 0, gap, 1.0)[:, None]
    result: Floats = before[left] + values[left] * past[:, None] + slope * past[:, None] ** 2 / 2
    return result
