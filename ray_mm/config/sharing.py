"""How the fields of a model share the learning: OGM-GE, and Gradient-Blending."""

from __future__ import annotations

from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.fields import Share
from ray_mm.config.tasks import ClassifyTask, MultilabelTask, RegressTask, TaskConfig


class GradientModulation(Config):
    """OGM-GE (arXiv 2203.15332): in every step the gradients of the encoders that alone are surest of the true class are made
    smaller, so that the others go on learning."""

    alpha: float = Field(default=0.3, gt=0)
    """How much: a field that is r times as sure as the others, r > 1, keeps 1 − tanh(alpha · r) of its gradient."""
    noise: bool = True
    """Add noise to the encoders' gradients, as large as they vary themselves."""
    until: Share = 1.0
    """Share of the training, from its start, in which this is done."""


class GradientBlending(Config):
    """Gradient-Blending (arXiv 1905.12681): each field alone has a loss beside that of all together, and counts the more the more
    its validation gained and the less it overfitted."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs after which the weights are estimated anew, from what these epochs brought."""


def check_sharing(
    task: TaskConfig,
    num_fields: int,
    modulation: GradientModulation | None,
    blending: GradientBlending | None,
    has_validation: bool,
) -> None:
    """Checks both against the model.

    Args:
        task: of the model.
        num_fields: of the model.
        modulation: ``train.gradient_modulation``.
        blending: ``train.gradient_blending``.
        has_validation: whether there is ``data.validation``.

    Raises:
        ValueError: one of them means nothing for it, or both are given.
    """
    if modulation is not None and blending is not None:
        raise ValueError(
            "train.gradient_modulation and train.gradient_blending are two ways to the same end, and the one would undo what the "
            "other does; leave one of the two out"
        )
    if modulation is not None and not isinstance(task, ClassifyTask):
        raise ValueError(
            f"train.gradient_modulation compares how probable the true class is to each field, and the task {task.type} has no "
            "such class; leave it out"
        )
    if blending is not None and not isinstance(task, ClassifyTask | MultilabelTask | RegressTask):
        raise ValueError(
            f"train.gradient_blending needs the loss of each field alone, for one label, and the task {task.type} has none; "
            "leave it out"
        )
    key = "gradient_modulation" if modulation is not None else "gradient_blending"
    if (modulation is not None or blending is not None) and num_fields == 1:
        raise ValueError(f"train.{key} compares the fields with each other, and this model has one; leave it out")
    if blending is not None and not has_validation:
        raise ValueError(
            "train.gradient_blending weighs the fields by what a validation says of them, and there is none; set "
            "data.validation, or leave it out"
        )
