"""What a training will be like, told before it starts; light, because ``ray-mm check`` tells it, too."""

from __future__ import annotations

from collections.abc import Iterator

from ray_mm.data.plan import Schedule

_FEW_STEPS = 100


def course(schedule: Schedule) -> str:
    """Such as ``168 steps: 12 epochs of 14 steps, 32 samples each``."""
    epochs = "1 epoch" if schedule.epochs == 1 else f"{schedule.epochs:,} epochs"
    steps = "1 step" if schedule.train_batches == 1 else f"{schedule.train_batches:,} steps"
    total = "1 step" if schedule.num_steps == 1 else f"{schedule.num_steps:,} steps"
    return f"{total}: {epochs} of {steps}, {schedule.batch_size:,} samples each"


def warnings(schedule: Schedule, validates_on_training_data: bool) -> Iterator[str]:
    """What is allowed and hardly meant."""
    if schedule.batch_size > schedule.train_samples:
        yield (
            f"data.batch_size: {schedule.batch_size:,} is more than the {schedule.train_samples:,} samples of an epoch, so every "
            "epoch is a single step; lower it."
        )
    elif schedule.num_steps < _FEW_STEPS:
        yield (
            f"train.epochs: the training has only {schedule.num_steps:,} steps, in which a model learns little; raise it, or "
            "lower data.batch_size."
        )
    if validates_on_training_data:
        yield (
            "data.validation: these are samples that the model is trained on, so the figures say nothing about new ones; name "
            "another dataset."
        )
