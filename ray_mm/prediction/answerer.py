"""A decoded block → the model's answers. Runs in a Ray actor, knows no Ray.

…                    what every actor with a model says, see ``actors.model_actor``
prediction.answers   float32 [N, C] or [N, C, H, W]: probabilities of the classes; or [N]: values in the label's own unit
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ray_mm.actors.model_actor import ModelActor, Rows
from ray_mm.predictor import Predictor

ANSWERS = "prediction.answers"


class Answerer(ModelActor):
    """Answers block after block; all fields are looked at."""

    def rows(self, predictor: Predictor, batch: Rows) -> dict[str, npt.NDArray[Any]]:
        """The answers for one batch."""
        return {ANSWERS: predictor.outputs(batch)[0]}
