"""``low_rank``: the outer product of all fields' vectors, through factors of low rank (LMF, arXiv 1806.00064).

    fused = Σ_r  w_r ⊙ (A_1r v_1 + 1) ⊙ … ⊙ (A_Mr v_M + 1)

Every product of some of the fields is among the summands, without a tensor that grows with their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import LowRankFusion
from ray_mm.models.fusion.pooling import PooledFields
from ray_mm.models.layers import FeedForward


class LowRank(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width, rank and dropout.
        fields: sorted.
    """

    def __init__(self, config: LowRankFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.rank = config.rank
        self.pool = PooledFields(fields, dim)
        self.factors = nn.ModuleList(nn.Linear(dim, config.rank * dim) for _ in fields)
        self.weigh = nn.Parameter(torch.randn(config.rank, dim) / config.rank**0.5)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        # Bounded, so that a product of many is neither lost nor without end.
        product = self.weigh.flatten()
        for factor, vector in zip(self.factors, self.pool(encoded, presence), strict=True):
            product = product * (1 + torch.tanh(factor(vector)))
        fused = product.reshape(product.shape[0], self.rank, -1).sum(1)
        result: Tensor = self.dropout(self.norm(self.mix(fused[:, None])[:, 0]))
        return result
