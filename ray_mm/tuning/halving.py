"""Whether a trial goes on: asynchronous successive halving (ASHA, arXiv 1810.05934), in the form that stops instead of pausing.

A trial is looked at after ``grace`` epochs, after ``reduction`` times as many, and so on. It goes on if it is among the best one
in ``reduction`` of the trials that have come as far, of which one always goes on. Nobody waits for anybody: the first to come
there has nobody to be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Decision(Enum):
    """What becomes of a trial after an epoch."""

    NOT_YET = "not yet"
    GOES_ON = "goes on"
    STOPS = "stops"


@dataclass(frozen=True)
class Judgement:
    """A decision, and what it was made from.

    Attributes:
        decision: what becomes of the trial.
        rank: its place among those that have come as far, from 1; of equals all have the best place.
        compared: how many have come as far, itself included.
        kept: how many of them go on.
    """

    decision: Decision
    rank: int = 0
    compared: int = 0
    kept: int = 0


def is_milestone(epoch: int, grace: int, reduction: int) -> bool:
    """Whether trials are looked at after so many epochs."""
    milestone = grace
    while milestone < epoch:
        milestone *= reduction
    return milestone == epoch


def judge(
    epoch: int, value: float, others: Sequence[float], *, grace: int, reduction: int, epochs: int, higher: bool
) -> Judgement:
    """Decides about one trial.

    Args:
        epoch: that it has finished, from 1.
        value: its best value so far.
        others: the best values that other trials had after as many epochs; of all that came as far, stopped ones too.
        grace: epochs that every trial gets.
        reduction: one in so many goes on.
        epochs: of a whole trial; after the last one there is nothing to stop.
        higher: whether higher values are better.
    """
    if epoch >= epochs or not is_milestone(epoch, grace, reduction):
        return Judgement(Decision.NOT_YET)
    rank = 1 + sum(other > value if higher else other < value for other in others)
    compared = len(others) + 1
    kept = max(1, compared // reduction)
    return Judgement(Decision.GOES_ON if rank <= kept else Decision.STOPS, rank, compared, kept)
