"""Fusion: the tokens of all fields and their presence → one vector per sample [B, D].

    pooling.py           tokens of a field → one vector; a learned one where the field is absent
    late.py              the mean of what each field says by itself
    concat.py            vectors side by side, then a perceptron
    gated.py             a gate per field and sample weighs the vectors
    low_rank.py          products of all fields' vectors
    film.py              fields scale and shift the tokens of the others
    experts.py           an expert per field, weighed by a softmax over those that are there
    cross_attention.py   the tokens of each field attend to those of every other one
    bottleneck.py        fields exchange what they know through a few shared tokens
    latent.py            learned queries attend to the tokens of all fields that are there
    towers.py            several of these side by side, each of other fields, that know nothing of each other

Every fusion takes (tokens [B, T, D], mask bool [B, T]) per field and presence (bool [B]) per field, and gives a finite
result with any of them absent, all of them included. What an absent field's arrays hold has no influence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from typing_extensions import assert_never

from ray_mm.config.fusions import (
    BottleneckFusion,
    ConcatFusion,
    CrossAttentionFusion,
    ExpertsFusion,
    FilmFusion,
    FusionConfig,
    GatedFusion,
    LateFusion,
    LatentFusion,
    LowRankFusion,
    OwnFusion,
)
from ray_mm.models.fusion.bottleneck import Bottleneck
from ray_mm.models.fusion.concat import Concat
from ray_mm.models.fusion.cross_attention import CrossAttention
from ray_mm.models.fusion.experts import Experts
from ray_mm.models.fusion.film import Film
from ray_mm.models.fusion.gated import Gated
from ray_mm.models.fusion.late import Late
from ray_mm.models.fusion.latent import Latent
from ray_mm.models.fusion.low_rank import LowRank
from ray_mm.models.own import own_fusion

Encoded = Mapping[str, tuple[Tensor, Tensor]]
"""Field → tokens [B, T, D] and mask bool [B, T]."""


def build_fusion(config: FusionConfig, fields: Sequence[str]) -> nn.Module:
    """A fusion with fresh weights: (encoded, presence) → [B, D]. ``fields`` are sorted."""
    match config:
        case LateFusion():
            return Late(config, fields)
        case ConcatFusion():
            return Concat(config, fields)
        case GatedFusion():
            return Gated(config, fields)
        case LowRankFusion():
            return LowRank(config, fields)
        case FilmFusion():
            return Film(config, fields)
        case ExpertsFusion():
            return Experts(config, fields)
        case CrossAttentionFusion():
            return CrossAttention(config, fields)
        case BottleneckFusion():
            return Bottleneck(config, fields)
        case LatentFusion():
            return Latent(config, fields)
        case OwnFusion():
            return own_fusion(config, fields)
        case _:
            assert_never(config)
