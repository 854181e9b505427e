"""The spectrogram: right frequencies, right lengths, for every rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.models.encoders.mel import LogMel, mel_filters

RATE_HZ = 8000


def tone(hz: float, level: float = 8000.0, seconds: float = 0.5) -> torch.Tensor:
    times = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    return torch.from_numpy((level * np.sin(2 * np.pi * hz * times)).astype(np.int16))[None]


def spectrogram(audio: torch.Tensor, length: int | None = None) -> tuple[torch.Tensor, int]:
    lengths = torch.tensor([audio.shape[1] if length is None else length], dtype=torch.int32)
    levels, frames = LogMel(RATE_HZ, audio.shape[1])(audio, lengths)
    return levels[0], int(frames[0])


def slaney_centres(num_bands: int) -> np.ndarray:
    """Centres in Hz, from the definition: 3 mel per 200 Hz below 1 kHz, then 27 mel for a factor of 6.4."""
    highest = 15 + 27 * np.log(RATE_HZ / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, highest, num_bands + 2)[1:-1]
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@pytest.mark.parametrize("hz", [150, 440, 1000, 2500, 3600])
def test_a_tone_is_loudest_in_its_own_band(hz: float) -> None:
    levels, _ = spectrogram(tone(hz))
    centres = slaney_centres(levels.shape[1])
    loudest = levels[5:-5].mean(0).argmax().item()
    assert abs(int(loudest) - int(np.abs(centres - hz).argmin())) <= 1


def test_the_power_is_that_of_a_windowed_fourier_transform() -> None:
    module = LogMel(RATE_HZ, 200)
    frame = np.random.default_rng(0).normal(size=200).astype(np.float32)
    middle = np.arange(200) - 99.5
    window = np.cos(np.pi * middle / 200) ** 2
    expected = np.abs(np.fft.rfft(frame * window / window.sum() * 2)) ** 2
    left, right = torch.from_numpy(frame)[None].chunk(2, dim=1)
    right = right.flip(1)
    found = ((left + right) @ module.cosines).square() + ((left - right) @ module.sines).square()
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-3, atol=1e-7)


def test_loudness_does_not_matter() -> None:
    loud, _ = spectrogram(tone(440, level=16000) + tone(1300, level=4000))
    quiet, _ = spectrogram(tone(440, level=1600) + tone(1300, level=400))
    torch.testing.assert_close(loud, quiet, atol=0.02, rtol=0)


def test_silence_is_finite() -> None:
    levels, _ = spectrogram(torch.zeros(1, 4000, dtype=torch.int16))
    assert levels.isfinite().all() and levels.abs().max() < 1e-3


@pytest.mark.parametrize(("length", "frames"), [(0, 0), (1, 1), (80, 1), (81, 2), (4000, 50)])
def test_every_ten_milliseconds_begun_are_a_frame(length: int, frames: int) -> None:
    levels, found = spectrogram(torch.full((1, 4000), 1000, dtype=torch.int16), length)
    assert found == frames and levels.shape[0] == 50
    assert levels[frames:].abs().sum() == 0


@given(st.integers(1000, 384_000))
def test_no_band_is_empty_at_any_rate(rate_hz: int) -> None:
    window = 10 * max(1, round(rate_hz * 0.005 / 2))
    filters = mel_filters(rate_hz, window // 2 + 1)
    assert 1 <= filters.shape[1] <= 64
    assert filters.dtype == np.float32 and (filters >= 0).all()
    np.testing.assert_allclose(filters.sum(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("rate_hz", [1000, 8000, 11_025, 16_000, 44_100])
def test_a_spectrogram_has_the_shape_it_says(rate_hz: int) -> None:
    module = LogMel(rate_hz, rate_hz)
    levels, frames = module(torch.ones(2, rate_hz, dtype=torch.int16), torch.tensor([rate_hz, 1], dtype=torch.int32))
    assert levels.shape == (2, module.num_frames, module.num_bands)
    assert frames.tolist() == [module.num_frames, 1] and 99 <= module.num_frames <= 130


def test_filters_cover_every_frequency_but_the_ends() -> None:
    assert (mel_filters(16_000, 201)[1:-1].sum(axis=1) > 0).all()
