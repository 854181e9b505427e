"""What a training changes at random in its samples, on the device: a batch → a batch of the same shapes and dtypes.

What happens to a sample is a function of (seed, epoch, position, field): the same for any number of workers and after a
resume. What is absent, or lies beyond a sample's length, stays as it is.

Shapes: B batch, C channels; P pixels; T time steps; F frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ray_mm.config.augment import AugmentConfig, ColorJitter, FieldAugment
from ray_mm.config.fields import AudioField, FieldSpec, SeriesField
from ray_mm.config.train import TrainJob
from ray_mm.data.fields import POSITION, length_name, presence_name
from ray_mm.data.manifest import Statistics
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.models.encoders.mel import hz_to_mel, mel_to_hz
from ray_mm.models.layers import length_mask
from ray_mm.training.draws import Draws, on_device
from ray_mm.training.mixing import Boxes, mix_pairs

_GREY = 128
_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)
# Luma of BT.601, and the axes along which it turns colours (YIQ).
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


class Augmenter:
    """Changes batches as a job says.

    Args:
        config: what is changed.
        job: that it belongs to.
        preprocessor: its fields and their statistics.
    """

    def __init__(self, config: AugmentConfig, job: TrainJob, preprocessor: Preprocessor) -> None:
        self._config = config
        self._job = job
        self._preprocessor = preprocessor

    @torch.no_grad()
    def __call__(self, tensors: dict[str, Tensor], host: Mapping[str, Tensor], epoch: int) -> dict[str, Tensor]:
        """A batch, changed; the tensors themselves are not written to.

        Args:
            tensors: a worker's share of a batch, see ``data.fields``.
            host: the same on the CPU.
            epoch: from 0.

        Returns:
            The batch, with what ``models.losses`` needs where samples were mixed.
        """
        config = self._config
        draws = Draws(self._job.seed, epoch, host[POSITION].numpy())
        changed = dict(tensors)
        for name, augment in sorted(config.fields.items()):
            spec, statistics = self._preprocessor.fields[name], self._preprocessor.statistics.get(name)
            presence, length = tensors[presence_name(name)], tensors.get(length_name(name))
            for change in changes(name, spec, augment, statistics):
                changed[name] = change(changed[name], presence, length, draws)
        return mix_pairs(changed, host, draws, config, self._job.model, self._preprocessor) if config.mixes else changed


Change = Callable[[Tensor, Tensor, Tensor | None, Draws], Tensor]
"""(content, presence bool [B], length [B] where there is one, draws) → content."""


def changes(name: str, spec: FieldSpec, augment: FieldAugment, statistics: Statistics | None) -> list[Change]:
    """What is done to a field, in order.

    Args:
        name: of the field.
        spec: of the field; ``config.augment.check_augment`` has passed.
        augment: what is to be done.
        statistics: of the field; None: each channel has mean 0 and deviation 1.
    """
    found: list[Change] = []
    color = augment.color
    if color is not None:
        found.append(lambda x, presence, length, draws: _recolour(x, length, color, draws, name))
    if augment.erase > 0:
        found.append(lambda x, presence, length, draws: _erase(x, presence, length, augment.erase, draws, name))
    if augment.scale > 0 or augment.noise > 0:
        found.append(lambda x, presence, length, draws: _vary(x, presence, length, augment, statistics, draws, name))
    if augment.frequency_mask > 0 and isinstance(spec, AudioField):
        rate_hz = spec.rate_hz or 1
        found.append(lambda x, presence, length, draws: _mute_band(x, length, augment, rate_hz, draws, name))
    if augment.time_mask > 0:
        mean = statistics.mean if isinstance(spec, SeriesField) and statistics is not None else (0.0,)
        found.append(lambda x, presence, length, draws: _mute_time(x, presence, length, augment, mean, draws, name))
    return found


def _recolour(x: Tensor, length_B: Tensor | None, jitter: ColorJitter, draws: Draws, name: str) -> Tensor:
    """uint8 [B, (F,) height, width, C]. All four changes of a sample together are one matrix on colours, and a grey level.

    A clip's frames all get the same. Where all is zero, all stays zero.
    """
    matrix_BCC, grey_B = _color_matrices(jitter, draws, name, x.shape[-1])
    matrix, grey = on_device(matrix_BCC, x.device), on_device(grey_B, x.device)
    pixels_BPC = x.reshape(len(x), -1, x.shape[-1]).float()
    luma = on_device(_luma(x.shape[-1]), x.device)
    mean_B = (pixels_BPC.mean(1) * luma).sum(1)
    there = None
    if length_B is not None:
        there = length_mask(length_B, x.shape[1])
        mean_B = mean_B * x.shape[1] / length_B.clamp(min=1)
    changed = torch.baddbmm((mean_B * grey)[:, None, None], pixels_BPC, matrix.transpose(1, 2)).clamp_(0, 255).round_()
    found = changed.to(torch.uint8).reshape(x.shape)
    return found if there is None else found * there[:, :, None, None, None]


def _color_matrices(jitter: ColorJitter, draws: Draws, name: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [B, C, C], and [B]: the share of the picture's mean luma that is added to every channel."""
    bright, contrast, saturation = (
        draws.between(1 - amount, 1 + amount, name, what)
        for what, amount in (
            ("brightness", jitter.brightness),
            ("contrast", jitter.contrast),
            ("saturation", jitter.saturation),
        )
    )
    grey = ((1 - contrast) * bright).astype(np.float32)
    scale = (bright * contrast)[:, None, None]
    if channels == 1:
        return scale.astype(np.float32), grey
    angle = 2 * np.pi * draws.between(-jitter.hue, jitter.hue, name, "hue")
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * _LUMA[None, None, :]
    # Neither changes a grey, so the level that contrast adds passes through both.
    return (scale * (_FROM_YIQ @ turn @ _TO_YIQ @ saturate)).astype(np.float32), grey


def _luma(channels: int) -> np.ndarray:
    return (_LUMA if channels == 3 else np.ones(1)).astype(np.float32)


def _erase(x: Tensor, presence_B: Tensor, length_B: Tensor | None, chance: float, draws: Draws, name: str) -> Tensor:
    """uint8 [B, (F,) height, width, C]: a rectangle becomes grey (random erasing, arXiv 1708.04896)."""
    area = draws.between(*_ERASED_AREA, name, "erased area")
    ratio = np.exp(draws.between(*np.log(_ERASED_RATIO), name, "erased ratio"))
    area[draws.uniform(name, "erase") >= chance] = 0.0
    inside = Boxes.of(np.sqrt(area * ratio), np.sqrt(area / ratio), draws, name, "erased").mask(x)
    there = presence_B.reshape(-1, *[1] * (x.ndim - 1))
    if length_B is not None:
        there = there & length_mask(length_B, x.shape[1])[:, :, None, None, None]
    return x.masked_fill(inside & there, _GREY)


def _vary(
    x: Tensor,
    presence_B: Tensor,
    length_B: Tensor | None,
    augment: FieldAugment,
    statistics: Statistics | None,
    draws: Draws,
    name: str,
) -> Tensor:
    """float32 [B, T, C] or [B, C]: scaled about the mean of each channel, with noise of a share of its deviation."""
    channels = x.shape[-1]
    mean, std = (statistics.mean, statistics.std) if statistics is not None else ((0.0,) * channels, (1.0,) * channels)
    mean_C = on_device(np.array(mean, np.float32), x.device)
    changed = x
    if augment.scale > 0:
        factor = draws.between(1 - augment.scale, 1 + augment.scale, name, "scale").astype(np.float32)
        changed = torch.lerp(mean_C, changed, on_device(factor, x.device).reshape(-1, *[1] * (x.ndim - 1)))
    if augment.noise > 0:
        std_C = on_device(np.array(std, np.float32) * np.float32(augment.noise), x.device)
        changed = changed + std_C * draws.normal(x[0].numel(), x.device, name, "noise").reshape(x.shape)
    there = presence_B.reshape(-1, *[1] * (x.ndim - 1))
    if length_B is not None:
        there = there & length_mask(length_B, x.shape[1])[..., None]
    return torch.where(there, changed, x)


def _mute_time(
    x: Tensor,
    presence_B: Tensor,
    length_B: Tensor | None,
    augment: FieldAugment,
    mean: tuple[float, ...],
    draws: Draws,
    name: str,
) -> Tensor:
    """[B, T] or [B, T, C]: a piece in time says nothing (SpecAugment, arXiv 1904.08779)."""
    assert length_B is not None
    part, place = (
        on_device(draws.between(0.0, high, name, what).astype(np.float32), x.device)
        for what, high in (("time", augment.time_mask), ("time place", 1.0))
    )
    width = part * length_B
    start = (place * (length_B - width)).round()
    steps = torch.arange(x.shape[1], device=x.device)[None, :]
    # Both rounded, so that no step is in it of a piece that is shorter than half of one.
    inside = (steps >= start[:, None]) & (steps < (start + width.round())[:, None]) & presence_B[:, None]
    silence = on_device(np.array(mean, np.float32), x.device).to(x.dtype)
    if x.ndim == 3:
        return torch.where(inside[..., None], silence, x)
    return torch.where(inside, silence[0], x)


def _mute_band(
    x: Tensor, length_B: Tensor | None, augment: FieldAugment, rate_hz: int, draws: Draws, name: str
) -> Tensor:
    """int16 [B, S] or [B, S, C]: a band on the mel scale is filtered out, as SpecAugment leaves out rows of a spectrogram.

    Of the waveform, so that it serves every encoder, whatever spectrogram it makes.
    """
    assert length_B is not None
    highest = hz_to_mel(rate_hz / 2)
    width = draws.between(0.0, augment.frequency_mask, name, "band")
    low = draws.uniform(name, "band place") * (1 - width)
    edges = np.array([[mel_to_hz(highest * at) for at in row] for row in np.stack([low, low + width], axis=1)])
    edges_B2 = on_device((edges / rate_hz * x.shape[1]).astype(np.float32), x.device)
    spectrum = torch.fft.rfft(x.float(), dim=1)
    bins = torch.arange(spectrum.shape[1], device=x.device)[None, :]
    kept = (bins < edges_B2[:, :1]) | (bins >= edges_B2[:, 1:])
    there = length_mask(length_B, x.shape[1])
    if x.ndim == 3:
        kept, there = kept[..., None], there[..., None]
    filtered: Tensor = torch.fft.irfft(spectrum * kept, n=x.shape[1], dim=1).round_().clamp_(-32768, 32767)
    return (filtered * there).to(torch.int16)
