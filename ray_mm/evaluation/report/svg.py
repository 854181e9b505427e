"""Plots as SVG that the page can style: light, dark, narrow or on paper, and read aloud.

Coordinates are rounded to a tenth; a plot is 400 wide so that its letters are still legible on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 400.0
HEIGHT = 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 18.0, 10.0, 36.0

Range = tuple[float, float]
Format = Callable[[float], str]


def number(value: float) -> str:
    """A value for an axis or a label: four digits at most."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e−").replace("-", "−")
    text = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def figure(value: float) -> str:
    """A value among others of its kind: as many decimals as its size deserves."""
    size = abs(value)
    if size != 0 and (size >= 1e6 or size < 1e-3):
        return number(value)
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share as a percentage, such as ``98.7%``."""
    return f"{100 * value:.1f}%"


def short_percent(value: float) -> str:
    """A share on an axis, such as ``80%``."""
    return f"{100 * value:g}%"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values within a range."""
    if not high > low:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10((high - low) / count))
    found: list[float] = []
    for factor in (1, 2, 2.5, 5, 10):
        step = factor * magnitude
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if not found or abs(last - first + 1 - count) < abs(len(found) - count):
            found = [float(f"{index * step:.12g}") + 0.0 for index in range(first, last + 1)]
    return found


def span(values: Iterable[float], margin: float = 0.05) -> Range:
    """The range of finite values with a margin, never empty."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class Frame:
    """A plot's area and its two linear axes.

    Attributes:
        x_range: values at the left and the right border.
        y_range: values at the lower and the upper border.
    """

    x_range: Range
    y_range: Range
    height: float = HEIGHT

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_format: Format = number,
        y_format: Format = number,
        x_ticks: Sequence[float] | None = None,
    ) -> Markup:
        """Grid lines, ticks and labels; where the horizontal ticks are not given, some round values."""
        parts = [Markup('<g class="grid">')]
        bottom = self.height - _BOTTOM
        for value in ticks(*self.y_range):
            y = _r(self.y(value))
            parts.append(Markup('<path d="M{} {}H{}"/>').format(_LEFT, y, WIDTH - _RIGHT))
            parts.append(
                Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, y_format(value))
            )
        for value in ticks(*self.x_range) if x_ticks is None else x_ticks:
            x = _r(self.x(value))
            parts.append(Markup('<path d="M{} {}v4"/>').format(x, bottom))
            parts.append(
                Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 16, x_format(value))
            )
        parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(_LEFT, bottom, WIDTH - _RIGHT))
        middle = _r((_LEFT + WIDTH - _RIGHT) / 2)
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                middle, self.height - 4, x_label
            )
        )
        parts.append(
            Markup(
                '<text class="label" transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text></g>'
            ).format(_r((_TOP + bottom) / 2), y_label)
        )
        return Markup("").join(parts)

    def line(self, points: Iterable[tuple[float, float]], css: str) -> Markup:
        """A line through points, broken where a value is not finite."""
        return polyline(((self.x(x), self.y(y)) for x, y in points), css)

    def dots(self, points: Sequence[tuple[float, float]], css: str, radius: float = 3) -> Markup:
        """A dot per point."""
        return dots([(self.x(x), self.y(y)) for x, y in points], css, radius)

    def bar(self, low: float, high: float, value: float, css: str, tip: str = "") -> Markup:
        """A bar from 0 to a value between two places of the horizontal axis."""
        x, top, foot = self.x(low), self.y(value), self.y(max(0.0, self.y_range[0]))
        title = Markup("<title>{}</title>").format(tip) if tip else ""
        return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
            css, _r(x + 0.5), _r(top), _r(max(self.x(high) - x - 1, 0.5)), _r(max(foot - top, 0.0)), title
        )


def polyline(points: Iterable[tuple[float, float]], css: str) -> Markup:
    """A line in the coordinates of the picture, broken where a value is not finite."""
    path, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        path.append(f"{pen}{_r(x):g} {_r(y):g}")
        pen = "L"
    return Markup('<path class="{}" d="{}"/>').format(css, "".join(path))


def dots(points: Sequence[tuple[float, float]], css: str, radius: float = 3) -> Markup:
    """A dot per point, as one path of zero-length strokes: a circle element each would take ten times the bytes."""
    path = "".join(f"M{_r(x):g} {_r(y):g}h0" for x, y in points if math.isfinite(x) and math.isfinite(y))
    return Markup('<path class="dots {}" style="stroke-width:{}" d="{}"/>').format(css, f"{2 * radius:g}", path)


def picture(
    parts: Iterable[Markup], title: str, width: float = WIDTH, height: float = HEIGHT, css: str = "plot"
) -> Markup:
    """A whole SVG with a title that is read aloud."""
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        css, f"{width:g}", f"{height:g}", title, Markup("").join(parts)
    )


def _r(value: float) -> float:
    return round(value, 1) + 0.0
