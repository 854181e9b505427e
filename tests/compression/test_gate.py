from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.compression.gate import Measurements, Outcome, describe, judge, metric_drop, speedup_p50
from ray_mm.config.compress import GateConfig

finite = st.floats(min_value=-10, max_value=10)
limits = st.builds(
    GateConfig,
    max_metric_drop=st.floats(min_value=0, max_value=1),
    max_size_ratio=st.floats(min_value=0.01, max_value=2),
    min_speedup=st.floats(min_value=0, max_value=5),
)
batch_sizes = st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def complete(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 64)) -> Measurements:
    return Measurements(
        metric_drop=draw(finite),
        size_ratio=draw(st.floats(min_value=0.01, max_value=2)),
        speedups={size: draw(st.floats(min_value=0.1, max_value=5)) for size in sizes},
        num_quantized=draw(st.integers(0, 20)),
        reloads=draw(st.booleans()),
    )


GOOD = Measurements(metric_drop=0.0, size_ratio=0.3, speedups={1: 2.0, 64: 1.5}, num_quantized=7, reloads=True)
SIZES = (1, 64)
DEFAULT = GateConfig()


def outcome(measurements: Measurements, config: GateConfig = DEFAULT) -> Outcome:
    return judge(measurements, config, SIZES).outcome


def test_an_artifact_within_every_limit_passes() -> None:
    assert outcome(GOOD) is Outcome.PASSED


def test_a_value_exactly_at_its_limit_passes_whatever_rounding_did_to_it() -> None:
    assert outcome(dataclasses.replace(GOOD, metric_drop=0.98 - 0.97)) is Outcome.PASSED
    assert outcome(dataclasses.replace(GOOD, size_ratio=0.35)) is Outcome.PASSED
    assert outcome(dataclasses.replace(GOOD, speedups={1: 1.0, 64: 1.0})) is Outcome.PASSED


@pytest.mark.parametrize(
    "worse",
    [
        {"metric_drop": 0.0101},
        {"size_ratio": 0.351},
        {"speedups": {1: 3.0, 64: 0.99}},
        {"num_quantized": 0},
        {"reloads": False},
    ],
)
def test_one_criterion_beyond_its_limit_refuses_and_is_named(worse: dict[str, object]) -> None:
    verdict = judge(dataclasses.replace(GOOD, **worse), GateConfig(), SIZES)
    assert verdict.outcome is Outcome.REFUSED
    assert len(verdict.missed) == 1
    assert describe(verdict).count("MISSED") == 1


@given(complete(), limits, st.sampled_from(["metric_drop", "size_ratio", "num_quantized", "reloads"]))
def test_what_was_not_measured_refuses(measured: Measurements, config: GateConfig, name: str) -> None:
    assert outcome(dataclasses.replace(measured, **{name: None}), config) is Outcome.REFUSED


@given(
    complete(), limits, st.sampled_from(["metric_drop", "size_ratio"]), st.sampled_from([math.nan, math.inf, -math.inf])
)
def test_what_is_not_a_finite_number_refuses(
    measured: Measurements, config: GateConfig, name: str, value: float
) -> None:
    assert outcome(dataclasses.replace(measured, **{name: value}), config) is Outcome.REFUSED


@given(complete(), limits, st.sampled_from([None, math.nan, math.inf]), st.sampled_from(SIZES))
def test_a_batch_size_without_a_latency_refuses(
    measured: Measurements, config: GateConfig, value: float | None, size: int
) -> None:
    assert (
        outcome(dataclasses.replace(measured, speedups={**measured.speedups, size: value}), config) is Outcome.REFUSED
    )
    left = {key: ratio for key, ratio in measured.speedups.items() if key != size}
    assert outcome(dataclasses.replace(measured, speedups=left), config) is Outcome.REFUSED


@given(complete(), limits, finite.map(abs), st.floats(0, 1), st.floats(0, 2), st.integers(0, 20))
def test_a_better_artifact_never_fares_worse(
    measured: Measurements, config: GateConfig, less_drop: float, less_size: float, more_speed: float, more_ops: int
) -> None:
    assert measured.metric_drop is not None and measured.size_ratio is not None and measured.num_quantized is not None
    better = Measurements(
        metric_drop=measured.metric_drop - less_drop,
        size_ratio=measured.size_ratio - less_size,
        speedups={size: (ratio or 0) + more_speed for size, ratio in measured.speedups.items()},
        num_quantized=measured.num_quantized + more_ops,
        reloads=True,
    )
    before = {check.criterion for check in judge(measured, config, SIZES).missed}
    after = {check.criterion for check in judge(better, config, SIZES).missed}
    assert after <= before


@given(complete(), limits, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_wider_limits_never_refuse_more(
    measured: Measurements, config: GateConfig, drop: float, size: float, speed: float
) -> None:
    wider = GateConfig(
        max_metric_drop=min(1.0, config.max_metric_drop + drop),
        max_size_ratio=config.max_size_ratio + size,
        min_speedup=max(0.0, config.min_speedup - speed),
    )
    before = {check.criterion for check in judge(measured, config, SIZES).missed}
    after = {check.criterion for check in judge(measured, wider, SIZES).missed}
    assert after <= before


@given(complete(), limits, batch_sizes)
def test_the_outcome_is_the_conjunction_of_the_checks(
    measured: Measurements, config: GateConfig, sizes: tuple[int, ...]
) -> None:
    verdict = judge(measured, config, sizes)
    assert (verdict.outcome is Outcome.PASSED) == all(check.passed for check in verdict.checks)
    assert len(verdict.checks) == 4 + len(sizes)
    for check in verdict.checks:
        assert check.passed == (check.missed_by == 0.0)


def test_a_classifier_loses_what_its_accuracy_loses() -> None:
    assert metric_drop("classify", {"accuracy": 0.9}, {"accuracy": 0.85}) == pytest.approx(0.05)
    assert metric_drop("classify", {"accuracy": 0.9}, {"accuracy": 0.95}) == pytest.approx(-0.05)
    assert metric_drop("multilabel", {"micro_f1": 0.9}, {"micro_f1": 0.85}) == pytest.approx(0.05)


def test_a_regression_loses_the_relative_rise_of_its_error() -> None:
    assert metric_drop("regress", {"rmse": 2.0}, {"rmse": 2.1}) == pytest.approx(0.05)
    assert metric_drop("regress", {"rmse": 0.0}, {"rmse": 0.0}) == 0.0
    assert metric_drop("regress", {"rmse": 0.0}, {"rmse": 0.1}) is None


@given(
    st.sampled_from(["classify", "multilabel", "regress"]), st.sampled_from([None, math.nan, math.inf]), st.booleans()
)
def test_a_missing_metric_gives_no_drop(task: str, value: float | None, first: bool) -> None:
    name = {"classify": "accuracy", "multilabel": "micro_f1", "regress": "rmse"}[task]
    pair = ({name: value}, {name: 0.5}) if first else ({name: 0.5}, {name: value})
    assert metric_drop(task, *pair) is None
    assert metric_drop(task, {}, {name: 0.5}) is None


def test_the_speedup_is_the_smallest_over_the_batch_sizes() -> None:
    assert speedup_p50(GOOD) == 1.5
    assert speedup_p50(Measurements()) is None
    assert speedup_p50(Measurements(speedups={1: 2.0, 64: None})) is None


def test_the_description_says_by_how_much_a_limit_was_missed() -> None:
    text = describe(judge(dataclasses.replace(GOOD, size_ratio=0.5, metric_drop=None), GateConfig(), SIZES))
    assert "size_ratio" in text and "MISSED by 0.15" in text
    assert "not measured" in text
