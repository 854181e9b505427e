"""How a report speaks of the metric by which it compares."""

from __future__ import annotations

from dataclasses import dataclass

from ray_mm.config.tasks import HIGHER_IS_BETTER

SHARES = HIGHER_IS_BETTER | {"ece"}
"""Metrics that are shares, shown as percentages."""


@dataclass(frozen=True)
class Words:
    """Of one metric.

    Attributes:
        heading: of a column.
        name: in full.
        is_share: whether it is one, and then the more the better; else it is an error.
        gain: what a field adds to.
        verb: what a model does.
        object: after its figure.
        preposition: before the figure of a part of its fields.
        constant: what always giving the same answer does.
        always: what that is called at the start of a sentence.
        lacking: what a sample is that can't be scored.
    """

    heading: str
    name: str
    is_share: bool
    gain: str
    verb: str
    object: str
    preposition: str
    constant: str
    always: str = "Always answering"
    lacking: str = "without a label"


WORDS = {
    "accuracy": Words(
        "accuracy",
        "accuracy",
        True,
        "accuracy",
        "is right on",
        " of the samples",
        "on",
        "the most frequent class would be right on",
    ),
    "micro_f1": Words(
        "micro F1",
        "micro F1",
        True,
        "micro F1",
        "finds the classes with a micro F1 of",
        "",
        "",
        "those that more than half of the samples have would come to",
    ),
    "recall_at_10": Words(
        "recall at 10",
        "recall at 10",
        True,
        "recall",
        "has the right one among the first ten for",
        " of the queries",
        "for",
        "would have it for",
        "Candidates in any order",
        "with one side only",
    ),
    "r2": Words(
        "R²",
        "R²",
        True,
        "share that is explained",
        "explains",
        " of what varies in the fields",
        "",
        "the mean would explain",
        lacking="without any of the fields",
    ),
    "miou": Words(
        "mean IoU",
        "mean IoU",
        True,
        "mean IoU",
        "finds the classes' cells with a mean IoU of",
        "",
        "",
        "the most frequent class in every cell would come to",
    ),
    "mae": Words(
        "MAE",
        "mean absolute error",
        False,
        "reduction of the error",
        "is off by",
        " on average",
        "by",
        "the mean of the training data would be off by",
    ),
}
"""Main metric of a task → the words."""
