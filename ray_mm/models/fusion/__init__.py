"""Fusion: the tokens of all fields and their presence → one vector per sample [B, D].

    pooling.py           tokens of a field → one vector; a learned one where the field is absent
    concat.py            vectors side by side, then a perceptron
    gated.py             a gate per field and sample weighs the vectors
    cross_attention.py   learned queries attend to the tokens of all fields that are there

Every fusion takes (tokens [B, T, D], mask bool [B, T]) per field and presence (bool [B]) per field, and gives a finite
result with any of them absent, all of them included. What an absent field's arrays hold has no influence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from typing_extensions import assert_never

from ray_mm.config.model import ConcatFusion, CrossAttentionFusion, FusionConfig, GatedFusion
from ray_mm.models.fusion.concat import Concat
from ray_mm.models.fusion.cross_attention import CrossAttention
from ray_mm.models.fusion.gated import Gated

Encoded = Mapping[str, tuple[Tensor, Tensor]]
"""Field → tokens [B, T, D] and mask bool [B, T]."""


def build_fusion(config: FusionConfig, fields: Sequence[str]) -> nn.Module:
    """A fusion with fresh weights: (encoded, presence) → [B, D]. ``fields`` are sorted."""
    match config:
        case ConcatFusion():
            return Concat(config, fields)
        case GatedFusion():
            return Gated(config, fields)
        case CrossAttentionFusion():
            return CrossAttention(config, fields)
        case _:
            assert_never(config)
