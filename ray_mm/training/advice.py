"""What a training will be like, told before it starts; light, because ``ray-mm check`` tells it, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ray_mm.config.source import train_sources
from ray_mm.config.tasks import ClassifyTask, labelled_tasks
from ray_mm.config.train import TrainJob
from ray_mm.data.plan import Schedule

_FEW_STEPS = 100
_UNBALANCED = 10
"""From here on, the commonest class by the rarest, accuracy says little about the rare ones."""


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


def imbalance(job: TrainJob, label_counts: Sequence[Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    """A word where some classes are rare and nothing is done about it.

    Args:
        job: of the training.
        label_counts: class label → class → samples, of each of its training datasets. Where only a part of one is read, nobody
            knows without its indexes, and nothing is said.
    """
    sources = train_sources(job.data.train)
    if job.data.balance is not None or any(source.require or source.where or source.weight for source in sources):
        return
    for name, task in labelled_tasks(job.model.task).items():
        if isinstance(task, ClassifyTask) and task.loss != "focal" and not task.needs_class_counts:
            yield from _imbalance(f"model.task.tasks.{name}" if name else "model.task", task, label_counts)


def _imbalance(key: str, task: ClassifyTask, label_counts: Sequence[Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for found in label_counts:
        for name, number in found.get(task.label, {}).items():
            counts[name] = counts.get(name, 0) + number
    occurring = {name: number for name, number in counts.items() if number}
    if not occurring:
        return
    rarest, commonest = (choose(occurring, key=occurring.__getitem__) for choose in (min, max))
    if occurring[commonest] >= _UNBALANCED * occurring[rarest]:
        # Of several tasks the best weights are those of the lowest loss.
        best = ", and set train.best_metric to macro_f1" if key == "model.task" else ""
        yield (
            f"{key}.label: of {task.label!r} the class {rarest!r} has {occurring[rarest]:,} samples and {commonest!r} "
            f"{occurring[commonest]:,}, and rare classes are learned last; see {key}.logit_adjustment, "
            f"{key}.class_weights and data.balance{best}."
        )
