"""``model:`` of a train job: an encoder per field, one fusion, one task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_mm.config.base import Config, Name

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
