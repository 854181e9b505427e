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

# What is 30 dB below a recording's mean power is as good as silent: the noise of a room or a microphone. Relative, so that
# loudness does not matter; recognition of digits by unknown speakers gained four points of accuracy over a fixed floor.
_FLOOR = 1e-3
_LEAST_POWER = 1e-10
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
        self.rate_hz = rate_hz
        # Not saved: they follow from the rate. Made in double precision, kept in single.
        tables = [table.float() for table in self._make_tables(torch.float64)]
        self.num_bands = tables[2].shape[1]
        for name, table in zip(("cosines", "sines", "filters"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, audio_BS: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines, filters = self._tables()
        audio = audio_BS.to(cosines.dtype) * (1 / 32768) * length_mask(length_B, self.num_samples)
        left, right = self._frames(audio).chunk(2, dim=2)
        right = right.flip(2)
        power = ((left + right) @ cosines).square() + ((left - right) @ sines).square()
        band_BTF = power @ filters
        frames_B = shortened(length_B, self.hop)
        mask = length_mask(frames_B, self.num_frames)[..., None]
        count = (frames_B * self.num_bands).clamp(min=1)[:, None, None]
        floor = _FLOOR * (band_BTF * mask).sum((1, 2), keepdim=True) / count + _LEAST_POWER
        level_BTF = torch.log(band_BTF + floor)
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

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        if not torch.compiler.is_exporting():
            return self.cosines, self.sines, self.filters
        # An exported graph gets the formulas: a runtime evaluates them once, when it loads the graph, and on disk the values
        # would weigh as much as the weights of a small model.
        return self._make_tables(self.cosines.dtype)

    def _make_tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        cosines, sines = _fourier_bases(5 * self.chunk, dtype)
        return cosines, sines, _mel_filters(self.rate_hz, cosines.shape[1], dtype)


def _fourier_bases(window: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Windowed cosines and sines about the middle of a window of even length: [window/2, window/2 + 1] each.

    The constant frequency and the highest are included.
    """
    # Half places, in units of a half: whole numbers, so that angles are reduced to one turn without rounding.
    middle = 2 * torch.arange(window // 2) + (1 - window)
    turns = (middle[:, None] * torch.arange(window // 2 + 1)[None, :]) % (2 * window)
    angles = turns.to(dtype) * (math.pi / window)
    hann = (middle.to(dtype) * (math.pi / (2 * window))).cos().square()
    scale = (hann * (4 / window))[:, None]  # the sum of that half of the window is window / 4
    return scale * angles.cos(), scale * angles.sin()


def mel_filters(rate_hz: int, num_bins: int) -> npt.NDArray[np.float32]:
    """Triangles of equal area, evenly spaced in mel from 0 Hz to half the rate: float32 [num_bins, num_bands].

    Args:
        rate_hz: frames of the waveform per second.
        num_bins: frequencies from 0 Hz to half the rate.
    """
    filters: npt.NDArray[np.float32] = _mel_filters(rate_hz, num_bins, torch.float64).float().numpy()
    return filters


def _mel_filters(rate_hz: int, num_bins: int, dtype: torch.dtype) -> Tensor:
    highest = hz_to_mel(rate_hz / 2)
    num_bands = int(min(_MAX_BANDS, max(1, highest // _MEL_PER_BAND)))
    # In bins rather than Hz, which loses less in single precision.
    bins_per_hz = 2 * (num_bins - 1) / rate_hz
    edges = torch.tensor(
        [mel_to_hz(highest * i / (num_bands + 1)) * bins_per_hz for i in range(num_bands + 2)], dtype=dtype
    )
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(num_bins).to(dtype)[:, None]
    triangles = torch.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clamp(min=0)
    return triangles / triangles.sum(dim=0, keepdim=True)


def hz_to_mel(hz: float) -> float:
    """A frequency on the mel scale."""
    return hz / _LINEAR_HZ if hz < 1000 else 15 + math.log(hz / 1000) / _LOG_STEP


def mel_to_hz(mel: float) -> float:
    """The frequency of a place on the mel scale."""
    return mel * _LINEAR_HZ if mel < 15 else 1000 * math.exp((mel - 15) * _LOG_STEP)
