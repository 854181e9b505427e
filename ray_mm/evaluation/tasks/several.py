"""Several tasks at once: what the actors find of each stands beside that of the others, as ``<name>@<task>``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.answers import Answers
from ray_mm.evaluation.tasks.base import Array, Rows, TaskEvaluation, TaskTally

_AT = "@"
"""No name of a field, and none of a task, holds one."""


class SeveralEvaluation:
    """See ``base.TaskEvaluation``; each of its tasks has a tally of its own, see ``of_task``.

    Args:
        parts: task → its evaluation.
        answers: of the model.
    """

    def __init__(self, parts: Mapping[str, TaskEvaluation], answers: Answers) -> None:
        self.parts = dict(parts)
        self._answers = answers

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts.values() for name in part.reads)

    @property
    def lacking(self) -> str:
        return " and ".join(part.lacking for part in self.parts.values())

    def counted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        counted: npt.NDArray[np.bool_] = np.any([part.counted(rows) for part in self.parts.values()], axis=0)
        return counted

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        return {
            f"{key}{_AT}{name}": array
            for name, part in self.parts.items()
            for key, array in part.scored(self._answers.of_task(name, outputs), batch).items()
        }

    def tally(self, num_subsets: int) -> TaskTally:
        raise AssertionError("every task has a tally of its own")

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        return [(f"{name}.{column}", kind) for name, part in self.parts.items() for column, kind in part.columns]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        return {
            f"{name}.{column}": array
            for name, part in self.parts.items()
            for column, array in part.arrays(of_task(name, rows)).items()
        }


def of_task(name: str, rows: Rows) -> Rows:
    """The rows as an evaluation of one task alone would have them; the name is empty where there is only one."""
    if not name:
        return rows
    end = f"{_AT}{name}"
    own = {key.removesuffix(end): array for key, array in rows.items() if key.endswith(end)}
    return {key: array for key, array in rows.items() if _AT not in key} | own
