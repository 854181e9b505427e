"""Pictures as a sequence of patches: the vision transformer (ViT, arXiv 2010.11929), without a class token.

``base`` is ViT-B: 12 layers of width 768. It has few assumptions about pictures and needs many of them, or pretrained weights;
on little data and on CPUs the ``cnn`` is better and faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import DEFAULT_PATCH, EncoderConfig
from ray_mm.config.fields import ImageField
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import SharedDropout, TransformerLayer

# size → (width, layers, heads)
_SIZES = {"small": (192, 6, 3), "base": (768, 12, 12)}


class ImageTransformer(nn.Module):
    """The ``vit`` encoder of pictures: uint8 [B, height, width, channels] → a token per patch, row by row."""

    def __init__(self, spec: ImageField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.height is not None and spec.width is not None
        width, layers, heads = _SIZES[config.size]
        self.patch = config.patch or DEFAULT_PATCH
        num_patches = (spec.height // self.patch) * (spec.width // self.patch)
        self.embed = nn.Linear(self.patch * self.patch * spec.channels, width)
        self.place = nn.Parameter(torch.randn(num_patches, width) * 0.02)
        self.dropout = SharedDropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, config.dropout, expansion=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width, channels = image_BHWC.shape
        rows, columns = height // self.patch, width // self.patch
        pixels = image_BHWC.to(self.place.dtype) * (1 / 64) - 2
        patches = pixels.reshape(batch, rows, self.patch, columns, self.patch, channels).transpose(2, 3)
        x_BTD = self.dropout(self.embed(patches.reshape(batch, rows * columns, -1)) + self.place)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        tokens = self.project(self.norm(x_BTD))
        return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)
