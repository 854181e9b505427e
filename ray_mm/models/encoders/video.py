"""Clips: uint8 [B, F, height, width, channels], the frames' times and their number → a token per frame.

Factorised: one convolutional network sees every frame by itself, and a second one sees the frames one after the other. What
passes between them is one vector per frame, so that the time of a step grows with the number of frames and no faster.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import ImageField, VideoField
from ray_mm.data.manifest import Statistics
from ray_mm.models.encoders.image import ImageCnn
from ray_mm.models.layers import (
    MAX_TOKENS,
    MaskedConv,
    SharedDropout,
    TransformerLayer,
    length_mask,
    recurrent_layers,
)

# size → (width, layers over time)
_SIZES = {"small": (128, 2), "base": (256, 4)}
_HEAD_WIDTH = 32
_PERIODS_S = tuple(0.25 * 2.0**octave for octave in range(10))
"""Of the waves that tell when a frame is shown: from a few frames to two minutes."""


class _VideoEncoder(nn.Module, abc.ABC):
    """What both encoders of clips have in common: frames as vectors, with their times."""

    def __init__(self, spec: VideoField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        width, self.num_layers = _SIZES[config.size]
        self.num_frames = spec.num_frames
        picture = ImageField(height=spec.height, width=spec.width, channels=spec.channels)
        self.frame = ImageCnn(picture, EncoderConfig(size=config.size, dropout=config.dropout), None, width)
        self.summarise = nn.Linear(2 * width, width)
        self.when = nn.Linear(2 * len(_PERIODS_S), width)
        self.periods = _Periods()
        self.dropout = SharedDropout(config.dropout)
        frames = self.num_frames
        shorten: list[nn.Module] = []
        while frames > MAX_TOKENS:
            frames = -(-frames // 2)
            shorten.append(MaskedConv(width, width, kernel=3, stride=2))
        self.shorten = nn.ModuleList(shorten)
        self.width = width
        self.num_tokens = frames
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)

    @abc.abstractmethod
    def over_time(self, x_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """[B, F, D] of frames, 0 where there is none → the same, each knowing of others."""

    def forward(self, video_BFHWC: Tensor, time_BF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        tokens_NTD, _ = self.frame(video_BFHWC.flatten(0, 1))
        seen_ND = self.summarise(torch.cat([tokens_NTD.mean(1), tokens_NTD.amax(1)], dim=-1))
        x_BFD = seen_ND.reshape(-1, self.num_frames, self.width) + self.when(self.periods(time_BF).to(seen_ND.dtype))
        mask = length_mask(length_B, self.num_frames)
        x_BFD = self.dropout(x_BFD * mask[..., None])
        for conv in self.shorten:
            x_BFD, length_B = conv(x_BFD, length_B)
        mask = length_mask(length_B, self.num_tokens)
        return self.project(self.norm(self.over_time(x_BFD, mask))), mask


class VideoTransformer(_VideoEncoder):
    """The ``transformer`` encoder of clips: every frame sees all others."""

    def __init__(self, spec: VideoField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__(spec, config, statistics, dim)
        heads = self.width // _HEAD_WIDTH
        self.layers = nn.ModuleList(TransformerLayer(self.width, heads, config.dropout) for _ in range(self.num_layers))

    def over_time(self, x_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        # Where there is no frame at all, a softmax over nothing is not a number: the first place always counts here.
        attended = mask_BF | (torch.arange(self.num_tokens, device=mask_BF.device) == 0)
        for layer in self.layers:
            x_BFD = layer(x_BFD, attended)
        return x_BFD


class VideoRecurrent(_VideoEncoder):
    """The ``recurrent`` encoder of clips: forward in time."""

    def __init__(self, spec: VideoField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__(spec, config, statistics, dim)
        layers = config.layers or self.num_layers // 2
        self.recur = recurrent_layers(config.cell, self.width, self.width, layers, config.dropout)

    def over_time(self, x_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        states, _ = self.recur(x_BFD)
        result: Tensor = x_BFD + states
        return result


class _Periods(nn.Module):
    """Seconds [B, F] → sines and cosines [B, F, 2 × periods]."""

    rates: Tensor

    def __init__(self) -> None:
        super().__init__()
        rates = torch.tensor([2 * math.pi / period for period in _PERIODS_S])
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, time_BF: Tensor) -> Tensor:
        # In single precision whatever the weights are in: 8 bits of a time tell nothing after the first seconds.
        angles = time_BF.float()[..., None] * self.rates.float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
