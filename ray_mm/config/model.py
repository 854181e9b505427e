"""``model:`` of a train job: an encoder per field, one fusion, one task."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from ray_mm.config.base import Config, Name
from ray_mm.config.encoders import EncoderConfig, check_input
from ray_mm.config.fields import FieldSpec
from ray_mm.config.fusions import FusionConfig, GatedFusion, check_fusion
from ray_mm.config.maps import check_map, task_key
from ray_mm.config.tasks import (
    GridTask,
    RetrieveTask,
    SegmentTask,
    TaskConfig,
    check_task,
    labelled_tasks,
    labels_of,
)


class ModelConfig(Config):
    """Everything that decides the shape of the network, apart from the dataset's fields."""

    fields: dict[Name, EncoderConfig] = Field(min_length=1)
    """The input fields and their encoders."""
    fusion: FusionConfig = GatedFusion()
    """How the fields are joined."""
    task: TaskConfig
    """What is learned."""

    @model_validator(mode="after")
    def _shares_what_is_alike(self) -> ModelConfig:
        if isinstance(self.task, RetrieveTask) and self.task.shared:
            first, *others = sorted(self.fields)
            for name in others:
                if self.fields[name] != self.fields[first]:
                    raise ValueError(
                        f"fields.{name} has other settings than fields.{first}, and with task.shared: true one encoder reads "
                        "both; make them equal"
                    )
        return self

    @property
    def encoded_fields(self) -> list[str]:
        """The inputs that have an encoder of their own, sorted; where the task shares one, the first stands for all."""
        fields = sorted(self.fields)
        return fields[:1] if isinstance(self.task, RetrieveTask) and self.task.shared else fields

    @property
    def read_fields(self) -> frozenset[str]:
        """What it reads of a sample in training: its inputs and its label."""
        return frozenset(self.fields) | frozenset(labels_of(self.task))


def check_model(config: ModelConfig, fields: Mapping[str, FieldSpec]) -> None:
    """Checks a model against the fields of a dataset, before anything starts.

    Args:
        config: of the model.
        fields: of the dataset, complete, its overrides applied.

    Raises:
        UsageError: a field or label that is not there or is of the wrong kind, an encoder that does not take the
            field's type, a picture that is too small, attention heads that do not divide the width, or a fusion's field that
            is no input.
    """
    for name, encoder in config.fields.items():
        check_input(f"model.fields.{name}", name, encoder, fields)
    check_task(config.task, config.fields, fields)
    for name, each in labelled_tasks(config.task).items():
        if isinstance(each, SegmentTask | GridTask):
            check_map(each, config.fields, fields, task_key(name))
    check_fusion(config.fusion, config.fields, isinstance(config.task, RetrieveTask))
