"""``model.fusion`` of a train job: how the fields are joined."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from ray_mm.config.base import Config, Name
from ray_mm.config.own import OWN_FUSIONS, find_own
from ray_mm.errors import UsageError


class _Fusion(Config):
    dim: int = Field(default=128, ge=8, multiple_of=8)
    """Width of a field's tokens and of the fused vector."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the fusion and on the fused vector."""


class LateFusion(_Fusion):
    """Each field decides by itself; the mean of their outputs counts."""

    method: Literal["late"] = "late"


class ConcatFusion(_Fusion):
    """One pooled vector per field, concatenated."""

    method: Literal["concat"] = "concat"


class GatedFusion(_Fusion):
    """A gate per field and sample weighs pooled vectors (GMU)."""

    method: Literal["gated"] = "gated"


class LowRankFusion(_Fusion):
    """Products of all fields' pooled vectors (LMF)."""

    method: Literal["low_rank"] = "low_rank"
    rank: int = Field(default=4, ge=1, le=64)
    """Products that are added up."""


class FilmFusion(_Fusion):
    """Fields scale and shift the tokens of the others (FiLM)."""

    method: Literal["film"] = "film"
    condition: Name | None = None
    """The field that does, such as a question about a picture. Unset: all of them together."""


class ExpertsFusion(_Fusion):
    """An expert per field; a softmax over those that are there weighs them."""

    method: Literal["experts"] = "experts"


class _AttentionFusion(_Fusion):
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide ``dim``."""
    layers: int = Field(default=2, ge=1, le=24)
    """Attention layers."""


class CrossAttentionFusion(_AttentionFusion):
    """The tokens of each field attend to those of every other one (MulT)."""

    method: Literal["cross_attention"] = "cross_attention"


class BottleneckFusion(_AttentionFusion):
    """Fields exchange what they know through a few tokens only (MBT)."""

    method: Literal["bottleneck"] = "bottleneck"
    tokens: int = Field(default=4, ge=1, le=64)
    """Tokens that all fields share."""


class LatentFusion(_AttentionFusion):
    """Learned queries attend to the tokens of all fields (Perceiver)."""

    method: Literal["latent"] = "latent"


class OwnFusion(_Fusion):
    """One that another package brings along."""

    method: Literal["own"] = "own"
    name: Annotated[str, Field(min_length=1)] | None = None
    """Its entry point in the group ``ray_mm.fusions``; see ``docs/extending.md``."""
    options: dict[str, JsonValue] | None = None
    """Settings of its own. Unset: none."""


FusionConfig = Annotated[
    LateFusion
    | ConcatFusion
    | GatedFusion
    | LowRankFusion
    | FilmFusion
    | ExpertsFusion
    | CrossAttentionFusion
    | BottleneckFusion
    | LatentFusion
    | OwnFusion,
    Field(discriminator="method"),
]


def check_fusion(fusion: FusionConfig, fields: Collection[str], in_towers: bool = False) -> None:
    """Checks a fusion against the names of the model's inputs.

    Args:
        fusion: of the model.
        fields: the inputs.
        in_towers: whether it joins the fields of each tower, and not all of them.

    Raises:
        UsageError: attention heads that do not divide the width, a field that is no input, a condition that other towers would
            not have, or a fusion that no package brings along.
    """
    if isinstance(fusion, OwnFusion):
        find_own("model.fusion.name", OWN_FUSIONS, fusion.name)
    if isinstance(fusion, FilmFusion) and fusion.condition is not None and in_towers:
        raise UsageError(
            f"model.fusion.condition: {fusion.condition!r} stands in one tower, and the fusion is that of each; leave it out."
        )
    if isinstance(fusion, FilmFusion) and fusion.condition is not None and fusion.condition not in fields:
        raise UsageError(
            f"model.fusion.condition: {fusion.condition!r} is no input of the model; choose one of "
            f"{', '.join(sorted(fields))}, or leave the key out."
        )
    if isinstance(fusion, _AttentionFusion) and fusion.dim % fusion.heads:
        raise UsageError(
            f"model.fusion.heads: {fusion.heads} heads do not divide the width model.fusion.dim of {fusion.dim}; choose "
            "heads that do, such as 4."
        )
