"""``cross_attention``: the tokens of each field attend to those of every other one, pair by pair (MulT, arXiv 1906.00295).

What a field finds in the others is averaged over those that are there. Cost grows with the square of the number of fields and of
their tokens; with many fields, ``bottleneck`` or ``latent`` do with less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import CrossAttentionFusion
from ray_mm.models.fusion.pooling import PooledFields
from ray_mm.models.layers import Attention, FeedForward, SharedDropout


class CrossAttention(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width, heads, layers and dropout.
        fields: sorted.
    """

    def __init__(self, config: CrossAttentionFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.fields = list(fields)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in fields)
        self.nothing = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(
            _Layer(len(self.fields), dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.pool = PooledFields(fields, dim)
        self.join = nn.Linear(len(self.fields) * dim, dim)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        there = [presence[name] for name in self.fields]
        masks = [encoded[name][1] & here[:, None] for name, here in zip(self.fields, there, strict=True)]
        sources = [
            self._with_nothing(norm(encoded[name][0])) for name, norm in zip(self.fields, self.norms, strict=True)
        ]
        attended = [torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1) for mask in masks]
        tokens = [encoded[name][0] for name in self.fields]
        for layer in self.layers:
            tokens = layer(tokens, sources, attended, there)
        seen = {name: (found, mask) for name, found, mask in zip(self.fields, tokens, masks, strict=True)}
        fused = self.join(torch.cat(self.pool(seen, presence), dim=-1))
        result: Tensor = self.dropout(self.norm(self.mix(fused[:, None])[:, 0]))
        return result

    def _with_nothing(self, tokens_BTD: Tensor) -> Tensor:
        """A token more that is always there: a softmax over nothing is not a number."""
        nothing = self.nothing.expand(tokens_BTD.shape[0], 1, -1).to(tokens_BTD.dtype)
        return torch.cat([nothing, tokens_BTD], dim=1)


class _Layer(nn.Module):
    """The tokens of every field attend to those of all others, then each by itself."""

    def __init__(self, num_fields: int, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_fields))
        # Row by row: the field that attends, and those that it attends to.
        self.across = nn.ModuleList(
            nn.ModuleList(Attention(dim, heads) for _ in range(num_fields - 1)) for _ in range(num_fields)
        )
        self.feed_forward = nn.ModuleList(FeedForward(dim, dropout) for _ in range(num_fields))
        self.dropout = SharedDropout(dropout)

    def forward(
        self, tokens: list[Tensor], sources: list[Tensor], masks: list[Tensor], there: list[Tensor]
    ) -> list[Tensor]:
        found = []
        for place, (own, norm, across, feed_forward) in enumerate(
            zip(tokens, self.norms, self.across, self.feed_forward, strict=True)
        ):
            others = [other for other in range(len(tokens)) if other != place]
            if others:
                query = norm(own)
                weights = torch.stack([there[other] for other in others], dim=1).to(own.dtype)
                weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
                heard = sum(
                    weights[:, number, None, None] * attend(query, sources[other], masks[other])
                    for number, (other, attend) in enumerate(zip(others, across.children(), strict=True))
                )
                own = own + self.dropout(heard)
            found.append(feed_forward(own))
        return found
