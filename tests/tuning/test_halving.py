"""Who goes on and who is stopped: by rank among those that have come as far."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.tuning.halving import Decision, Judgement, is_milestone, judge

SETTINGS: dict[str, Any] = {"grace": 1, "reduction": 3, "epochs": 27, "higher": True}
values = st.floats(-1e6, 1e6)


def test_trials_are_looked_at_after_grace_and_its_multiples() -> None:
    assert [epoch for epoch in range(1, 30) if is_milestone(epoch, 1, 3)] == [1, 3, 9, 27]
    assert [epoch for epoch in range(1, 20) if is_milestone(epoch, 2, 2)] == [2, 4, 8, 16]
    assert judge(2, 0.0, [1.0], **SETTINGS).decision is Decision.NOT_YET
    assert judge(27, 0.0, [1.0], **SETTINGS).decision is Decision.NOT_YET, (
        "after the last epoch there is nothing to stop"
    )


@pytest.mark.parametrize(
    ("value", "others", "expected"),
    [
        (0.1, [], Judgement(Decision.GOES_ON, 1, 1, 1)),
        (0.1, [0.2], Judgement(Decision.STOPS, 2, 2, 1)),
        (0.3, [0.2], Judgement(Decision.GOES_ON, 1, 2, 1)),
        (0.2, [0.2], Judgement(Decision.GOES_ON, 1, 2, 1)),
        (0.4, [0.5, 0.1, 0.1, 0.1, 0.1], Judgement(Decision.GOES_ON, 2, 6, 2)),
        (0.3, [0.5, 0.4, 0.1, 0.1, 0.1], Judgement(Decision.STOPS, 3, 6, 2)),
    ],
)
def test_the_best_third_goes_on(value: float, others: list[float], expected: Judgement) -> None:
    assert judge(1, value, others, **SETTINGS) == expected
    assert judge(1, -value, [-other for other in others], **{**SETTINGS, "higher": False}) == expected


@given(st.lists(values, min_size=1, max_size=40), st.integers(2, 5))
def test_the_best_is_never_stopped_and_of_many_that_come_in_any_order_enough_are(
    found: list[float], reduction: int
) -> None:
    settings = {**SETTINGS, "reduction": reduction}
    going = [
        value for n, value in enumerate(found) if judge(1, value, found[:n], **settings).decision is Decision.GOES_ON
    ]
    assert max(found) in going
    # All at once: what is told to the last one holds for each.
    last = [
        judge(1, value, found[:n] + found[n + 1 :], **settings).decision is Decision.GOES_ON
        for n, value in enumerate(found)
    ]
    kept = max(1, len(found) // reduction)
    assert sum(last) >= min(kept, len(found))
    assert len({value for value, on in zip(found, last, strict=True) if on}) <= kept
