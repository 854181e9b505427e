"""Rows → splits: pure, the same on every machine, in every run and for every order of the rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from ray_mm.errors import UsageError


def split_by_hash(groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Gives every group to one split.

    A group's split depends on its name, the seed and the fractions alone: rows that come later never move it.

    Args:
        groups: each row's group.
        fractions: split → share of the groups; they add up to 1.
        seed: of the hash.

    Returns:
        Each row's split.
    """
    wanted = [(split, fraction) for split, fraction in fractions.items() if fraction > 0]
    split_of = {group: _split(group, wanted, seed) for group in set(groups)}
    return [split_of[group] for group in groups]


def _split(group: str, fractions: Sequence[tuple[str, float]], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    end = 0.0
    for split, fraction in fractions:
        end += fraction
        if place < end:
            return split
    return fractions[-1][0]


def require_no_empty_split(splits: Sequence[str], fractions: Mapping[str, float], num_groups: int, group: str) -> None:
    """Checks that every split that should have rows has some.

    Args:
        splits: each row's split.
        fractions: split → share of the groups.
        num_groups: number of different groups.
        group: what a group is, for the error, such as ``column 'speaker'``.

    Raises:
        UsageError: a split is empty.
    """
    counts = Counter(splits)
    for split, fraction in fractions.items():
        if fraction > 0 and not counts[split]:
            raise UsageError(
                f"splits.fractions: {split} ({fraction:g}) got none of the {num_groups} groups of {group}, about "
                f"{fraction * num_groups:.1f} would be its share; raise its fraction, change seed, set it to 0 to do without "
                "it, or divide the rows yourself with splits: {by: column}."
            )
