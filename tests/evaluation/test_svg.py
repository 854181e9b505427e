"""Axes and numbers of plots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ray_mm.evaluation.report.svg import figure, number, span, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * max(abs(low), 1):
        return
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in found)
    assert found == sorted(found)


def test_ticks_and_ranges_of_nothing_are_still_ranges() -> None:
    assert ticks(3, 3) == [3]
    assert span([]) == (0.0, 1.0)
    low, high = span([5.0, float("nan")])
    assert low < 5 < high


def test_numbers_have_the_decimals_that_their_size_deserves() -> None:
    assert [figure(value) for value in (0.0, 0.1234, 12.345, 123.45, 12345.6, -0.5)] == [
        "0.000",
        "0.123",
        "12.35",
        "123.5",
        "12,346",
        "−0.500",
    ]
    assert [number(value) for value in (0, 0.25, 1e-5, 1234567, -2)] == ["0", "0.25", "1.0e−5", "1.2e6", "−2"]
