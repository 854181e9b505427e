"""``train.augment:`` of a train job: what is changed at random in the samples of a training, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from ray_mm.config.base import Config, Fraction, Name
from ray_mm.config.fields import FieldSpec, ImageField, VideoField
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import FIGURES, GridTask, LabelledTask, SegmentTask, SeveralTask
from ray_mm.errors import UsageError

Alpha = Annotated[float, Field(gt=0, le=10)]

_SUITS: dict[str, tuple[str, ...]] = {
    "image": ("color", "erase"),
    "video": ("color", "erase"),
    "audio": ("time_mask", "frequency_mask"),
    "series": ("noise", "scale", "time_mask"),
    "vector": ("noise",),
}
"""Field type → what can be changed in it."""

MIXABLE = ("image", "video", "audio", "series", "vector")
"""Field types of which two samples can be mixed."""


class ColorJitter(Config):
    """Each is drawn anew for every sample. A factor b means: between 1 − b and 1 + b."""

    brightness: Fraction = 0.0
    """Factor of the brightness."""
    contrast: Fraction = 0.0
    """Factor of the distance from the picture's mean grey."""
    saturation: Fraction = 0.0
    """Factor of the distance from grey."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Turn of the colours, at most this share of a circle to either side."""


class FieldAugment(Config):
    """What is changed in one field; which of it suits the field depends on its type."""

    color: ColorJitter | None = None
    """Pictures and clips: other colours. Unset: none."""
    erase: Fraction = 0.0
    """Pictures and clips: chance that a rectangle of 2% to 33% of the area becomes grey."""
    noise: float = Field(default=0.0, ge=0)
    """Series and vectors: standard deviation of noise that is added, in standard deviations of each channel."""
    scale: Fraction = 0.0
    """Series: the distance from the mean is multiplied by a factor between 1 − scale and 1 + scale."""
    time_mask: Fraction = 0.0
    """Series and recordings: up to this share of the length, in one piece, is silent, or at the mean of each channel."""
    frequency_mask: Fraction = 0.0
    """Recordings: up to this share of the mel scale, in one piece, is filtered out."""


class AugmentConfig(Config):
    """Changes of the samples that a training makes at random; validations see none of them."""

    fields: dict[Name, FieldAugment] = Field(default={})
    """Input field → what is changed in it."""
    mixup: Alpha | None = None
    """Mix every sample with its neighbour in the batch, contents and labels, in shares drawn from Beta(mixup, mixup). Unset:
    samples are not mixed."""
    cutmix: Alpha | None = None
    """As ``mixup``, but a rectangle of a picture comes from the neighbour. With both, each sample gets one of them, by chance."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return self.mixup is not None or self.cutmix is not None


def check_augment(config: AugmentConfig, model: ModelConfig, fields: Mapping[str, FieldSpec]) -> None:
    """Checks that what is to be changed can be.

    Args:
        config: of the training.
        model: that has passed ``check_model``.
        fields: of the dataset, complete, its overrides applied.

    Raises:
        UsageError: a field that the model does not read, or a change that does not suit a field or the task.
    """
    for name, augment in config.fields.items():
        key = f"train.augment.fields.{name}"
        if name not in model.fields:
            raise UsageError(f"{key}: the model does not read {name!r}; it reads {', '.join(sorted(model.fields))}.")
        spec, suits = fields[name], _SUITS.get(fields[name].type, ())
        for change in type(augment).model_fields:
            if getattr(augment, change) and change not in suits:
                instead = f"set {' or '.join(suits)} instead, or " if suits else ""
                raise UsageError(
                    f"{key}.{change}: this can't be done to a field of type {spec.type}; {instead}leave it out."
                )
        if isinstance(spec, ImageField | VideoField) and spec.channels == 1 and augment.color is not None:
            for change in ("saturation", "hue"):
                if getattr(augment.color, change):
                    raise UsageError(f"{key}.color.{change}: {name!r} is grey and has none; leave it out.")
    if config.mixes:
        _check_mixing(config, model, fields)


def check_pairs(config: AugmentConfig, batch_size: int, workers: tuple[int, int]) -> None:
    """Checks that no two samples that are to be mixed go to different workers.

    Args:
        config: of the training.
        batch_size: samples of a step over all workers.
        workers: at the least and at the most.

    Raises:
        UsageError: some would, with a number of workers in between.
    """
    for number in range(workers[0], workers[1] + 1) if config.mixes else ():
        share = -(-batch_size // number)
        if share % 2:
            key = "mixup" if config.mixup is not None else "cutmix"
            raise UsageError(
                f"train.augment.{key} mixes pairs of neighbours, and of data.batch_size {batch_size} each of {number} workers "
                f"gets {share}, an odd number: a pair would be cut in two. Choose a data.batch_size, or resources.workers, with "
                "which each gets an even number."
            )


def _check_mixing(config: AugmentConfig, model: ModelConfig, fields: Mapping[str, FieldSpec]) -> None:
    key = "mixup" if config.mixup is not None else "cutmix"
    if not isinstance(model.task, LabelledTask):
        has = "several, of which a sample may lack some" if isinstance(model.task, SeveralTask) else "none"
        raise UsageError(
            f"train.augment.{key} mixes the labels of two samples, and the task {model.task.type} has {has}; leave it out."
        )
    if isinstance(model.task, SegmentTask | GridTask):
        raise UsageError(
            f"train.augment.{key} mixes the labels of two samples, and those of {model.task.type} are maps; leave it out."
        )
    for name in sorted(model.fields):
        if fields[name].type not in MIXABLE:
            raise UsageError(
                f"train.augment.{key}: the {name!r} of two samples can't be mixed, for it is of type {fields[name].type}; that "
                f"can be done with {', '.join(MIXABLE)}. Leave mixup and cutmix out."
            )
    if config.cutmix is None:
        return
    if FIGURES[model.task.type].target == "number":
        raise UsageError(
            "train.augment.cutmix: half of a picture says nothing of half of a number; with model.task.type "
            f"{model.task.type} leave it out, or set mixup."
        )
    if not any(fields[name].type in ("image", "video") for name in model.fields):
        raise UsageError(
            "train.augment.cutmix cuts a rectangle out of pictures, and the model reads none; leave it out, or set mixup."
        )
