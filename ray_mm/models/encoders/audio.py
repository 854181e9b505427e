"""Recordings: int16 [B, S], or [B, S, channels], and lengths → tokens over time, from a log-mel spectrogram of each channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import AudioField
from ray_mm.data.manifest import Statistics
from ray_mm.models.encoders.mel import LogMel
from ray_mm.models.encoders.patches import PatchTransformer
from ray_mm.models.layers import MAX_TOKENS, FeedForward, MaskedConv, SharedDropout, length_mask, shortened

# size → channels of each stage; each halves time and frequency
_CHANNELS = {"small": (24, 48, 96), "base": (48, 96, 192)}
_LEAST_PATCH = 4
"""Frames of a patch, at least: 40 ms."""


class MelCnn(nn.Module):
    """The ``mel_cnn`` encoder of recordings: a token for every 80 ms or more."""

    def __init__(self, spec: AudioField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(spec)
        frames, bands = self.spectrogram.num_frames, self.spectrogram.num_bands
        channels = spec.channels
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

    def forward(self, audio: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCTF, length_B = self.spectrogram(audio, length_B)
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


class MelTransformer(nn.Module):
    """The ``mel_transformer`` encoder of recordings: over patches of some frames of the spectrogram each, all bands together."""

    def __init__(self, spec: AudioField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(spec)
        frames, bands = self.spectrogram.num_frames, self.spectrogram.num_bands * spec.channels
        patch = max(_LEAST_PATCH, -(-frames // MAX_TOKENS))
        self.patches = PatchTransformer(bands, frames, patch, config.size, config.dropout, dim)

    def forward(self, audio: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCTF, length_B = self.spectrogram(audio, length_B)
        tokens, mask = self.patches(x_BCTF.transpose(1, 2).flatten(2), length_B)
        return tokens, mask


class Spectrogram(nn.Module):
    """int16 [B, S] or [B, S, channels], lengths → log-mel [B, channels, T, F], lengths in its steps."""

    def __init__(self, spec: AudioField) -> None:
        super().__init__()
        assert spec.rate_hz is not None and spec.max_seconds is not None
        self.channels = spec.channels
        self.log_mel = LogMel(spec.rate_hz, round(spec.rate_hz * spec.max_seconds))
        self.num_frames, self.num_bands = self.log_mel.num_frames, self.log_mel.num_bands

    def forward(self, audio: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        # Mixed precision would leave 8 bits of a power that spans many octaves.
        with torch.autocast(audio.device.type, enabled=False):
            if self.channels == 1:
                x_BTF, shorter_B = self.log_mel(audio, length_B)
                return x_BTF[:, None], shorter_B
            each_NS = audio.transpose(1, 2).flatten(0, 1)
            x_NTF, length_N = self.log_mel(each_NS, length_B.repeat_interleave(self.channels))
            x_BCTF = x_NTF.reshape(-1, self.channels, self.num_frames, self.num_bands)
            return x_BCTF, length_N.reshape(-1, self.channels)[:, 0]


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
