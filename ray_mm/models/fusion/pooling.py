"""Tokens of a field → one vector; where the field is absent, a learned vector stands in for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.models.layers import masked_max, masked_mean


class PooledFields(nn.Module):
    """Each field's tokens → [B, D], from their mean and maximum.

    The mean keeps how much of something there is, the maximum whether it is there at all.

    Args:
        fields: sorted.
        dim: D.
        stand_ins: whether a learned vector stands in for an absent field, or zeros.
    """

    def __init__(self, fields: Sequence[str], dim: int, stand_ins: bool = True) -> None:
        super().__init__()
        self.fields = list(fields)
        self.reduce = nn.ModuleList(nn.Sequential(nn.Linear(2 * dim, dim), nn.LayerNorm(dim)) for _ in fields)
        self.absent = nn.ParameterList(nn.Parameter(torch.randn(dim) * 0.02) for _ in fields) if stand_ins else None

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> list[Tensor]:
        """Encoded fields and presence bool [B] → one [B, D] per field, in the order of ``fields``."""
        pooled = []
        for place, (name, reduce) in enumerate(zip(self.fields, self.reduce, strict=True)):
            tokens, mask = encoded[name]
            there = presence[name][:, None]
            # Masked by presence as well, so that what is not looked at is not summed up either.
            mask = mask & there
            vector = reduce(torch.cat([masked_mean(tokens, mask), masked_max(tokens, mask)], dim=-1))
            absent = torch.zeros_like(vector) if self.absent is None else self.absent[place].to(vector.dtype)
            pooled.append(torch.where(there, vector, absent))
        return pooled


def presence_mask(fields: Sequence[str], presence: Mapping[str, Tensor]) -> Tensor:
    """Which fields are there: bool [B, M], in the order of ``fields``."""
    return torch.stack([presence[name] for name in fields], dim=1)
