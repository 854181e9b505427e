"""``latent``: a few queries attend to the tokens of all fields, as in Perceiver (arXiv 2103.03206).

Cost grows with the number of tokens, not with its square or with the number of pairs of fields. Some queries are learned, and
one stands for each field: what a question asks decides from the first layer on where a picture is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import LatentFusion
from ray_mm.models.fusion.pooling import PooledFields
from ray_mm.models.layers import Attention, FeedForward

_NUM_LEARNED = 4


class Latent(nn.Module):
    """(encoded, presence) → [B, D].

    Absent fields are masked out. One learned token belongs to no field and is always there, so that a sample without any
    field still has something to attend to.

    Args:
        config: width, heads, layers and dropout.
        fields: sorted.
    """

    def __init__(self, config: LatentFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.fields = list(fields)
        self.field = nn.ParameterList(nn.Parameter(torch.randn(dim) * 0.02) for _ in fields)
        self.nothing = nn.Parameter(torch.randn(dim) * 0.02)
        self.queries = nn.Parameter(torch.randn(_NUM_LEARNED, dim) * 0.5)
        self.pool = PooledFields(fields, dim)
        self.norm_tokens = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(_Layer(dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        tokens_BTD, mask_BT = self._join(encoded, presence)
        learned = self.queries.expand(tokens_BTD.shape[0], -1, -1).to(tokens_BTD.dtype)
        queries = torch.cat([learned, torch.stack(self.pool(encoded, presence), dim=1)], dim=1)
        for layer in self.layers:
            queries = layer(queries, tokens_BTD, mask_BT)
        result: Tensor = self.dropout(self.norm(queries.mean(1)))
        return result

    def _join(
        self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        first = encoded[self.fields[0]][0]
        tokens = [self.nothing.expand(first.shape[0], 1, -1).to(first.dtype)]
        masks = [torch.ones_like(first[:, :1, 0], dtype=torch.bool)]
        for name, field in zip(self.fields, self.field, strict=True):
            field_tokens, field_mask = encoded[name]
            tokens.append(field_tokens + field)
            masks.append(field_mask & presence[name][:, None])
        return self.norm_tokens(torch.cat(tokens, dim=1)), torch.cat(masks, dim=1)


class _Layer(nn.Module):
    """Queries attend to each other, then to the tokens."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_among = nn.LayerNorm(dim)
        self.among = Attention(dim, heads)
        self.norm_across = nn.LayerNorm(dim)
        self.across = Attention(dim, heads)
        self.feed_forward = FeedForward(dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries_BQD: Tensor, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        normed = self.norm_among(queries_BQD)
        queries_BQD = queries_BQD + self.dropout(self.among(normed, normed))
        queries_BQD = queries_BQD + self.dropout(self.across(self.norm_across(queries_BQD), tokens_BTD, mask_BT))
        result: Tensor = self.feed_forward(queries_BQD)
        return result
