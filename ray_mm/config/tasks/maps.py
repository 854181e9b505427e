"""Tasks that predict a class for every cell of a map."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from ray_mm.config.base import Config, Name
from ray_mm.config.tasks.sample import Positive


class _OfMap(Config):
    """What the tasks with a class for every cell of a map have in common."""

    label: Name
    """The label field, with ``target: mask``."""
    on: Name | None = None
    """The input field whose encoder's tokens become the map; they lie on a grid: ``cnn`` and ``vit`` of pictures, ``pillars`` of
    points. What the other fields tell is joined to each of them."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    class_weights: dict[str, Positive] | None = None
    """How much a cell of each class counts in training: class → weight, of every class; only their ratios matter. Unset: all
    cells alike."""

    @property
    def needs_class_counts(self) -> bool:
        """Weights are given."""
        return False


class SegmentTask(_OfMap):
    """Predict a class for every pixel of a picture. Unset, ``on`` is the picture that the label is like."""

    type: Literal["segment"] = "segment"


class GridTask(_OfMap):
    """Predict a class for every cell of a map of its own, such as one of the ground from above. Unset, ``on`` is the field of
    type points. Of a map from ``pillars`` rows go along x and columns along y."""

    type: Literal["grid"] = "grid"


MapTask: TypeAlias = SegmentTask | GridTask
"""Those that predict a class for every cell of a map."""
