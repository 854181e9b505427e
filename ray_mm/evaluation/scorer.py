"""A decoded block → what the driver needs to know of it: one narrow row per sample. Runs in a Ray actor, knows no Ray.

    …                              what every actor with a model says, see ``actors.model_actor``
    <label> <label>.presence       as in the block
    score.…                        what the task needs: see the modules of ``tasks``

No name of a field holds a dot, so the names can't clash.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy.typing as npt

from ray_mm.actors.model_actor import ModelActor
from ray_mm.evaluation.subsets import Subset
from ray_mm.evaluation.tasks import evaluated_task
from ray_mm.evaluation.tasks.base import Rows
from ray_mm.predictor import Predictor


class Scorer(ModelActor):
    """Scores block after block.

    Args:
        checkpoint: see ``ModelActor``.
        digest: likewise.
        subsets: the last one has all fields.
        device: see ``ModelActor``.
        threads: likewise.
    """

    def __init__(self, checkpoint: str, digest: str, subsets: tuple[Subset, ...], device: str, threads: int) -> None:
        super().__init__(checkpoint, digest, device, threads)
        self._subsets = subsets
        self._evaluation = functools.cache(evaluated_task)

    def rows(self, predictor: Predictor, batch: Rows) -> dict[str, npt.NDArray[Any]]:
        """Scores one batch."""
        task = self._evaluation(predictor)
        read = {name: batch[name] for name in task.reads}
        found = task.scored(predictor.outputs(batch, self._subsets), batch)
        return {**read, **found}
