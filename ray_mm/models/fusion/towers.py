"""Towers: each side of a sample by itself, its fields joined by the model's fusion. No tower sees what is in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Towers(nn.Module):
    """(encoded, presence) → [B, K, D], a vector for each of K towers.

    Args:
        fusions: (encoded, presence) → [B, D], of each tower, or one for all of them.
        known: the fields that each fusion knows.
        towers: the fields of each tower.
    """

    def __init__(
        self, fusions: Sequence[nn.Module], known: Sequence[Sequence[str]], towers: Sequence[Sequence[str]]
    ) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(fusions)
        self.known = [list(names) for names in known]
        self.towers = [list(names) for names in towers]

    def forward(self, encoded: Mapping[str, tuple[Tensor, Tensor]], presence: Mapping[str, Tensor]) -> Tensor:
        vectors = []
        for place, names in enumerate(self.towers):
            # A fusion for all of them knows the field of each under one name.
            own = place if len(self.fusions) > 1 else 0
            called = list(zip(self.known[own], names, strict=True))
            vectors.append(
                self.fusions[own](
                    {name: encoded[field] for name, field in called}, {name: presence[field] for name, field in called}
                )
            )
        return torch.stack(vectors, dim=1)
