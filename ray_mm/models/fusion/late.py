"""``late``: each field decides by itself, and the mean over the fields that are there counts.

A linear head of a mean is the mean of linear heads, so this is the mean of the fields' logits. What only follows from two fields
together can't be learned; each field alone is as good as it would be without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import LateFusion
from ray_mm.models.fusion.pooling import PooledFields, presence_mask
from ray_mm.models.layers import FeedForward, masked_mean


class Late(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width and dropout.
        fields: sorted.
    """

    def __init__(self, config: LateFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.pool = PooledFields(fields, dim, stand_ins=False)
        self.decide = nn.ModuleList(
            nn.Sequential(FeedForward(dim, config.dropout), nn.LayerNorm(dim), nn.Linear(dim, dim)) for _ in fields
        )
        self.nothing = nn.Parameter(torch.randn(dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        vectors = self.pool(encoded, presence)
        said = torch.stack(
            [decide(vector[:, None])[:, 0] for decide, vector in zip(self.decide, vectors, strict=True)], dim=1
        )
        there_BM = presence_mask(self.pool.fields, presence)
        mean = torch.where(there_BM.any(1, keepdim=True), masked_mean(said, there_BM), self.nothing.to(said.dtype))
        fused: Tensor = self.dropout(mean)
        return fused
