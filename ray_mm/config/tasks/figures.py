"""Which label a task needs, and by which figures its models are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HIGHER_IS_BETTER = frozenset(
    {"accuracy", "macro_f1", "micro_f1", "map", "recall_at_1", "recall_at_5", "recall_at_10", "mrr", "r2"}
    | {"miou", "pixel_accuracy"}
)
"""Shares among the figures of tasks; of all others the lowest is the best."""


@dataclass(frozen=True)
class TaskFigures:
    """Which label a task needs, and by which figures its models are compared.

    Attributes:
        target: of its label; None: it has none.
        validation: figures of a validation by which the best weights can be chosen.
        best: those that choose them where a job names none: the first, and of equals the next.
        main: of a validation and of an evaluation, by which subsets of the fields are compared.
        gate: of an evaluation, which a compression must not lose.
    """

    target: Literal["class", "classes", "number", "mask"] | None
    validation: tuple[str, ...]
    best: tuple[str, ...]
    main: str
    gate: str

    @property
    def sign(self) -> float:
        """What makes the main figure one that is better when it is larger."""
        return 1.0 if self.main in HIGHER_IS_BETTER else -1.0


FIGURES = {
    "classify": TaskFigures("class", ("accuracy", "macro_f1", "loss"), ("accuracy", "loss"), "accuracy", "accuracy"),
    "multilabel": TaskFigures(
        "classes", ("micro_f1", "macro_f1", "map", "loss"), ("micro_f1", "loss"), "micro_f1", "micro_f1"
    ),
    "regress": TaskFigures("number", ("loss", "mae", "rmse"), ("rmse",), "mae", "rmse"),
    "several": TaskFigures(None, ("loss",), ("loss",), "loss", "loss"),
    "retrieve": TaskFigures(
        None,
        ("mrr", "recall_at_1", "recall_at_5", "recall_at_10", "loss"),
        ("mrr", "loss"),
        "recall_at_10",
        "recall_at_10",
    ),
    "segment": TaskFigures("mask", ("miou", "pixel_accuracy", "loss"), ("miou", "loss"), "miou", "miou"),
    "grid": TaskFigures("mask", ("miou", "pixel_accuracy", "loss"), ("miou", "loss"), "miou", "miou"),
    "reconstruct": TaskFigures(None, ("r2", "loss"), ("r2", "loss"), "r2", "r2"),
}
"""Type of a task → its figures. What else a task is, stands once in each of ``models.heads``, ``models.losses``, ``answers``,
``training.scores`` and ``evaluation.tasks``."""
