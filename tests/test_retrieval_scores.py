"""Ranks and what is made of them, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm import retrieval_scores
from ray_mm.retrieval_scores import by_chance, figures, mean_figures, ranks, ways


def unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = random.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 4))
def test_a_rank_is_the_place_in_the_sorted_candidates(seed: int, count: int, step: int) -> None:
    random = np.random.default_rng(seed)
    queries, candidates = unit(random, count, 6), unit(random, count + 3, 6)
    right = random.integers(0, count + 3, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_scores, "_CHUNK_BYTES", 4 * step * len(candidates))
        found = ranks(queries, candidates, right)
    for row in range(count):
        order = np.argsort(-(queries[row] @ candidates.T), kind="stable").tolist()
        assert found[row] == order.index(right[row]) + 1


def test_what_is_the_same_for_all_finds_nothing() -> None:
    same = np.tile(unit(np.random.default_rng(0), 1, 8), (21, 1))
    assert ranks(same, same, np.arange(21)).tolist() == [11.0] * 21


def test_sides_that_are_not_there_are_no_candidates() -> None:
    random = np.random.default_rng(0)
    embeddings = unit(random, 6, 2, 8)
    there = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]], bool)
    found = ways(embeddings, there)
    assert sorted(found) == [(0, 1), (1, 0)]
    to_second, num_candidates = found[0, 1]
    assert num_candidates == 4 and len(to_second) == 3
    cosines = embeddings[0, 0] @ embeddings[[0, 2, 3, 5], 1].T
    assert to_second[0] == 1 + (cosines > cosines[0]).sum()


def test_figures_of_ranks_by_hand() -> None:
    found = figures(np.array([1.0, 2.0, 7.0, 40.0]))
    assert found == {
        "recall_at_1": 0.25,
        "recall_at_5": 0.5,
        "recall_at_10": 0.75,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 7 + 1 / 40) / 4),
        "median_rank": 4.5,
    }
    both = mean_figures({(0, 1): np.array([1.0]), (1, 0): np.array([3.0, 3.0]), (0, 2): np.zeros(0)})
    assert both["recall_at_1"] == 0.5 and both["median_rank"] == 2.0


@given(st.integers(1, 60))
def test_chance_is_the_mean_over_all_ranks(count: int) -> None:
    chance, every = by_chance(count), figures(np.arange(1, count + 1, dtype=np.float64))
    assert chance == pytest.approx(every)
