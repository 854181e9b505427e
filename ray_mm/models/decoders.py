"""The fused vector [B, D] → what each field was like: a small decoder per field, as weak as it may be, for what is learned by
reconstruction should be learned by the encoders.

Pictures, clips, spectrograms and clouds seen from above are made by convolutions from a coarse grid of which each side is doubled
twice, all else by a perceptron.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, PointsField, VideoField
from ray_mm.data.targets import target_shape

_CHANNELS = (64, 32, 16)
"""Of the coarse grid, and after each doubling."""
_EXPANSION = 4


class ReconstructHead(nn.Module):
    """[B, D] → [B, N]: the standardised targets of all fields, side by side (see ``data.targets``).

    Args:
        names: the fields that are reconstructed, sorted.
        fields: their specs.
        dim: D.
    """

    def __init__(self, names: Sequence[str], fields: Mapping[str, FieldSpec], dim: int) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(_decoder(fields[name], dim) for name in names)

    def forward(self, fused_BD: Tensor) -> Tensor:
        return torch.cat([decoder(fused_BD) for decoder in self.decoders], dim=-1)


def _decoder(spec: FieldSpec, dim: int) -> nn.Module:
    shape = target_shape(spec)
    match spec:
        case ImageField() | PointsField():
            rows, columns, channels = shape
            return GridDecoder(dim, rows, columns, channels)
        case AudioField():
            rows, columns = shape
            return GridDecoder(dim, rows, columns, 1)
        case VideoField():
            return ClipDecoder(dim, shape)
        case _:
            size = math.prod(shape)
            return nn.Sequential(nn.Linear(dim, _EXPANSION * dim), nn.GELU(), nn.Linear(_EXPANSION * dim, size))


class GridDecoder(nn.Module):
    """[B, D] → [B, rows × columns × channels], the channels of a place beside each other.

    Args:
        dim: D.
        rows: of the grid.
        columns: of the grid.
        channels: of each place.
    """

    def __init__(self, dim: int, rows: int, columns: int, channels: int) -> None:
        super().__init__()
        coarse, middle, fine = _CHANNELS
        self.rows, self.columns = rows, columns
        self.start = (coarse, -(-rows // 4), -(-columns // 4))
        self.spread = nn.Linear(dim, math.prod(self.start))
        self.first = nn.Sequential(
            nn.Conv2d(coarse, middle, 3, padding=1), nn.GroupNorm(middle // 8, middle), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(middle, fine, 3, padding=1), nn.GroupNorm(fine // 8, fine), nn.ReLU())
        self.output = nn.Conv2d(fine, channels, 3, padding=1)

    def forward(self, fused_BD: Tensor) -> Tensor:
        x_BCHW = self.spread(fused_BD).relu().reshape(-1, *self.start)
        x_BCHW = self.second(_doubled(self.first(_doubled(x_BCHW))))
        grid: Tensor = self.output(x_BCHW)[:, :, : self.rows, : self.columns]
        return grid.permute(0, 2, 3, 1).flatten(1)


class ClipDecoder(nn.Module):
    """[B, D] → [B, frames × rows × columns × channels]: all frames at once, as channels of one picture.

    Args:
        dim: D.
        shape: of the clip.
    """

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.frames, rows, columns, channels = shape
        self.grid = GridDecoder(dim, rows, columns, self.frames * channels)
        self.places, self.channels = rows * columns, channels

    def forward(self, fused_BD: Tensor) -> Tensor:
        together: Tensor = self.grid(fused_BD).reshape(-1, self.places, self.frames, self.channels)
        return together.transpose(1, 2).flatten(1)


def _doubled(x_BCHW: Tensor) -> Tensor:
    """Every place four times: in operations that every exporter knows, whatever the batch."""
    wide = x_BCHW[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return wide.flatten(4, 5).flatten(2, 3)
