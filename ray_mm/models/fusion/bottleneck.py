"""``bottleneck``: fields exchange what they know through a few tokens that all of them share (MBT, arXiv 2107.00135).

In each layer every field attends to its own tokens and to the shared ones; what these become is averaged over the fields that
are there. Cost grows with the number of fields, not with its square, and what is passed on has to be condensed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fusions import BottleneckFusion
from ray_mm.models.fusion.pooling import PooledFields, presence_mask
from ray_mm.models.layers import TransformerLayer


class Bottleneck(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width, heads, layers, shared tokens and dropout.
        fields: sorted.
    """

    def __init__(self, config: BottleneckFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.fields = list(fields)
        self.shared = nn.Parameter(torch.randn(config.tokens, dim) * 0.5)
        self.layers = nn.ModuleList(
            _Layer(len(self.fields), dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.pool = PooledFields(fields, dim)
        self.join = nn.Linear((1 + len(self.fields)) * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        tokens = [encoded[name][0] for name in self.fields]
        there_BM = presence_mask(self.fields, presence)
        masks = [encoded[name][1] & presence[name][:, None] for name in self.fields]
        shared_BSD = self.shared.expand(there_BM.shape[0], -1, -1).to(tokens[0].dtype)
        for layer in self.layers:
            shared_BSD, tokens = layer(shared_BSD, tokens, masks, there_BM)
        seen = {name: (found, mask) for name, found, mask in zip(self.fields, tokens, masks, strict=True)}
        fused = self.join(torch.cat([shared_BSD.mean(1), *self.pool(seen, presence)], dim=-1))
        result: Tensor = self.dropout(self.norm(fused))
        return result


class _Layer(nn.Module):
    """Every field attends to its own tokens and to the shared ones."""

    def __init__(self, num_fields: int, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.each = nn.ModuleList(TransformerLayer(dim, heads, dropout) for _ in range(num_fields))

    def forward(
        self, shared_BSD: Tensor, tokens: list[Tensor], masks: list[Tensor], there_BM: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        size = shared_BSD.shape[1]
        always = torch.ones_like(shared_BSD[..., 0], dtype=torch.bool)
        passed_on, found = [], []
        for own, mask, attend in zip(tokens, masks, self.each, strict=True):
            joined = attend(torch.cat([shared_BSD, own], dim=1), torch.cat([always, mask], dim=1))
            passed_on.append(joined[:, :size])
            found.append(joined[:, size:])
        weights = there_BM.to(shared_BSD.dtype)[..., None, None]
        mean = (torch.stack(passed_on, dim=1) * weights).sum(1) / weights.sum(1).clamp(min=1)
        # Without any field they stay what they are.
        return torch.where(there_BM.any(1)[:, None, None], mean, shared_BSD), found
