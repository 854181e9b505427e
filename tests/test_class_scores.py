"""F1 scores and average precision against scikit-learn's definition, by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ray_mm.class_scores import (
    NUM_SCORE_BINS,
    OVER_HALF,
    average_precisions,
    f1_score,
    macro_f1,
    mean_average_precision,
    score_bins,
)
from ray_mm.training.scores import _bins


@pytest.mark.parametrize(
    ("hits", "predicted", "support", "wanted"),
    [(5, 5, 5, 1.0), (3, 4, 5, 2 * 0.75 * 0.6 / (0.75 + 0.6)), (0, 3, 0, 0.0), (0, 0, 3, 0.0), (0, 0, 0, None)],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(
    hits: int, predicted: int, support: int, wanted: float | None
) -> None:
    assert f1_score(hits, predicted, support) == (None if wanted is None else pytest.approx(wanted))


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_predicted_counts_with_0() -> None:
    assert macro_f1((5, 0, 0), (5, 0, 0), (5, 0, 0)) == 1.0
    assert macro_f1((5, 0, 0), (5, 0, 2), (7, 0, 0)) == pytest.approx((10 / 12 + 0) / 2)


def test_nothing_to_find_and_nothing_found_is_no_merit() -> None:
    assert macro_f1((0, 0), (0, 0), (0, 0)) == 0.0
    assert mean_average_precision(np.zeros((2, 2, NUM_SCORE_BINS), np.int64)) == 0.0


def _scores(size: int) -> npt.NDArray[np.float32]:
    logits = np.random.default_rng(0).normal(0, 6, size)
    return np.concatenate([1 / (1 + np.exp(-logits)), [0.0, 1.0, 0.5, np.nextafter(np.float32(0.5), 1)]]).astype(
        np.float32
    )


def test_bins_are_in_the_order_of_the_probabilities_and_narrow() -> None:
    scores = np.sort(_scores(5000))
    bins = score_bins(scores)
    assert bins.min() >= 0 and bins.max() < NUM_SCORE_BINS and (np.diff(bins) >= 0).all()
    assert ((bins >= OVER_HALF) == (scores > 0.5)).all()
    for number in np.unique(bins):
        within = scores[bins == number].astype(np.float64)
        if within.min() > 2.0**-23 and within.max() < 1 - 2.0**-23:
            near = min(within.min(), 1 - within.max())
            assert within.max() - within.min() <= near / 32
    assert np.array_equal(_bins(torch.from_numpy(scores)).numpy(), bins), "a validation has the same bins"


def _histograms(scores: npt.NDArray[np.float32], having: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    found = np.zeros((1, 2, NUM_SCORE_BINS), np.int64)
    np.add.at(found, (0, having.astype(int), score_bins(scores)), 1)
    return found


def _average_precision(scores: npt.NDArray[np.float32], having: npt.NDArray[np.bool_]) -> float:
    """Of every threshold that there is, as scikit-learn has it."""
    before, area = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        asked = scores >= threshold
        recall = (asked & having).sum() / having.sum()
        area += (recall - before) * (having[asked].mean())
        before = recall
    return area


def test_the_average_precision_is_that_of_the_scores() -> None:
    random = np.random.default_rng(1)
    for share in (0.5, 0.1, 0.01):
        having = random.random(2000) < share
        scores = (1 / (1 + np.exp(-(random.normal(-3, 2, 2000) + 2 * having)))).astype(np.float32)
        exact = _average_precision(scores, having)
        (found,) = average_precisions(_histograms(scores, having))
        assert found == pytest.approx(exact, abs=0.01)
        few = np.round(scores, 1).astype(np.float32)
        # Of scores that are far apart, with ties, it is exact.
        (found,) = average_precisions(_histograms(few, having))
        assert found == pytest.approx(_average_precision(few, having), abs=1e-12)


def test_a_class_that_nobody_has_is_left_out_of_the_mean() -> None:
    scores = np.array([0.9, 0.8, 0.3], np.float32)
    first = _histograms(scores, np.array([True, False, True]))
    nobody = _histograms(scores, np.zeros(3, np.bool_))
    assert np.isnan(average_precisions(nobody)).all()
    assert mean_average_precision(np.concatenate([first, nobody])) == pytest.approx((1 + 2 / 3) / 2)
