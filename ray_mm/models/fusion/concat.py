"""``concat``: the fields' vectors side by side, then a perceptron of two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.model import ConcatFusion
from ray_mm.models.fusion.pooling import PooledFields


class Concat(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width and dropout.
        fields: sorted.
    """

    def __init__(self, config: ConcatFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.pool = PooledFields(fields, dim)
        self.join = nn.Sequential(
            nn.Linear(len(fields) * dim, 2 * dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * dim, dim),
            nn.LayerNorm(dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = self.join(torch.cat(self.pool(encoded, presence), dim=-1))
        return result
