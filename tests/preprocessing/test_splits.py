"""Splits: no group in two of them, whatever the rows' order, in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.errors import UsageError
from ray_mm.preprocessing.splits import require_no_empty_split, split_by_hash

_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
_groups = st.lists(st.text(max_size=5), max_size=60)


@given(_groups, st.integers(0, 5), st.randoms())
def test_a_group_is_never_divided_and_never_moves(groups: list[str], seed: int, random: object) -> None:
    splits = split_by_hash(groups, _FRACTIONS, seed)
    of_group = dict(zip(groups, splits, strict=True))
    assert [of_group[group] for group in groups] == splits
    assert set(splits) <= set(_FRACTIONS)
    shuffled = sorted(groups, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert split_by_hash(shuffled, _FRACTIONS, seed) == [of_group[group] for group in shuffled]
    assert split_by_hash([*groups, "one more"], _FRACTIONS, seed)[:-1] == splits


@given(_groups, st.integers(0, 5))
def test_a_fraction_of_one_takes_all_and_of_zero_takes_none(groups: list[str], seed: int) -> None:
    assert set(split_by_hash(groups, {"a": 0.0, "b": 1.0, "c": 0.0}, seed)) <= {"b"}


def test_shares_come_out_as_asked_for() -> None:
    splits = split_by_hash([str(i) for i in range(20_000)], _FRACTIONS, seed=3)
    for split, fraction in _FRACTIONS.items():
        assert abs(splits.count(split) / 20_000 - fraction) < 0.01


def test_another_seed_gives_another_split() -> None:
    groups = [str(i) for i in range(100)]
    assert split_by_hash(groups, _FRACTIONS, 0) != split_by_hash(groups, _FRACTIONS, 1)


def test_the_split_is_the_same_in_another_process_and_forever() -> None:
    groups = ["speaker 1", "speaker 2", "día", "", "x" * 50, "7", "8", "9"]
    here = split_by_hash(groups, {"train": 0.5, "test": 0.5}, seed=7)
    code = (
        f"from ray_mm.preprocessing.splits import *; print(split_by_hash({groups!r}, {{'train': .5, 'test': .5}}, 7))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(there) == here
    # Written down: datasets made by an earlier version must not change under a later one.
    assert "".join(split[1] for split in here) == "reeeeree"


def test_an_empty_split_is_refused_with_what_to_change() -> None:
    with pytest.raises(UsageError) as caught:
        require_no_empty_split(["train"] * 6, _FRACTIONS, 6, "column 'speaker'")
    message = str(caught.value)
    assert "validation (0.1) got none of the 6 groups of column 'speaker', about 0.6 would be its share" in message
    assert "raise its fraction, change seed" in message
    require_no_empty_split(["train"], {"train": 1.0, "test": 0.0}, 1, "one row each")
