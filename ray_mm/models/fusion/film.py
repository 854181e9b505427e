"""``film``: one field, or all together, scale and shift the channels of every field's tokens (FiLM, arXiv 1709.07871).

A question decides what of a picture gets through before the picture is summed up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.fusions import FilmFusion
from ray_mm.models.fusion.pooling import PooledFields
from ray_mm.models.layers import FeedForward


class Film(nn.Module):
    """(encoded, presence) → [B, D].

    Args:
        config: width, dropout, and the field that conditions the others.
        fields: sorted.
    """

    def __init__(self, config: FilmFusion, fields: Sequence[str]) -> None:
        super().__init__()
        dim = config.dim
        self.fields = list(fields)
        self.conditions = [config.condition] if config.condition is not None else self.fields
        self.before = PooledFields(fields, dim)
        self.modulate = nn.Linear(len(self.conditions) * dim, len(self.fields) * 2 * dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in fields)
        self.project = nn.ModuleList(nn.Linear(dim, dim) for _ in fields)
        self.after = PooledFields(fields, dim)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        vectors = dict(zip(self.fields, self.before(encoded, presence), strict=True))
        condition = torch.cat([vectors[name] for name in self.conditions], dim=-1)
        changes = self.modulate(condition).reshape(condition.shape[0], len(self.fields), 2, -1).unbind(1)
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, change, norm, project in zip(self.fields, changes, self.norms, self.project, strict=True):
            tokens, mask = encoded[name]
            scale, shift = change[:, 0, None], change[:, 1, None]
            seen[name] = tokens + project(F.relu(norm(tokens) * (1 + scale) + shift)), mask
        fused = torch.stack(self.after(seen, presence), dim=1).mean(1)
        result: Tensor = self.dropout(self.norm(self.mix(fused[:, None])[:, 0]))
        return result
