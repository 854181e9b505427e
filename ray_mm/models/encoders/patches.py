"""Sequences as patches of some steps each, over which a transformer looks: what series and recordings have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.models.layers import SharedDropout, TransformerLayer, length_mask, shortened

# size → (width, layers, heads)
_SIZES = {"small": (128, 3, 4), "base": (256, 6, 8)}


class PatchTransformer(nn.Module):
    """[B, T, C] that is 0 beyond the lengths → tokens [B, T / patch, D] and their mask.

    Args:
        channels: C.
        num_steps: T.
        patch: steps of a patch.
        size: small or base.
        dropout: inside.
        dim: D.
    """

    def __init__(self, channels: int, num_steps: int, patch: int, size: str, dropout: float, dim: int) -> None:
        super().__init__()
        width, layers, heads = _SIZES[size]
        self.patch = patch
        self.num_patches = -(-num_steps // patch)
        self.missing = self.num_patches * patch - num_steps
        self.embed = nn.Linear(patch * channels, width)
        self.place = nn.Parameter(torch.randn(self.num_patches, width) * 0.02)
        self.dropout = SharedDropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)

    def forward(self, x_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.pad(x_BTC, (0, 0, 0, self.missing)).reshape(x_BTC.shape[0], self.num_patches, -1)
        mask = length_mask(shortened(length_B, self.patch), self.num_patches)
        # Where there is no step at all, a softmax over nothing is not a number: the first patch always counts here.
        attended = mask | (torch.arange(self.num_patches, device=mask.device) == 0)
        x_BTD = self.dropout(self.embed(patches) + self.place)
        for layer in self.layers:
            x_BTD = layer(x_BTD, attended)
        return self.project(self.norm(x_BTD)), mask
