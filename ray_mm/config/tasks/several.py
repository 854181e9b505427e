"""Several labels at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_mm.config.base import Config, Name
from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.tasks.maps import MapTask
from ray_mm.config.tasks.sample import Positive, SampleTask


class SeveralTask(Config):
    """Predict several labels at once, each as a task of its own would, from what the fields say together. A sample may lack some
    of the labels."""

    type: Literal["several"] = "several"
    tasks: dict[Name, Annotated[SampleTask | MapTask, Field(discriminator="type")]] = Field(min_length=2)
    """Name → what is predicted, as ``model.task`` would say it."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """The loss of a sample is the sum of its tasks'. ``uncertainty``: each is weighed by how well it can be predicted, which is
    learned (arXiv 1705.07115)."""
    weights: dict[Name, Positive] = Field(default={})
    """Task → how much its loss counts; others 1."""

    @model_validator(mode="after")
    def _labels_differ(self) -> SeveralTask:
        seen: dict[str, str] = {}
        for name, task in self.tasks.items():
            if task.label in seen:
                raise ValueError(
                    f"tasks.{name}.label {task.label!r} is that of {seen[task.label]}, too; take one of them out"
                )
            seen[task.label] = name
        if "quarantine" in self.tasks:
            raise ValueError(
                "tasks.quarantine: a task's report has a folder of its name, and this one is for bad samples; name it otherwise"
            )
        for name in self.weights:
            if name not in self.tasks:
                raise ValueError(f"weights.{name}: there is no such task; they are {', '.join(self.tasks)}")
        return self

    def slices(self, fields: Mapping[str, FieldSpec]) -> dict[str, slice]:
        """Task → where its numbers stand in the model's output, the tasks in the order of their names.

        Args:
            fields: the labels among them.
        """
        found, start = {}, 0
        for name, shape in self.shapes(fields).items():
            stop = start + math.prod(shape)
            found[name], start = slice(start, stop), stop
        return found

    def shapes(self, fields: Mapping[str, FieldSpec]) -> dict[str, tuple[int, ...]]:
        """Task → of what shape these numbers are: classes (C), the classes of a map's cells (C, H, W), a number ().

        Args:
            fields: the labels among them.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, task in sorted(self.tasks.items()):
            label = fields[task.label]
            assert isinstance(label, LabelField)
            found[name] = () if label.target == "number" else (len(label.classes or ()),)
            if label.target == "mask":
                assert label.height is not None and label.width is not None
                found[name] += (label.height, label.width)
        return found
