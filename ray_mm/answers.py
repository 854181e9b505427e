"""What a model puts out → what it says: probabilities, values in the label's own unit, an answer per sample. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from ray_mm.config.fields import LabelField
from ray_mm.data.manifest import Statistics

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The answer for one sample."""

    label: str | tuple[str, ...] | float
    """The most probable class; of several per sample those more probable than not; or the value in the label's own unit."""
    probabilities: dict[str, float] | None
    """Class → probability; None for a number."""
    presence: dict[str, bool]
    """Input field → was it there?"""


def answers(label: LabelField, statistics: Statistics | None, raw: Floats) -> Floats:
    """A model's raw output, of any leading shape, as probabilities [..., C] or values [...] in the label's own unit.

    Args:
        label: what is predicted.
        statistics: of a number.
        raw: logits [..., C], or standardised values [...].
    """
    match label.target:
        case "class":
            exponentials = np.exp(raw - raw.max(axis=-1, keepdims=True))
            return cast(Floats, exponentials / exponentials.sum(axis=-1, keepdims=True))
        case "classes":
            small = np.exp(-np.abs(raw))
            return cast(Floats, np.where(raw >= 0, 1, small) / (1 + small))
        case "number":
            assert statistics is not None
            return raw * np.float32(statistics.std[0]) + np.float32(statistics.mean[0])
        case _:
            assert_never(label.target)


def prediction(label: LabelField, answer: Any, presence: dict[str, bool]) -> Prediction:
    """What the answer for one sample, probabilities [C] or a value, says."""
    match label.target:
        case "class":
            assert label.classes is not None
            probabilities = dict(zip(label.classes, answer.tolist(), strict=True))
            return Prediction(label.classes[int(answer.argmax())], probabilities, presence)
        case "classes":
            assert label.classes is not None
            probabilities = dict(zip(label.classes, answer.tolist(), strict=True))
            return Prediction(tuple(name for name, p in probabilities.items() if p > 0.5), probabilities, presence)
        case "number":
            return Prediction(float(answer), None, presence)
        case _:
            assert_never(label.target)
