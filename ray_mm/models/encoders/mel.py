"""Waveform → log-mel spectrogram, without torchaudio, in operations that every exporter knows.

Windows of 25 ms every 10 ms. The window is symmetric, so each frame is folded about its middle before it meets the cosines
(even part) and sines (odd part): half the work, and half the constants in an exported file. The magnitude does not depend on
where the phase is counted from. Mel scale: Slaney, Auditory Toolbox (Interval Research TR 1998-010), linear below 1 kHz.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.models.layers import length_mask, shortened

_LOWEST_POWER = 1e-7
_MAX_BANDS = 64
# Filters narrower than two bins of the transform could miss all of them.
_MEL_PER_BAND = 0.88
_LINEAR_HZ = 200.0 / 3
_LOG_STEP = math.log(6.4) / 27


class LogMel(nn.Module):
    """int16 [B, S] and lengths → spectrogram [B, frames, bands], zero beyond the length, and the lengths in frames.

    Each recording is standardised by the mean and deviation of its own frames, so loudness does not matter.

    Args:
        rate_hz: frames of the waveform per second.
        num_samples: S.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(self, rate_hz: int, num_samples: int) -> None:
        super().__init__()
        # Five chunks make a window and two a hop, so that framing is slicing; even, so that a window has a middle.
        self.chunk = 2 * max(1, round(rate_hz * 0.005 / 2))
        self.hop = 2 * self.chunk
        self.num_frames = -(-num_samples // self.hop)
        self.num_samples = num_samples
        cosines, sines = _fourier_bases(5 * self.chunk)
        filters = mel_filters(rate_hz, len(cosines[0]))
        self.num_bands = filters.shape[1]
        # Not saved: they follow from the rate.
        self.register_buffer("cosines", torch.from_numpy(cosines), persistent=False)
        self.register_buffer("sines", torch.from_numpy(sines), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)

    def forward(self, audio_BS: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        audio = audio_BS.to(self.cosines.dtype) * (1 / 32768) * length_mask(length_B, self.num_samples)
        power = self._power(self._frames(audio))
        level_BTF = torch.log(power @ self.filters + _LOWEST_POWER)
        frames_B = shortened(length_B, self.hop)
        mask = length_mask(frames_B, self.num_frames)[..., None]
        count = (frames_B * self.num_bands).clamp(min=1)[:, None, None]
        mean = (level_BTF * mask).sum((1, 2), keepdim=True) / count
        centred = (level_BTF - mean) * mask
        deviation = (centred.square().sum((1, 2), keepdim=True) / count + 1e-3).sqrt()
        return centred / deviation, frames_B

    def _frames(self, audio_BS: Tensor) -> Tensor:
        """[B, num_frames, window]; the last ones reach into silence."""
        needed = (2 * self.num_frames + 3) * self.chunk
        chunks = F.pad(audio_BS, (0, needed - self.num_samples)).reshape(audio_BS.shape[0], -1, self.chunk)
        last = 2 * self.num_frames - 1
        return torch.cat([chunks[:, first : first + last : 2] for first in range(5)], dim=2)

    def _power(self, frames_BTN: Tensor) -> Tensor:
        left, right = frames_BTN.chunk(2, dim=2)
        right = right.flip(2)
        return ((left + right) @ self.cosines).square() + ((left - right) @ self.sines).square()


def _fourier_bases(window: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Windowed cosines and sines about the middle of a window of even length: [window/2, window/2 + 1] each.

    The constant frequency and the highest are included.
    """
    middle = np.arange(window // 2) - (window - 1) / 2
    hann = np.cos(np.pi * middle / window) ** 2
    angles = 2 * np.pi * middle[:, None] * np.arange(window // 2 + 1)[None, :] / window
    scale = hann[:, None] / hann.sum()
    return (scale * np.cos(angles)).astype(np.float32), (scale * np.sin(angles)).astype(np.float32)


def mel_filters(rate_hz: int, num_bins: int) -> npt.NDArray[np.float32]:
    """Triangles of equal area, evenly spaced in mel from 0 Hz to half the rate: float32 [num_bins, num_bands].

    Args:
        rate_hz: frames of the waveform per second.
        num_bins: frequencies from 0 Hz to half the rate.
    """
    highest = _hz_to_mel(rate_hz / 2)
    num_bands = int(min(_MAX_BANDS, max(1, highest // _MEL_PER_BAND)))
    edges_hz = _mel_to_hz(np.linspace(0, highest, num_bands + 2))
    bins_hz = np.linspace(0, rate_hz / 2, num_bins)[:, None]
    lower, centre, upper = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    triangles = np.minimum((bins_hz - lower) / (centre - lower), (upper - bins_hz) / (upper - centre)).clip(min=0)
    filters: npt.NDArray[np.float32] = (triangles / triangles.sum(axis=0, keepdims=True)).astype(np.float32)
    return filters


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < 1000 else 15 + math.log(hz / 1000) / _LOG_STEP


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15, mel * _LINEAR_HZ, 1000 * np.exp((mel - 15) * _LOG_STEP))
