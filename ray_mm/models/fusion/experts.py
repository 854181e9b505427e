"""``experts``: an expert per field, weighed by a softmax in which an absent field's logit is −∞.

The gate sees all fields, and its weights add up to one over those that are there: they tell what a decision rests on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.fusions import ExpertsFusion
from ray_mm.models.fusion.pooling import PooledFields, presence_mask
from ray_mm.models.layers import FeedForward


class Experts(nn.Module):
    """(encoded, presence) → [B, D]. One expert belongs to no field and is always there.

    Args:
        config: width and dropout.
        fields: sorted.
    """

    def __init__(self, config: ExpertsFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.pool = PooledFields(fields, dim)
        self.experts = nn.ModuleList(nn.Sequential(FeedForward(dim, config.dropout), nn.LayerNorm(dim)) for _ in fields)
        self.nothing = nn.Parameter(torch.randn(dim) * 0.02)
        self.gate = nn.Sequential(nn.Linear(len(fields) * dim, dim), nn.GELU(), nn.Linear(dim, 1 + len(fields)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        vectors = self.pool(encoded, presence)
        said = [expert(vector[:, None])[:, 0] for expert, vector in zip(self.experts, vectors, strict=True)]
        experts_BED = torch.stack([self.nothing.expand_as(said[0]).to(said[0].dtype), *said], dim=1)
        there_BM = presence_mask(self.pool.fields, presence)
        counts_BE = torch.cat([torch.ones_like(there_BM[:, :1]), there_BM], dim=1)
        logits_BE = self.gate(torch.cat(vectors, dim=-1)).float().masked_fill(~counts_BE, -torch.inf)
        weights_BE = F.softmax(logits_BE, dim=1).to(experts_BED.dtype)
        fused: Tensor = self.dropout((weights_BE[..., None] * experts_BED).sum(1))
        return fused
