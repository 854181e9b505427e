"""Point clouds seen from above: float32 [B, N, C] and the number of points → a grid of tokens, each of one place on the ground.

As in PointPillars (arXiv 1812.05784) the same network looks at every point and at where in its cell it lies, a maximum joins the
points of a cell, however high they are, and convolutions look at the grid of cells as at a picture.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.encoders import DEFAULT_CELLS, EncoderConfig
from ray_mm.config.fields import PointsField
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import SharedDropout, length_mask, standardise

# size → (channels of the grid, then those of each halving)
_CHANNELS = {"small": (48, 96, 128), "base": (96, 192, 256)}
_REACH_STD = 3.0
"""How far the grid goes from the mean of the training data, in standard deviations."""


class Pillars(nn.Module):
    """The ``pillars`` encoder of point clouds: tokens on a grid over the ground, row by row along x, whatever the points' order.

    Points beyond the grid take no part.
    """

    low: Tensor
    cell: Tensor

    def __init__(self, spec: PointsField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.channels is not None
        channels = _CHANNELS[config.size]
        self.cells = config.cells or DEFAULT_CELLS
        low_x, high_x, low_y, high_y = config.extent or extent_of(statistics)
        # Not in the saved weights, as statistics are not: both travel beside them.
        low, high = torch.tensor([low_x, low_y]), torch.tensor([high_x, high_y])
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("cell", (high - low) / self.cells, persistent=False)
        self.standardise = standardise(statistics, spec.channels)
        width = channels[0]
        self.each = nn.Sequential(
            nn.Linear(spec.channels + 2, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.ground = nn.Conv2d(width + 1, width, 3, padding=1)
        stages: list[nn.Module] = []
        side = self.cells
        for narrow, wide in itertools.pairwise(channels):
            stages += [nn.Conv2d(narrow, wide, 3, 2, padding=1), nn.GroupNorm(wide // 8, wide), nn.ReLU()]
            side = -(-side // 2)
        self.stages = nn.Sequential(*stages)
        self.place = nn.Parameter(torch.randn(channels[-1], side, side) * 0.02)
        self.mix = nn.Sequential(
            nn.Conv2d(channels[-1], channels[-1], 3, padding=1),
            nn.GroupNorm(channels[-1] // 8, channels[-1]),
            nn.ReLU(),
        )
        self.dropout = SharedDropout(config.dropout)
        self.project = nn.Linear(channels[-1], dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, points_BNC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = self.stages(F.relu(self.ground(self.grid(points_BNC, length_B)))) + self.place
        x_BTC = (x_BCHW + self.mix(x_BCHW)).flatten(2).transpose(1, 2)
        tokens = self.norm(self.project(self.dropout(x_BTC)))
        return tokens, (length_B > 0)[:, None].expand(-1, tokens.shape[1])

    def grid(self, points_BNC: Tensor, length_B: Tensor) -> Tensor:
        """[B, channels + 1, cells along x, cells along y]: what each cell's points say, and how many there are (log(1 + n))."""
        # Where a point lies is decided in single precision: a bfloat16 of 50 m is right to a quarter of a metre.
        place_BN2 = (points_BNC[..., :2].float() - self.low.float()) / self.cell.float()
        index_BN2 = place_BN2.floor()
        inside_BN = ((index_BN2 >= 0) & (index_BN2 < self.cells)).all(-1) & length_mask(length_B, points_BNC.shape[1])
        within = torch.where(inside_BN[..., None], place_BN2 - index_BN2 - 0.5, 0.0).to(points_BNC.dtype)
        kept = self.standardise(points_BNC) * inside_BN[..., None]
        said_BNC = self.each(torch.cat([kept, within], dim=-1)) * inside_BN[..., None]
        # What is not inside is added to one more cell, which is cut off again.
        row, column = index_BN2.clamp(-1, self.cells).long().unbind(-1)
        cell_BN = torch.where(inside_BN, row * self.cells + column, self.cells**2)
        empty = said_BNC.new_zeros(said_BNC.shape[0], self.cells**2 + 1, said_BNC.shape[2])
        # Zero is the least that a ReLU says, so the maximum may begin with it.
        highest = empty.scatter_reduce(1, cell_BN[..., None].expand_as(said_BNC), said_BNC, "amax")
        number = empty[..., 0].scatter_add(1, cell_BN, inside_BN.to(said_BNC.dtype)).log1p()
        grid_BPC = torch.cat([highest, number[..., None]], dim=-1)[:, :-1]
        return grid_BPC.transpose(1, 2).reshape(-1, grid_BPC.shape[2], self.cells, self.cells)


def extent_of(statistics: Statistics | None) -> tuple[float, float, float, float]:
    """x from, to; y from, to: where nearly all points of the training data lie."""
    mean, std = ((0.0, 0.0), (1.0, 1.0)) if statistics is None else (statistics.mean, statistics.std)
    low_x, low_y = (mean[axis] - _REACH_STD * std[axis] for axis in (0, 1))
    high_x, high_y = (mean[axis] + _REACH_STD * std[axis] for axis in (0, 1))
    return low_x, high_x, low_y, high_y
