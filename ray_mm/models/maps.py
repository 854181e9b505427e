"""The head of ``segment`` and ``grid``: tokens on a grid, and what all other fields tell → a class for every cell of a map.

B batch, T tokens of the field that the map is made from, D their width, R × S its grid (T = R · S), C classes, H × W the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.models.layers import Attention

_WIDTHS = (96, 64, 32)
"""Channels on the grid of tokens, then after each doubling; the last repeats."""
_HEADS = 4
_MAX_CELLS = 16_384
"""Cells up to which the map is made finer by convolutions; what is left is interpolated."""


class MapHead(nn.Module):
    """[B, D] and tokens [B, T, D] → logits [B, C, H, W].

    The fused vector scales and shifts every token (FiLM, arXiv 1709.07871), and weighs D maps of places that are learned: so
    it can say something of one place, which a shift of all of them could not. The tokens then attend to it and to those of the
    other fields (arXiv 1706.03762), which know where they are, too. Convolutions double the grid (sub-pixel convolution, arXiv
    1609.05158) as often as it fits into the map.

    Args:
        dim: D.
        num_classes: C.
        grid: R and S.
        size: H and W, at least as large.
    """

    def __init__(self, dim: int, num_classes: int, grid: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = self.grid = grid
        self.size = size
        self.absent = nn.Parameter(torch.randn(rows * columns, dim) * 0.02)
        self.join = nn.Linear(dim, 3 * dim)
        self.place = nn.Parameter(torch.randn(rows * columns, dim))
        self.norm, self.norm_others = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, _HEADS if dim % _HEADS == 0 else 1)
        channels = _WIDTHS[0]
        self.mix = nn.Sequential(nn.Conv2d(dim, channels, 1), _Residual(channels), _Residual(channels))
        finer: list[nn.Module] = []
        while 2 * rows <= size[0] and 2 * columns <= size[1] and 4 * rows * columns <= _MAX_CELLS:
            following = _WIDTHS[min(1 + len(finer) // 3, len(_WIDTHS) - 1)]
            finer += [nn.Conv2d(channels, 4 * following, 1), nn.PixelShuffle(2), _Residual(following)]
            rows, columns, channels = 2 * rows, 2 * columns, following
        self.finer = nn.Sequential(*finer)
        self.output = nn.Conv2d(channels, num_classes, 1)
        self.is_whole = (rows, columns) == size

    def forward(
        self,
        fused_BD: Tensor,
        tokens_BTD: Tensor,
        there_B: Tensor,
        others: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """Makes the map.

        Args:
            fused_BD: of all fields.
            tokens_BTD: of the field that the map is made from.
            there_B: bool; where it is absent, its tokens are not looked at.
            others: tokens [B, U, D] of each other field, and which of them are there, bool [B, U].
        """
        x_BTD = torch.where(there_B[:, None, None], tokens_BTD, self.absent.to(tokens_BTD.dtype))
        gain, shift, placed = self.join(fused_BD)[:, None].chunk(3, dim=-1)
        x_BTD = x_BTD * (1 + gain) + shift + placed * self.place
        # The fused vector is always there, so that there is something to attend to.
        known = torch.cat([fused_BD[:, None], *(tokens for tokens, _ in others)], dim=1)
        mask = torch.cat([torch.ones_like(there_B)[:, None], *(there for _, there in others)], dim=1)
        x_BTD = x_BTD + self.attention(self.norm(x_BTD), self.norm_others(known), mask)
        x_BCHW = self.finer(self.mix(x_BTD.transpose(1, 2).reshape(*fused_BD.shape, *self.grid)))
        logits: Tensor = self.output(x_BCHW)
        return logits if self.is_whole else F.interpolate(logits, self.size, mode="bilinear", align_corners=False)


class _Residual(nn.Module):
    """Where the way around it is missing, the map learns where something is long before it learns what it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(channels // 8, channels), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result
