"""How the weights of a training change: the optimizer, its learning rate over the steps, what stays frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_mm.config.base import Config, Fraction

Decay = Annotated[float, Field(ge=0, lt=1)]

Part = Annotated[str, Field(pattern=r"^(encoders(\.[A-Za-z][A-Za-z0-9_-]*)?|fusion|head)$")]
"""Of a model: ``encoders`` (all of them), ``encoders.<field>``, ``fusion`` or ``head``."""


class OptimizerConfig(Config):
    """The optimizer."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon on the weights of linear layers, with AdamW on all else and on the head. Muon's steps are scaled to the size
    of AdamW's, so the same rate suits both."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay of AdamW's two moment averages."""
    momentum: Decay | None = None
    """Decay of Muon's average of the gradients. Unset: 0.95; AdamW has none."""
    parts: dict[Part, Annotated[float, Field(gt=0)]] = Field(default={})
    """Part of the model → what its learning rate is multiplied by, such as ``{encoders: 0.1, encoders.text: 0.5, head: 2}``;
    the longer name counts. Parts: ``encoders``, ``encoders.<field>``, ``fusion``, ``head``."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """What an encoder's learning rate is multiplied by for each layer further from its output, so that its first layers change
    least."""

    @model_validator(mode="after")
    def _has_momentum(self) -> OptimizerConfig:
        if self.name == "adamw" and self.momentum is not None:
            raise ValueError(f"momentum {self.momentum} is given, and adamw has none; set betas instead, or name: muon")
        return self


class CosineSchedule(Config):
    """Linear warm-up, then half a cosine down."""

    name: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""
    final: Fraction = 0.01
    """Learning rate at the end, as a share of the peak."""


class LinearSchedule(Config):
    """Linear warm-up, then a line down."""

    name: Literal["linear"] = "linear"
    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""
    final: Fraction = 0.0
    """Learning rate at the end, as a share of the peak."""


class ConstantSchedule(Config):
    """Linear warm-up, then constant."""

    name: Literal["constant"] = "constant"
    warmup: Fraction = 0.0
    """Share of all steps spent warming up."""


class WsdSchedule(Config):
    """Linear warm-up, constant for most of the training, then down as one minus a square root (warm-up, stable, decay)."""

    name: Literal["wsd"] = "wsd"
    warmup: Fraction = 0.05
    """Share of all steps spent warming up."""
    decay: Fraction = 0.2
    """Share of all steps, at the end, spent going down."""
    final: Fraction = 0.0
    """Learning rate at the end, as a share of the peak."""

    @model_validator(mode="after")
    def _fits(self) -> WsdSchedule:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are together more than the whole training")
        return self


ScheduleConfig = Annotated[
    CosineSchedule | LinearSchedule | ConstantSchedule | WsdSchedule, Field(discriminator="name")
]


def value_of_part(settings: Mapping[str, float], part: str, default: float) -> float:
    """What is set for a part of the model, such as ``encoders.image``: by its own name, else by that of all encoders."""
    return settings.get(part, settings.get(part.partition(".")[0], default))


def part_names(fields: Iterable[str]) -> list[str]:
    """The parts of a model with these fields."""
    return [*(f"encoders.{name}" for name in fields), "fusion", "head"]


def check_parts(key: str, settings: Mapping[str, float], fields: Mapping[str, object]) -> None:
    """Checks that the parts of some settings are parts of the model.

    Args:
        key: of the settings, for the message.
        settings: part → value.
        fields: the model's, by name.

    Raises:
        ValueError: one is not.
    """
    known = ["encoders", *part_names(sorted(fields))]
    for part in settings:
        if part not in known:
            raise ValueError(f"{key}: the model has no part {part!r}; its parts are {', '.join(known)}")
