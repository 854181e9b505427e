"""Hides a part of every input from a model that is to say the whole of it again (``ReconstructTask``), on the device.

field     what is hidden                                          what stands there instead
image     squares, 8 along the longer side                        grey
video     the same squares in all frames (arXiv 2203.12602)       grey
audio     16 pieces in time                                       silence
series    16 pieces in time                                       the mean of each channel
points    squares of the ground, 8 along each side                nothing: their points are left out
vector    values                                                  their mean
text      tokens                                                  no token

A square, a piece, … is hidden with the chance ``mask``; which ones is a function of (seed, epoch, position, field), as all that a
training changes in its samples: the same for any number of workers and micro-batches, and after a resume. Noise is added before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, PointsField, SeriesField, TextField, VideoField
from ray_mm.config.tasks import ReconstructTask
from ray_mm.config.train import TrainJob
from ray_mm.data.fields import POSITION, length_name
from ray_mm.data.manifest import Statistics
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import GREY, GREY_STD
from ray_mm.models.encoders.pillars import extent_of
from ray_mm.models.layers import length_mask
from ray_mm.models.targets import ground_cells
from ray_mm.training.draws import Draws, on_device

_SQUARES = 8
_PIECES = 16


class Masker:
    """Changes batches as a task says.

    Args:
        task: how much is hidden.
        job: that it belongs to.
        preprocessor: its fields and their statistics.
    """

    def __init__(self, task: ReconstructTask, job: TrainJob, preprocessor: Preprocessor) -> None:
        self._task = task
        self._seed = job.seed
        self._fields = sorted(job.model.fields)
        self._preprocessor = preprocessor

    @torch.no_grad()
    def __call__(self, tensors: dict[str, Tensor], host: Mapping[str, Tensor], epoch: int) -> dict[str, Tensor]:
        """A batch as the model sees it; the tensors themselves are not written to.

        Args:
            tensors: a worker's share of a batch, see ``data.fields``.
            host: the same on the CPU.
            epoch: from 0.
        """
        draws = Draws(self._seed, epoch, host[POSITION].numpy())
        seen = dict(tensors)
        for name in self._fields:
            spec, statistics = self._preprocessor.fields[name], self._preprocessor.statistics.get(name)
            length = tensors.get(length_name(name))
            if self._task.noise > 0:
                seen[name] = _noisy(name, spec, seen[name], length, statistics, self._task.noise, draws)
            if self._task.mask > 0:
                seen |= _hidden(name, spec, seen[name], length, statistics, self._task.mask, draws)
        return seen


def _noisy(
    name: str,
    spec: FieldSpec,
    x: Tensor,
    length_B: Tensor | None,
    statistics: Statistics | None,
    noise: float,
    draws: Draws,
) -> Tensor:
    """The content with noise of so many standard deviations: of each channel, of pictures in general, of a recording's own."""
    if isinstance(spec, TextField):
        return x
    added = noise * draws.normal(x[0].numel(), x.device, name, "noise").reshape(x.shape)
    if isinstance(spec, ImageField | VideoField):
        return (x + GREY_STD * added).round_().clamp_(0, 255).to(x.dtype)
    if isinstance(spec, AudioField):
        assert length_B is not None
        over = tuple(range(1, x.ndim))
        power_B = x.float().square().sum(over) / (length_B.clamp(min=1) * (x[0].numel() // x.shape[1]))
        level = power_B.sqrt().reshape(-1, *[1] * (x.ndim - 1))
        return (x + level * added).round_().clamp_(-32768, 32767).to(x.dtype)
    return x + added * (1.0 if statistics is None else _constant(statistics.std, x))


def _hidden(
    name: str,
    spec: FieldSpec,
    x: Tensor,
    length_B: Tensor | None,
    statistics: Statistics | None,
    share: float,
    draws: Draws,
) -> dict[str, Tensor]:
    """The arrays of a field that change."""

    def drawn(*shape: int) -> Tensor:
        """bool [B, …], true with the chance ``share``."""
        count = int(torch.Size(shape).numel())
        return (draws.many(count, x.device, name, "mask") < share).reshape(-1, *shape)

    mean: Tensor | float = 0.0 if statistics is None else _constant(statistics.mean, x)
    match spec:
        case ImageField() | VideoField():
            rows, columns = x.shape[-3], x.shape[-2]
            side = -(-max(rows, columns) // _SQUARES)
            squares = drawn(-(-rows // side), -(-columns // side))
            inside = squares.repeat_interleave(side, 1)[:, :rows].repeat_interleave(side, 2)[:, :, :columns, None]
            inside = inside if x.ndim == 4 else inside[:, None]
            return {name: x.masked_fill(inside, int(GREY))}
        case AudioField() | SeriesField():
            width = -(-x.shape[1] // _PIECES)
            inside = drawn(-(-x.shape[1] // width)).repeat_interleave(width, 1)[:, : x.shape[1]]
            inside = inside.reshape(*inside.shape, *[1] * (x.ndim - 2))
            if isinstance(spec, AudioField):
                return {name: x.masked_fill(inside, 0)}
            return {name: torch.where(inside, mean, x)}
        case TextField():
            return {name: x.masked_fill(drawn(x.shape[1]), 0)}
        case PointsField():
            assert length_B is not None
            valid = length_mask(length_B, x.shape[1])
            low_x, high_x, low_y, high_y = extent_of(statistics)
            low = _constant((low_x, low_y), x)
            cell = (_constant((high_x, high_y), x) - low) / _SQUARES
            # What lies beyond all squares is hidden together.
            squares = drawn(_SQUARES**2 + 1)
            kept = valid & ~squares.gather(1, ground_cells(x, valid, low, cell, _SQUARES))
            order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)
            remaining = kept.sum(1)
            points = x.gather(1, order[..., None].expand_as(x)) * length_mask(remaining, x.shape[1])[..., None]
            return {name: points, length_name(name): remaining.to(length_B.dtype)}
        case _:
            return {name: torch.where(drawn(x.shape[1]), mean, x)}


def _constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    return on_device(np.array(values, np.float32), like.device)
