"""Embeddings of all samples → how far up each one's other side is found: for a validation and for an evaluation. No torch.

A query is the embedding of one tower of a sample, its candidates those of another tower of all samples that have it. The rank
of the right one is 1 plus the candidates that are nearer, plus half of those that are just as near: an embedding that is the
same for all samples finds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

CUTOFFS = (1, 5, 10)
"""Recall is told at these."""

_CHUNK_BYTES = 64 << 20

Floats: TypeAlias = npt.NDArray[np.float32]
Ranks: TypeAlias = npt.NDArray[np.float64]
"""Of the right candidate of each query, from 1; [Q], halves where candidates are equally near."""


def ranks(queries: Floats, candidates: Floats, right: npt.NDArray[np.int64]) -> Ranks:
    """The rank of each query's right candidate.

    Args:
        queries: of length 1, [Q, E].
        candidates: likewise [N, E].
        right: of each query the number of its candidate, [Q].
    """
    found = np.empty(len(queries), np.float64)
    step = max(1, _CHUNK_BYTES // max(4 * len(candidates), 1))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        cosines = queries[rows] @ candidates.T
        # Of the same product, so that it is equal to itself to the last bit.
        own = cosines[np.arange(len(cosines)), right[rows]][:, None]
        found[rows] = 1 + (cosines > own).sum(axis=1) + ((cosines == own).sum(axis=1) - 1) / 2
    return found


def ways(embeddings: Floats, there: npt.NDArray[np.bool_]) -> dict[tuple[int, int], tuple[Ranks, int]]:
    """For every tower and every other one: the ranks of the samples that have both, and the number of candidates.

    Args:
        embeddings: of K towers, each of length 1, [N, K, E].
        there: which towers are there, [N, K].
    """
    found = {}
    for one, other in permutations(range(there.shape[1]), 2):
        candidates = np.flatnonzero(there[:, other])
        queries = np.flatnonzero(there[:, one] & there[:, other])
        right = np.searchsorted(candidates, queries)
        found[one, other] = (
            ranks(embeddings[queries, one], embeddings[candidates, other], right),
            len(candidates),
        )
    return found


def figures(found: Ranks) -> dict[str, float]:
    """Recall at each cutoff, the share of the queries whose right candidate is among so many; MRR, the mean of 1 / rank; and the
    median rank. Of no query: zeros, and the rank 0."""
    if len(found) == 0:
        return {**{f"recall_at_{cutoff}": 0.0 for cutoff in CUTOFFS}, "mrr": 0.0, "median_rank": 0.0}
    return {
        **{f"recall_at_{cutoff}": float((found <= cutoff).mean()) for cutoff in CUTOFFS},
        "mrr": float((1 / found).mean()),
        "median_rank": float(np.median(found)),
    }


def mean_figures(each: Mapping[tuple[int, int], Ranks]) -> dict[str, float]:
    """The means of ``figures`` over all ways that have a query, each way alike."""
    told = [figures(found) for found in each.values() if len(found)]
    if not told:
        return figures(np.zeros(0))
    return {name: float(np.mean([of_way[name] for of_way in told])) for name in told[0]}


def by_chance(num_candidates: int) -> dict[str, float]:
    """What ``figures`` would be, on average, with the candidates in any order; the median is that of all ranks."""
    if num_candidates == 0:
        return figures(np.zeros(0))
    return {
        **{f"recall_at_{cutoff}": min(1.0, cutoff / num_candidates) for cutoff in CUTOFFS},
        "mrr": float((1 / np.arange(1, num_candidates + 1)).mean()),
        "median_rank": (num_candidates + 1) / 2,
    }
