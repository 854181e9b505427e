"""Metrics: what the textbook says, and the same to the last bit however the samples are cut and ordered."""

from __future__ import annotations

import math
from dataclasses import astuple
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mm.evaluation.intervals import bootstrap_intervals, ratio_interval, wilson_interval
from ray_mm.evaluation.metrics import (
    NUM_BINS,
    PROBABILITY_FLOOR,
    ClassificationSums,
    ExactSum,
    classification_metrics,
    classification_sums,
    confusion_matrix,
    majority_metrics,
    merge_classification,
    merge_regression,
    no_classification_sums,
    no_regression_sums,
    per_class,
    regression_metrics,
    regression_sums,
    reliability,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 60)
classes = st.integers(2, 7)


def softmax_outputs(seed: int, size: int, num_classes: int, subsets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and float32 probabilities [S, N, C]; some are certain, some labels never occur."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, draw.choice([0.3, 3, 40]), (subsets, size, num_classes))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)
    return draw.integers(0, draw.integers(1, num_classes + 1), size), probabilities


def sums_of(labels: np.ndarray, probabilities: np.ndarray) -> ClassificationSums:
    true = np.take_along_axis(probabilities, np.broadcast_to(labels[None, :, None], (*probabilities.shape[:2], 1)), 2)
    return classification_sums(
        labels, probabilities.argmax(-1), probabilities.max(-1), true[..., 0], probabilities.shape[-1]
    )


def plain_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The definitions, sample by sample and class by class."""
    predictions, confidence = probabilities.argmax(-1), probabilities.max(-1).astype(np.float64)
    scores = []
    for one in sorted({*labels.tolist(), *predictions.tolist()}):
        hits = int(((labels == one) & (predictions == one)).sum())
        wrong_hits, missed = (
            int(((labels != one) & (predictions == one)).sum()),
            int(((labels == one) & (predictions != one)).sum()),
        )
        scores.append(2 * hits / (2 * hits + wrong_hits + missed))
    ece = 0.0
    for index in range(NUM_BINS):
        inside = (confidence > index / NUM_BINS) & (confidence <= (index + 1) / NUM_BINS)
        if inside.any():
            ece += inside.mean() * abs((labels == predictions)[inside].mean() - confidence[inside].mean())
    true = np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), PROBABILITY_FLOOR)
    return {
        "accuracy": float((labels == predictions).mean()),
        "macro_f1": float(np.mean(scores)),
        "ece": ece,
        "log_loss": float(-np.log(true).mean()),
    }


@given(seeds, sizes, classes)
@settings(deadline=None)
def test_classification_metrics_are_what_the_definitions_say(seed: int, size: int, num_classes: int) -> None:
    labels, probabilities = softmax_outputs(seed, size, num_classes, subsets=3)
    for subset, found in enumerate(classification_metrics(sums_of(labels, probabilities))):
        assert found == pytest.approx(plain_metrics(labels, probabilities[subset]), abs=1e-7)


@given(seeds, st.integers(2, 60), classes, st.integers(1, 5))
@settings(deadline=None)
def test_classification_sums_do_not_depend_on_order_or_partition(
    seed: int, size: int, num_classes: int, parts: int
) -> None:
    labels, probabilities = softmax_outputs(seed, size, num_classes, subsets=2)
    draw = np.random.default_rng(seed + 1)
    order, owner = draw.permutation(size), draw.integers(0, parts, size)
    pieces = [sums_of(labels[order[owner == part]], probabilities[:, order[owner == part]]) for part in range(parts)]
    merged = reduce(merge_classification, pieces, no_classification_sums(2, num_classes))
    for ours, whole in zip(astuple(merged), astuple(sums_of(labels, probabilities)), strict=True):
        np.testing.assert_array_equal(ours, whole)
    assert merged.num_samples == size


def test_a_class_that_neither_occurs_nor_is_predicted_is_left_out_of_macro_f1() -> None:
    probabilities = np.array([[[0.9, 0.1, 0, 0], [0.8, 0.2, 0, 0], [0.3, 0, 0.7, 0]]], np.float32)
    sums = sums_of(np.array([0, 1, 1]), probabilities)
    # Class 0: F1 2/3. Class 1: never predicted, 0. Class 2: predicted, never right, 0. Class 3: left out.
    assert classification_metrics(sums)[0]["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    figures = per_class(sums.hits[0], sums.predicted[0], sums.support)
    assert [each.precision for each in figures] == [0.5, None, 0.0, None]
    assert [each.recall for each in figures] == [1.0, 0.0, None, None]
    assert figures[3].f1 is None


def test_a_certain_and_wrong_prediction_costs_a_bounded_log_loss() -> None:
    sums = classification_sums([0], [[1]], [[1.0]], [[0.0]], 2)
    assert classification_metrics(sums)[0]["log_loss"] == pytest.approx(23 * math.log(2))


def test_a_confidence_on_the_border_of_two_bins_belongs_to_the_lower_one() -> None:
    found = reliability(classification_sums([0, 0], [[0, 0]], [[0.2, 1.0]], [[0.2, 1.0]], 2), 0)
    assert [(each.low, each.high, each.count) for each in found] == [(2 / 15, 3 / 15, 1), (14 / 15, 1.0, 1)]


@given(seeds, sizes, classes)
@settings(deadline=None)
def test_the_majority_baseline_is_the_metric_of_a_constant_prediction(seed: int, size: int, num_classes: int) -> None:
    labels, probabilities = softmax_outputs(seed, size, num_classes)
    constant = np.zeros((size, num_classes), np.float32)
    constant[:, np.bincount(labels).argmax()] = 1
    found = majority_metrics(sums_of(labels, probabilities))
    plain = plain_metrics(labels, constant)
    assert found == pytest.approx({name: plain[name] for name in found})


def test_a_confusion_matrix_has_a_row_per_true_class() -> None:
    assert confusion_matrix([0, 0, 2, 1], [1, 0, 2, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)

    def draw(count: int) -> tuple[int, int, list[int]]:
        parts = random.binomial(6, 0.4, count)
        hits = random.binomial(parts, 0.7)
        products = ((hits * hits).sum(), (hits * parts).sum(), (parts * parts).sum())
        return int(hits.sum()), int(parts.sum()), [*map(int, products)]

    found = [ratio_interval(*draw(80), 80) for _ in range(400)]
    within = [low <= 0.7 <= high for low, high in filter(None, found)]
    assert len(within) == 400 and 0.92 <= sum(within) / 400 <= 0.98
    # All alike, or nothing to divide by: it tells nothing of others.
    assert ratio_interval(6, 6, [12, 12, 12], 3) is None and ratio_interval(0, 0, [0, 0, 0], 3) is None
    assert ratio_interval(1, 2, [1, 2, 4], 1) is None


finite = st.floats(allow_nan=False, allow_infinity=False, width=64, min_value=-1e300, max_value=1e300)


@given(st.lists(finite, max_size=50))
def test_an_exact_sum_is_the_correctly_rounded_sum(values: list[float]) -> None:
    assert float(ExactSum.of(np.array(values)).fraction()) == math.fsum(values)


@given(st.lists(finite, max_size=30), st.integers(0, 30))
def test_exact_sums_add_up(values: list[float], cut: int) -> None:
    array = np.array(values)
    assert ExactSum.of(array[:cut]) + ExactSum.of(array[cut:]) == ExactSum.of(array)


def test_an_exact_sum_holds_many_large_mantissas() -> None:
    values = np.full(100_000, np.nextafter(2.0, 1.0))
    assert float(ExactSum.of(values).fraction()) == math.fsum(values.tolist())


def regression_outputs(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.normal(draw.choice([0, 1e6]), draw.choice([1e-3, 1, 1e4]), size).astype(np.float32)
    return labels, (labels + draw.normal(0, 1, (3, size))).astype(np.float32)


@given(seeds, sizes)
@settings(deadline=None)
def test_regression_metrics_are_what_the_definitions_say(seed: int, size: int) -> None:
    labels, predictions = regression_outputs(seed, size)
    true = labels.astype(np.float64)
    for row, found in zip(
        predictions.astype(np.float64), regression_metrics(regression_sums(labels, predictions)), strict=True
    ):
        assert found["mae"] == pytest.approx(np.abs(row - true).mean())
        assert found["rmse"] == pytest.approx(np.sqrt(((row - true) ** 2).mean()))
        variation = ((true - true.mean()) ** 2).sum()
        if len(set(true.tolist())) == 1:
            assert found["r2"] is None
        else:
            assert found["r2"] == pytest.approx(1 - ((row - true) ** 2).sum() / variation, rel=1e-6)


@given(seeds, st.integers(2, 60), st.integers(1, 5))
@settings(deadline=None)
def test_regression_sums_do_not_depend_on_order_or_partition(seed: int, size: int, parts: int) -> None:
    labels, predictions = regression_outputs(seed, size)
    draw = np.random.default_rng(seed + 1)
    order, owner = draw.permutation(size), draw.integers(0, parts, size)
    pieces = [
        regression_sums(labels[order[owner == part]], predictions[:, order[owner == part]]) for part in range(parts)
    ]
    assert reduce(merge_regression, pieces, no_regression_sums(3)) == regression_sums(labels, predictions)


def test_intervals_of_a_regression_hold_what_they_say() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        true = draw.normal(0, 5, 80)
        error = draw.normal(0, 2, 80)
        metrics = regression_metrics(regression_sums(true, (true + error)[None]))[0]
        found = bootstrap_intervals(true, true + error, 80, metrics)
        low, high = found["mae"]
        assert low < (metrics["mae"] or 0) < high and found["rmse"][0] < (metrics["rmse"] or 0) < found["rmse"][1]
        held += low < 2 * np.sqrt(2 / np.pi) < high
    assert 86 <= held <= 100, "95 of 100 on average"


def test_intervals_are_narrower_for_more_samples_and_the_same_each_time() -> None:
    draw = np.random.default_rng(2)
    true, error = draw.normal(0, 5, 100), draw.normal(0, 2, 100)
    metrics = regression_metrics(regression_sums(true, (true + error)[None]))[0]
    few, many = (bootstrap_intervals(true, true + error, count, metrics) for count in (100, 10_000))
    assert few == bootstrap_intervals(true, true + error, 100, metrics)
    for name in ("mae", "rmse"):
        assert many[name][1] - many[name][0] == pytest.approx((few[name][1] - few[name][0]) / 10, rel=1e-6)
    equal = np.full(5, 3.0)
    assert "r2" not in bootstrap_intervals(equal, equal + 1, 5, {"mae": 1.0, "rmse": 1.0, "r2": None})
