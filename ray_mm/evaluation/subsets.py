"""Subsets of the input fields: which are scored, what they are called, and what each field adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

from ray_mm.errors import UsageError

MAX_FIELDS = 8
"""Subsets of more fields are too many to score: 2^8 - 1 = 255 forward passes through the fusion for every batch."""

Subset = frozenset[str]


def field_subsets(fields: Sequence[str], mode: Literal["all", "full"]) -> tuple[Subset, ...]:
    """The subsets to score: by number of fields, then by name; all fields together come last.

    Raises:
        UsageError: ``all`` with more than ``MAX_FIELDS`` fields.
    """
    names = sorted(fields)
    if mode == "full":
        return (frozenset(names),)
    if len(names) > MAX_FIELDS:
        raise UsageError(
            f"subsets: all would score 2^{len(names)} - 1 = {2 ** len(names) - 1:,} subsets of the model's {len(names)} fields; "
            f"the limit is {MAX_FIELDS} fields. Set subsets: full."
        )
    return tuple(frozenset(chosen) for size in range(1, len(names) + 1) for chosen in combinations(names, size))


def subset_name(subset: Subset) -> str:
    """Such as ``audio+image``."""
    return "+".join(sorted(subset))


def contributions(scores: Mapping[Subset, float], empty: float) -> dict[str, float]:
    """What each field adds to a score, averaged over all orders in which fields could be added (Shapley 1953).

    Args:
        scores: the score of every non-empty subset of the fields.
        empty: the score with no field.

    Returns:
        Field → its share; the shares add up to the score of all fields less ``empty``.
    """
    fields = sorted(frozenset().union(*scores))
    total = math.factorial(len(fields))
    shares = {}
    for name in fields:
        others = [other for other in fields if other != name]
        terms = []
        for size in range(len(fields)):
            weight = math.factorial(size) * math.factorial(len(fields) - size - 1) / total
            for chosen in combinations(others, size):
                without = scores[frozenset(chosen)] if chosen else empty
                terms.append(weight * (scores[frozenset(chosen) | {name}] - without))
        shares[name] = math.fsum(terms)
    return shares
