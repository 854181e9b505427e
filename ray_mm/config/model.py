"""``model:`` of a train job: an encoder per field, one fusion, one task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from ray_mm.config.base import Config, Name
from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.errors import UsageError

ENCODERS: dict[str, tuple[str, ...]] = {
    "image": ("cnn",),
    "text": ("recurrent", "transformer"),
    "audio": ("mel_cnn",),
    "series": ("cnn", "recurrent"),
    "points": ("pointnet",),
    "vector": ("mlp",),
}
"""Field type → the encoders that take it, the default first."""


class EncoderConfig(Config):
    """One field's encoder."""

    encoder: Literal["cnn", "recurrent", "transformer", "mel_cnn", "pointnet", "mlp"] | None = None
    """Which architecture. Unset: the default for the field's type."""
    size: Literal["small", "base"] = "small"
    """Width and depth."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the encoder."""


class ConcatFusion(Config):
    """One pooled vector per field, concatenated."""

    method: Literal["concat"] = "concat"
    dim: int = Field(default=128, ge=8, multiple_of=8)
    """Width of a field's tokens and of the fused vector."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the fused vector."""


class GatedFusion(Config):
    """A gate per field and sample weighs pooled vectors (GMU)."""

    method: Literal["gated"] = "gated"
    dim: int = Field(default=128, ge=8, multiple_of=8)
    """Width of a field's tokens and of the fused vector."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the fused vector."""


class CrossAttentionFusion(Config):
    """Learned queries attend to the tokens of all fields."""

    method: Literal["cross_attention"] = "cross_attention"
    dim: int = Field(default=128, ge=8, multiple_of=8)
    """Width of a field's tokens and of the fused vector."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide ``dim``."""
    layers: int = Field(default=2, ge=1, le=24)
    """Attention layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the layers and on the fused vector."""


FusionConfig = Annotated[ConcatFusion | GatedFusion | CrossAttentionFusion, Field(discriminator="method")]


class ClassifyTask(Config):
    """Predict one of the classes of a label."""

    type: Literal["classify"] = "classify"
    label: Name
    """The label field."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""


class RegressTask(Config):
    """Predict a number."""

    type: Literal["regress"] = "regress"
    label: Name
    """The label field."""
    loss: Literal["mse", "huber"] = "mse"
    """Squared error, or Huber's (less swayed by outliers), on the standardised label."""


TaskConfig = Annotated[ClassifyTask | RegressTask, Field(discriminator="type")]


class ModelConfig(Config):
    """Everything that decides the shape of the network, apart from the dataset's fields."""

    fields: dict[Name, EncoderConfig] = Field(min_length=1)
    """The input fields and their encoders."""
    fusion: FusionConfig = GatedFusion()
    """How the fields are joined."""
    task: TaskConfig
    """What is predicted."""


MIN_IMAGE_SIDE = 8
"""Pixels that a picture must have in both directions: after two halvings something of it is left."""


def encoder_name(spec: FieldSpec, config: EncoderConfig) -> str:
    """The encoder that a field gets: the configured one, or the default for its type."""
    return config.encoder or ENCODERS[spec.type][0]


def check_model(config: ModelConfig, fields: Mapping[str, FieldSpec]) -> None:
    """Checks a model against the fields of a dataset, before anything starts.

    Args:
        config: of the model.
        fields: of the dataset, complete, its overrides applied.

    Raises:
        UsageError: a field or label that is not there or is of the wrong kind, an encoder that does not take the
            field's type, a picture that is too small, or attention heads that do not divide the width.
    """
    for name, encoder in config.fields.items():
        _check_input(f"model.fields.{name}", name, encoder, fields)
    _check_label(config.task, fields)
    fusion = config.fusion
    if isinstance(fusion, CrossAttentionFusion) and fusion.dim % fusion.heads:
        raise UsageError(
            f"model.fusion.heads: {fusion.heads} heads do not divide the width model.fusion.dim of {fusion.dim}; choose "
            "heads that do, such as 4."
        )


def _check_input(key: str, name: str, encoder: EncoderConfig, fields: Mapping[str, FieldSpec]) -> None:
    spec = fields.get(name)
    inputs = sorted(known for known, field in fields.items() if field.type != "label")
    if spec is None:
        raise UsageError(
            f"{key}: the dataset has no field {name!r}; fields that can be inputs are {', '.join(inputs)}."
        )
    if spec.type == "label":
        raise UsageError(f"{key}: {name!r} is a label and can't be an input; inputs can be {', '.join(inputs)}.")
    if spec.type not in ENCODERS:
        raise UsageError(
            f"{key}: no encoder takes a field of type {spec.type} yet; leave {name!r} out of model.fields. Inputs can be of the "
            f"types {', '.join(ENCODERS)}."
        )
    if encoder_name(spec, encoder) not in ENCODERS[spec.type]:
        raise UsageError(
            f"{key}.encoder: {encoder.encoder!r} does not take a field of type {spec.type}; choose "
            f"{' or '.join(ENCODERS[spec.type])}, or leave the key out."
        )
    if spec.type == "audio" and spec.channels > 1:
        raise UsageError(
            f"{key}: no encoder takes {spec.channels} audio channels yet; set data.fields.{name}.channels to 1, which averages "
            "them."
        )
    if spec.type == "image":
        height, width = spec.height, spec.width
        if height is not None and width is not None and min(height, width) < MIN_IMAGE_SIDE:
            raise UsageError(
                f"{key}: pictures of {width}×{height} pixels are too small, the encoder needs {MIN_IMAGE_SIDE} in both "
                f"directions; set data.fields.{name}.height and width."
            )


def _check_label(task: TaskConfig, fields: Mapping[str, FieldSpec]) -> None:
    spec = fields.get(task.label)
    labels = sorted(name for name, field in fields.items() if field.type == "label")
    known = f"labels are {', '.join(labels)}" if labels else "it has no label at all"
    if spec is None:
        raise UsageError(f"model.task.label: the dataset has no field {task.label!r}; {known}.")
    if not isinstance(spec, LabelField):
        raise UsageError(f"model.task.label: {task.label!r} is a field of type {spec.type}, not a label; {known}.")
    target = "class" if task.type == "classify" else "number"
    if spec.target != target:
        remedy = "set model.task.type to regress, or choose another label."
        if task.type == "regress":
            # To classify instead would fit the dataset, and not what was asked for.
            remedy = (
                f"make the dataset again with {task.label}: {{type: label, target: number}}, or, to tell its "
                f"{len(spec.classes or ()):,} classes apart, set model.task.type to classify."
            )
        raise UsageError(
            f"model.task.type: {task.type} needs a label with target {target}, and {task.label!r} has target {spec.target}; "
            f"{remedy}"
        )
    if target == "class" and len(spec.classes or ()) < 2:
        raise UsageError(
            f"model.task.label: {task.label!r} has {len(spec.classes or ())} class; to classify it takes at least two."
        )
