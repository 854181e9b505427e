"""``model:`` of a train job: an encoder per field, one fusion, one task."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ray_mm.config.base import Config, Name
from ray_mm.config.encoders import EncoderConfig, check_input
from ray_mm.config.fields import FieldSpec
from ray_mm.config.fusions import FusionConfig, GatedFusion, check_fusion
from ray_mm.config.tasks import TaskConfig, check_label


class ModelConfig(Config):
    """Everything that decides the shape of the network, apart from the dataset's fields."""

    fields: dict[Name, EncoderConfig] = Field(min_length=1)
    """The input fields and their encoders."""
    fusion: FusionConfig = GatedFusion()
    """How the fields are joined."""
    task: TaskConfig
    """What is predicted."""


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
    check_label(config.task, fields)
    check_fusion(config.fusion, config.fields)
