"""Subsets of fields: order, names, and what each field adds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.errors import UsageError
from ray_mm.evaluation.subsets import contributions, field_subsets, subset_name


def test_subsets_come_by_size_then_by_name_and_the_full_one_last() -> None:
    assert [subset_name(each) for each in field_subsets(["image", "audio", "text"], "all")] == [
        "audio",
        "image",
        "text",
        "audio+image",
        "audio+text",
        "image+text",
        "audio+image+text",
    ]
    assert field_subsets(["image", "audio"], "full") == (frozenset({"audio", "image"}),)


def test_too_many_fields_are_refused_with_the_way_out() -> None:
    names = [f"f{number}" for number in range(9)]
    with pytest.raises(UsageError, match=r"2\^9 - 1 = 511 subsets of the model's 9 fields.*subsets: full"):
        field_subsets(names, "all")
    assert len(field_subsets(names[:8], "all")) == 255
    assert len(field_subsets(names, "full")) == 1


def test_a_field_that_alone_decides_gets_everything() -> None:
    subsets = field_subsets(["a", "b", "c"], "all")
    shares = contributions({each: 0.9 if "b" in each else 0.25 for each in subsets}, 0.25)
    assert shares == pytest.approx({"a": 0, "b": 0.65, "c": 0})


def test_fields_that_only_help_together_share_equally() -> None:
    subsets = field_subsets(["a", "b"], "all")
    shares = contributions({each: 1.0 if len(each) == 2 else 0.5 for each in subsets}, 0.5)
    assert shares == pytest.approx({"a": 0.25, "b": 0.25})


@given(st.integers(1, 5), st.randoms(use_true_random=False), st.floats(0, 1))
def test_contributions_add_up_to_the_gain_over_nothing(size: int, draw: object, empty: float) -> None:
    names = [chr(97 + index) for index in range(size)]
    scores = {each: draw.random() for each in field_subsets(names, "all")}  # type: ignore[attr-defined]
    total = sum(contributions(scores, empty).values())
    assert total == pytest.approx(scores[frozenset(names)] - empty)
