"""Pictures: uint8 [B, height, width, channels] → a grid of tokens.

Strided 3×3 convolutions with GroupNorm (arXiv 1803.08494) halve the picture until at most 81 places are left: enough for
attention to point at something, few enough for two CPU cores. Widths grow as the picture shrinks, so each stage costs less
than the one before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.fields import ImageField
from ray_mm.config.model import EncoderConfig
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import FeedForward

_MAX_PLACES = 81
# size → (channels of the first stage, of the widest, residual blocks on the last grid)
_SIZES = {"small": (24, 128, 1), "base": (48, 256, 3)}


class ImageCnn(nn.Module):
    """The ``cnn`` encoder of pictures: uint8 [B, height, width, channels] → tokens on a grid, row by row."""

    def __init__(self, spec: ImageField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.height is not None and spec.width is not None
        height, width = spec.height, spec.width
        first, widest, num_blocks = _SIZES[config.size]
        shapes = _grid_shapes(height, width)
        # A picture that is small from the start has few stages, and needs its width earlier.
        first = 2 * first if len(shapes) < 3 else first
        layers: list[nn.Module] = []
        channels: int = spec.channels
        for stage in range(len(shapes)):
            following = min(widest, first << stage)
            layers.append(_conv(channels, following, stride=2))
            channels = following
        layers += [_Residual(channels) for _ in range(num_blocks)]
        self.stages = nn.Sequential(*layers)
        self.project = nn.Conv2d(channels, dim, 1)
        rows, columns = shapes[-1]
        self.place = nn.Parameter(torch.randn(rows * columns, dim) * 0.02)
        # After the position is added: a mean over tokens would otherwise lose what was where.
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        # A uint8 picture lies in memory as channels_last already; only its view changes.
        x = (image_BHWC.to(self.place.dtype) * (1 / 64) - 2).permute(0, 3, 1, 2)
        tokens = self.project(self.stages(x)).flatten(2).transpose(1, 2) + self.place
        tokens = self.norm(self.mix(tokens))
        return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _conv(channels, channels, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def _conv(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
        nn.GroupNorm(channels // 8, channels),
        nn.ReLU(inplace=True),
    )


def _grid_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns after each stage; at least two stages."""
    shapes: list[tuple[int, int]] = []
    while len(shapes) < 2 or height * width > _MAX_PLACES:
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((height, width))
    return shapes
