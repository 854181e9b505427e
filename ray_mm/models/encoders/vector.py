"""Fixed features: float32 [B, size] → one token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import VectorField
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import FeedForward, standardise

_LAYERS = {"small": 1, "base": 3}


class VectorMlp(nn.Module):
    """The ``mlp`` encoder of vectors: float32 [B, size] → tokens [B, 1, D]."""

    def __init__(self, spec: VectorField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.size is not None
        self.standardise = standardise(statistics, spec.size)
        self.project = nn.Sequential(nn.Linear(spec.size, dim), nn.GELU())
        self.layers = nn.Sequential(*(FeedForward(dim, config.dropout) for _ in range(_LAYERS[config.size])))
        self.norm = nn.LayerNorm(dim)

    def forward(self, vector_BV: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.layers(self.project(self.standardise(vector_BV))[:, None]))
        return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)
