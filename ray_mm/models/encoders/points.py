"""Point clouds: float32 [B, N, C] and the number of points → a few tokens that summarise the cloud.

As in PointNet (arXiv 1612.00593) the same network looks at every point and a maximum over points makes the result
independent of their order; a second network sees each point beside the summary of all. What fusion gets is the maximum and
some weighted means with learned weights, not the points themselves: a LiDAR sweep has thousands.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import PointsField
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import FeedForward, SharedDropout, length_mask, masked_max, standardise

_WIDTH = {"small": 96, "base": 192}
_NUM_MEANS = 7


class PointNet(nn.Module):
    """The ``pointnet`` encoder: float32 [B, N, C], length int32 [B] → 8 tokens, whatever the order of the points."""

    def __init__(self, spec: PointsField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.channels is not None
        width = _WIDTH[config.size]
        self.standardise = standardise(statistics, spec.channels)
        self.each = nn.Sequential(
            nn.Linear(spec.channels, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.in_context = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.weigh = nn.Linear(width, _NUM_MEANS)
        self.dropout = SharedDropout(config.dropout)
        self.project = nn.Linear(width, dim)
        self.place = nn.Parameter(torch.randn(1 + _NUM_MEANS, dim) * 0.02)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, points_BNC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        mask = length_mask(length_B, points_BNC.shape[1])
        x = self.each(self.standardise(points_BNC) * mask[..., None])
        whole = masked_max(x, mask)[:, None].expand_as(x)
        x = self.in_context(torch.cat([x, whole], dim=-1))
        # A finite stand-in for −∞: where there is no point at all, the softmax must stay a number.
        weights_BNS = F.softmax(self.weigh(x).float().masked_fill(~mask[..., None], -1e9), dim=1).to(x.dtype)
        summaries = torch.cat([masked_max(x, mask)[:, None], weights_BNS.transpose(1, 2) @ x], dim=1)
        tokens = self.norm(self.mix(self.project(self.dropout(summaries)) + self.place))
        return tokens, (length_B > 0)[:, None].expand(-1, 1 + _NUM_MEANS)
