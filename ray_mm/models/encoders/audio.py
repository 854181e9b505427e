"""Recordings: int16 [B, S] and lengths → tokens over time, from convolutions over a log-mel spectrogram."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.fields import AudioField
from ray_mm.config.model import EncoderConfig
from ray_mm.data.manifest import Statistics
from ray_mm.models.encoders.mel import LogMel
from ray_mm.models.layers import MAX_TOKENS, FeedForward, MaskedConv, SharedDropout, length_mask, shortened

# size → channels of each stage; each halves time and frequency
_CHANNELS = {"small": (24, 48, 96), "base": (48, 96, 192)}


class MelCnn(nn.Module):
    """The ``mel_cnn`` encoder of recordings: int16 [B, S], length int32 [B] → a token for every 80 ms or more."""

    def __init__(self, spec: AudioField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.rate_hz is not None and spec.max_seconds is not None
        self.spectrogram = LogMel(spec.rate_hz, round(spec.rate_hz * spec.max_seconds))
        frames, bands = self.spectrogram.num_frames, self.spectrogram.num_bands
        channels = 1
        stages: list[nn.Module] = []
        for following in _CHANNELS[config.size]:
            frames, bands = -(-frames // 2), -(-bands // 2)
            stages.append(_Stage(channels, following, bands))
            channels = following
        self.stages = nn.ModuleList(stages)
        self.project = nn.Linear(channels * bands, dim)
        shorten: list[nn.Module] = []
        while frames > MAX_TOKENS:
            frames = -(-frames // 2)
            shorten.append(MaskedConv(dim, dim, kernel=3, stride=2))
        self.shorten = nn.ModuleList(shorten)
        self.place = nn.Parameter(torch.randn(frames, dim) * 0.02)
        self.mix = FeedForward(dim, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = SharedDropout(config.dropout)

    def forward(self, audio_BS: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        # Mixed precision would leave 8 bits of a power that spans many octaves.
        with torch.autocast(audio_BS.device.type, enabled=False):
            x_BTF, length_B = self.spectrogram(audio_BS, length_B)
        x_BCTF = x_BTF[:, None]
        for stage in self.stages:
            x_BCTF, length_B = stage(x_BCTF, length_B)
        x = self.project(self.dropout(x_BCTF.permute(0, 2, 3, 1).flatten(2)))
        mask = length_mask(length_B, x.shape[1])
        if len(self.shorten):
            x = x * mask[..., None]
            for conv in self.shorten:
                x, length_B = conv(x, length_B)
            mask = length_mask(length_B, x.shape[1])
        return self.norm(self.mix(x + self.place)), mask


class _Stage(nn.Module):
    """A strided convolution and a residual one; each frame is normalised over its bands and channels."""

    def __init__(self, channels_in: int, channels: int, bands: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, 2, padding=1)
        self.norm = nn.LayerNorm((bands, channels))

    def forward(self, x_BCTF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T, F] that is 0 beyond the length → half of it in both directions, and the new length."""
        y_BTFC = F.relu(self.norm(self.conv(x_BCTF).permute(0, 2, 3, 1)))
        length_B = shortened(length_B, 2)
        y_BTFC = y_BTFC * length_mask(length_B, y_BTFC.shape[1])[:, :, None, None]
        return y_BTFC.permute(0, 3, 1, 2), length_B
