"""How far two histograms are apart: against values that were computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.retraining.drift import Method, drift_of

METHODS: tuple[Method, ...] = ("jensen_shannon", "psi", "chi_square")
counts = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 500), min_size=1)


def test_classes_that_share_nothing_are_one_bit_apart() -> None:
    assert drift_of("jensen_shannon", {"a": 10}, {"b": 3}) == pytest.approx(1.0)
    # Half of them moved: H(¾, ¼) − ½ H(½, ½) = 0.811278 − 0.5.
    assert drift_of("jensen_shannon", {"a": 10}, {"a": 5, "b": 5}) == pytest.approx(0.311278, abs=1e-6)


def test_the_stability_index_is_that_of_the_smoothed_shares() -> None:
    shares = (60.5 / 101, 40.5 / 101), (40.5 / 101, 60.5 / 101)
    expected = sum((now - before) * math.log(now / before) for before, now in zip(*shares, strict=True))
    assert drift_of("psi", {"a": 60, "b": 40}, {"a": 40, "b": 60}) == pytest.approx(expected)


def test_the_chance_is_that_of_pearsons_test() -> None:
    # χ² = 2 (10² / 40 + 5² / 35 + 5² / 25), and with two degrees of freedom p = exp(−χ² / 2).
    found = drift_of("chi_square", {"a": 50, "b": 30, "c": 20}, {"a": 30, "b": 40, "c": 30})
    assert found == pytest.approx(1 - math.exp(-(100 / 40 + 25 / 35 + 25 / 25)))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_can_be_told_without_samples(method: Method) -> None:
    assert drift_of(method, {}, {"a": 1}) is None
    assert drift_of(method, {"a": 1}, {"a": 0}) is None


@given(before=counts, now=counts, method=st.sampled_from(METHODS))
def test_drift_is_finite_never_negative_and_nothing_of_the_same(
    before: dict[str, int], now: dict[str, int], method: Method
) -> None:
    found = drift_of(method, before, now)
    if found is None:
        assert not sum(before.values()) or not sum(now.values())
        return
    assert 0 <= found < math.inf and (method == "psi" or found <= 1)
    assert drift_of(method, now, now) == pytest.approx(0, abs=1e-9)
