"""Pictures: uint8 [B, height, width, channels] → a grid of tokens.

Strided convolutions with GroupNorm (arXiv 1803.08494) halve the picture until at most so many places are left as
``config.maps`` says. Widths grow as the picture shrinks, so each stage costs less than the one before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import ImageField
from ray_mm.config.maps import cnn_grid
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import SharedDropout

# Channels of each stage (the last repeats); residual blocks on the last grid make up the depth that stages leave open.
_CHANNELS = {"small": (16, 48, 96, 128), "base": (32, 96, 192, 256)}
_DEPTH = {"small": 4, "base": 6}


class ImageCnn(nn.Module):
    """The ``cnn`` encoder of pictures: uint8 [B, height, width, channels] → tokens on a grid, row by row."""

    def __init__(self, spec: ImageField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.height is not None and spec.width is not None
        rows, columns, num_stages = cnn_grid(spec.height, spec.width, config)
        widths: tuple[int, ...] = _CHANNELS[config.size]
        # A picture that is small from the start has few stages, and needs its channels earlier.
        widths = widths[1:] if num_stages < 3 else widths
        channels: int = spec.channels
        stages: list[nn.Module] = []
        for stage in range(num_stages):
            following = widths[min(stage, len(widths) - 1)]
            # The first sees few channels, so a wider window costs little there.
            stages.append(_conv(channels, following, kernel=3 if stage else 5, stride=2))
            channels = following
        self.stages = nn.Sequential(*stages)
        # Before the blocks: they can tie what there is to where it is, and a mean over tokens keeps it.
        self.place = nn.Parameter(torch.randn(channels, rows, columns) * 0.02)
        self.blocks = nn.Sequential(*(_Residual(channels) for _ in range(max(1, _DEPTH[config.size] - num_stages))))
        self.dropout = SharedDropout(config.dropout)
        self.project = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # Not by memory_format: with one channel it changes nothing, and gradients come in other strides than the
                # weight's, of which DistributedDataParallel complains.
                weight_OHWI = layer.weight.data.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
                layer.weight.data = weight_OHWI.permute(0, 3, 1, 2)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        # A uint8 picture lies in memory as channels_last already; only its view changes.
        x_BCHW = (image_BHWC.to(self.place.dtype) * (1 / 64) - 2).permute(0, 3, 1, 2)
        x_BTC = self.blocks(self.stages(x_BCHW) + self.place).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = self.norm(self.project(self.dropout(x_BTC)))
        return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _conv(channels, channels, kernel=3, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def _conv(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(channels // 8, channels),
        nn.ReLU(inplace=True),
    )
