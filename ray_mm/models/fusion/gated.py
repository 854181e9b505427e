"""``gated``: the gated multimodal unit (arXiv 1702.01992) for any number of fields.

    h_f = tanh(W_f v_f)     z_f = sigmoid(U_f [v_1 … v_M])     fused = Σ z_f h_f

Each gate sees all fields, so one field decides how much another counts: a product, which sums alone could not form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import GatedFusion
from ray_mm.models.fusion.pooling import PooledFields
from ray_mm.models.layers import FeedForward


class Gated(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width and dropout.
        fields: sorted.
    """

    def __init__(self, config: GatedFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.pool = PooledFields(fields, dim)
        self.value = nn.ModuleList(nn.Linear(dim, dim) for _ in fields)
        self.gate = nn.Linear(len(fields) * dim, len(fields) * dim)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        vectors = self.pool(encoded, presence)
        values = torch.cat([torch.tanh(value(vector)) for value, vector in zip(self.value, vectors, strict=True)], -1)
        gates = torch.sigmoid(self.gate(torch.cat(vectors, dim=-1)))
        fused = (gates * values).reshape(gates.shape[0], len(vectors), -1).sum(1)
        result: Tensor = self.dropout(self.norm(self.mix(fused[:, None])[:, 0]))
        return result
