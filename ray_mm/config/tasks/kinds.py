"""All tasks together, and which labels they read."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from ray_mm.config.tasks.maps import MapTask
from ray_mm.config.tasks.reconstruct import ReconstructTask
from ray_mm.config.tasks.retrieve import RetrieveTask
from ray_mm.config.tasks.sample import SampleTask
from ray_mm.config.tasks.several import SeveralTask

LabelledTask: TypeAlias = SampleTask | MapTask
"""Those that predict a label."""

TaskConfig = Annotated[LabelledTask | RetrieveTask | ReconstructTask | SeveralTask, Field(discriminator="type")]


def labelled_tasks(task: TaskConfig) -> dict[str, LabelledTask]:
    """The tasks with a label that a model has, by the name that stands before their keys and figures: one alone has none."""
    if isinstance(task, SeveralTask):
        return dict(sorted(task.tasks.items()))
    return {"": task} if isinstance(task, LabelledTask) else {}


def labels_of(task: TaskConfig) -> tuple[str, ...]:
    """The label fields that a task reads beside the inputs."""
    return tuple(each.label for each in labelled_tasks(task).values())
