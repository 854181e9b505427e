"""Sensor series: float32 [B, T, C] and lengths → tokens over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import SeriesField
from ray_mm.data.manifest import Statistics
from ray_mm.models.encoders.patches import PatchTransformer
from ray_mm.models.layers import (
    MAX_TOKENS,
    FeedForward,
    MaskedConv,
    SharedDropout,
    length_mask,
    recurrent_layers,
    standardise,
)

# size → (width, convolutions at least)
_CNN = {"small": (64, 3), "base": (128, 6)}
# size → (width of the recurrent state, recurrent layers)
_RECURRENT = {"small": (128, 1), "base": (256, 2)}
_LEAST_PATCH = 4
"""Steps of a patch, at least."""


class SeriesCnn(nn.Module):
    """The ``cnn`` encoder of series: convolutions over time, strided while there are more than ``MAX_TOKENS`` steps."""

    def __init__(self, spec: SeriesField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.channels is not None and spec.max_length is not None
        width, at_least = _CNN[config.size]
        self.standardise = standardise(statistics, spec.channels)
        halvings = _halvings(spec.max_length)
        strides = [2] * halvings + [1] * max(1, at_least - halvings)
        inputs = [spec.channels, *[width] * (len(strides) - 1)]
        self.convs = nn.ModuleList(
            MaskedConv(channels, width, kernel=5, stride=stride)
            for channels, stride in zip(inputs, strides, strict=True)
        )
        self.finish = _Finish(width, _shortest(spec.max_length, halvings), dim, config.dropout)

    def forward(self, series_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x = self.standardise(series_BTC) * length_mask(length_B, series_BTC.shape[1])[..., None]
        for conv in self.convs:
            x, length_B = conv(x, length_B)
        return self.finish(x), length_mask(length_B, x.shape[1])


class SeriesRecurrent(nn.Module):
    """The ``recurrent`` encoder of series: forward in time, after strided convolutions where a series is long."""

    def __init__(self, spec: SeriesField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.channels is not None and spec.max_length is not None
        hidden, layers = _RECURRENT[config.size]
        self.standardise = standardise(statistics, spec.channels)
        halvings = _halvings(spec.max_length)
        width = _CNN[config.size][0]
        inputs = [spec.channels, *[width] * halvings]
        self.convs = nn.ModuleList(MaskedConv(channels, width, kernel=5, stride=2) for channels in inputs[:halvings])
        self.recur = recurrent_layers(config.cell, inputs[halvings], hidden, config.layers or layers, config.dropout)
        self.finish = _Finish(hidden, _shortest(spec.max_length, halvings), dim, config.dropout)

    def forward(self, series_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x = self.standardise(series_BTC) * length_mask(length_B, series_BTC.shape[1])[..., None]
        for conv in self.convs:
            x, length_B = conv(x, length_B)
        states, _ = self.recur(x)
        return self.finish(states), length_mask(length_B, x.shape[1])


class SeriesTransformer(nn.Module):
    """The ``transformer`` encoder of series: over patches of some steps each."""

    def __init__(self, spec: SeriesField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.channels is not None and spec.max_length is not None
        patch = max(_LEAST_PATCH, -(-spec.max_length // MAX_TOKENS))
        self.standardise = standardise(statistics, spec.channels)
        self.patches = PatchTransformer(spec.channels, spec.max_length, patch, config.size, config.dropout, dim)

    def forward(self, series_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x = self.standardise(series_BTC) * length_mask(length_B, series_BTC.shape[1])[..., None]
        tokens, mask = self.patches(x, length_B)
        return tokens, mask


class _Finish(nn.Module):
    """Width and position of tokens."""

    def __init__(self, width: int, num_tokens: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = SharedDropout(dropout)
        self.project = nn.Linear(width, dim)
        self.place = nn.Parameter(torch.randn(num_tokens, dim) * 0.02)
        self.mix = FeedForward(dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        result: Tensor = self.norm(self.mix(self.project(self.dropout(x_BTC)) + self.place))
        return result


def _halvings(length: int) -> int:
    """How often a series must be halved to fit in ``MAX_TOKENS``."""
    count = 0
    while _shortest(length, count) > MAX_TOKENS:
        count += 1
    return count


def _shortest(length: int, halvings: int) -> int:
    return -(-length // (1 << halvings))
