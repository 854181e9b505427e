"""The arrays of fields → what an autoencoder is to say again of them (see ``data.targets``), and what its answer costs.

Shapes: B batch, N numbers of all targets together, F fields; C channels, T time steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, PointsField, SeriesField, TextField, VideoField
from ray_mm.config.tasks import ReconstructTask, TaskConfig
from ray_mm.data.fields import field_arrays, presence_name
from ray_mm.data.manifest import Statistics
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import (
    AUDIO_SHAPE,
    CELLS,
    GREY,
    GREY_STD,
    TARGET,
    steps_joined,
    target_shape,
    target_sizes,
    word_scale,
)
from ray_mm.models.encoders.audio import Spectrogram
from ray_mm.models.encoders.pillars import extent_of
from ray_mm.models.layers import length_mask, standardise


class Targets(nn.Module):
    """A batch → float32 [B, N], NaN where nothing is known. It has no weights, and is no part of a model.

    Args:
        names: the fields that are reconstructed, sorted.
        preprocessor: has them, and their statistics.
    """

    def __init__(self, names: Sequence[str], preprocessor: Preprocessor) -> None:
        super().__init__()
        fields = preprocessor.fields
        self.names = list(names)
        self.arrays = {
            name: [array for array in field_arrays(name, fields[name]) if array != presence_name(name)]
            for name in names
        }
        self.parts = nn.ModuleList(_of_field(fields[name], preprocessor.statistics.get(name)) for name in names)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        found = []
        for name, part in zip(self.names, self.parts, strict=True):
            values, known = part(*(batch[array] for array in self.arrays[name]))
            there = batch[presence_name(name)].reshape(-1, *[1] * (values.ndim - 1))
            found.append(torch.where(known & there, values, torch.nan).flatten(1))
        return torch.cat(found, dim=1)

    def added_to(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the targets beside its other arrays."""
        return batch | {TARGET: self(batch)}


def build_targets(task: TaskConfig, preprocessor: Preprocessor, device: torch.device) -> Targets | None:
    """The targets of a model's task on a device; None: it is none that says inputs again."""
    if not isinstance(task, ReconstructTask):
        return None
    return Targets(task.fields_of(preprocessor.fields), preprocessor).to(device)


def squared_errors(output_BN: Tensor, target_BN: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sums of squared errors of each field over what is known of it, and how many numbers that is: float32 [B, F] each.

    Args:
        output_BN: of the model.
        target_BN: NaN where nothing is known.
        sizes: numbers of each field.
    """
    known = ~target_BN.isnan()
    squared = torch.where(known, output_BN.float() - target_BN.nan_to_num(), 0.0).square()
    return _per_field(squared, sizes), _per_field(known.float(), sizes)


def reconstruction_losses(output_BN: Tensor, target_BN: Tensor, sizes: Sequence[int]) -> Tensor:
    """The mean squared error of each field, then the mean over the fields that are there: float32 [B]; 0 where there is none."""
    errors, counts = squared_errors(output_BN, target_BN, sizes)
    return (errors / counts.clamp(min=1)).sum(1) / (counts > 0).sum(1).clamp(min=1)


def reconstruction_sizes(task: ReconstructTask, preprocessor: Preprocessor) -> list[int]:
    """Numbers of each field that is reconstructed."""
    return target_sizes(task.fields_of(preprocessor.fields), preprocessor.fields)


def _per_field(values_BN: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack([part.sum(1) for part in torch.split(values_BN, list(sizes), dim=1)], dim=1)


def _of_field(spec: FieldSpec, statistics: Statistics | None) -> nn.Module:
    match spec:
        case ImageField():
            return _Picture(spec)
        case VideoField():
            return _Clip(spec)
        case AudioField():
            return _Sound(spec)
        case SeriesField():
            return _Steps(spec, statistics)
        case PointsField():
            return _Ground(spec, statistics)
        case TextField():
            return _Words(spec)
        case _:
            return _Values(spec, statistics)


class _Picture(nn.Module):
    def __init__(self, spec: ImageField) -> None:
        super().__init__()
        self.rows, self.columns, _ = target_shape(spec)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        values = _averaged(image_BHWC, self.rows, self.columns)
        return values, torch.ones_like(values, dtype=torch.bool)


class _Clip(nn.Module):
    def __init__(self, spec: VideoField) -> None:
        super().__init__()
        self.frames, self.rows, self.columns, _ = target_shape(spec)

    def forward(self, video_BFHWC: Tensor, time_BF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        # The middles of as many equal pieces as frames are taken.
        middle = (torch.arange(self.frames, device=length_B.device) + 0.5) / self.frames
        chosen = (middle * length_B[:, None]).long().clamp(max=video_BFHWC.shape[1] - 1)
        frames = video_BFHWC[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]
        pictures = _averaged(frames.flatten(0, 1), self.rows, self.columns)
        values = pictures.reshape(*chosen.shape, *pictures.shape[1:])
        return values, (length_B > 0).reshape(-1, 1, 1, 1, 1).expand_as(values)


class _Sound(nn.Module):
    def __init__(self, spec: AudioField) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(spec)

    def forward(self, audio: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCTF, frames_B = self.spectrogram(audio, length_B)
        x_BTF = F.adaptive_avg_pool2d(x_BCTF.mean(1), AUDIO_SHAPE)
        # Beyond the length there are zeros, which the mean of a piece must not count.
        mask_BT = length_mask(frames_B, x_BCTF.shape[2]).float()
        share_BT1 = F.adaptive_avg_pool1d(mask_BT, AUDIO_SHAPE[0])[..., None]
        values = x_BTF / share_BT1.clamp(min=1e-6)
        return values, (share_BT1 > 0).expand_as(values)


class _Steps(nn.Module):
    def __init__(self, spec: SeriesField, statistics: Statistics | None) -> None:
        super().__init__()
        assert spec.channels is not None
        self.joined = steps_joined(spec)
        self.standardise = standardise(statistics, spec.channels)

    def forward(self, series_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        mask_BT = length_mask(length_B, series_BTC.shape[1])
        x_BTC = self.standardise(series_BTC) * mask_BT[..., None]
        missing = -series_BTC.shape[1] % self.joined
        batch, channels = len(x_BTC), x_BTC.shape[2]
        sums = F.pad(x_BTC, (0, 0, 0, missing)).reshape(batch, -1, self.joined, channels).sum(2)
        counts = F.pad(mask_BT.float(), (0, missing)).reshape(batch, -1, self.joined, 1).sum(2)
        return sums / counts.clamp(min=1), (counts > 0).expand_as(sums)


class _Values(nn.Module):
    def __init__(self, spec: FieldSpec, statistics: Statistics | None) -> None:
        super().__init__()
        (size,) = target_shape(spec)
        self.standardise = standardise(statistics, size)

    def forward(self, vector_BV: Tensor) -> tuple[Tensor, Tensor]:
        values: Tensor = self.standardise(vector_BV)
        return values, torch.ones_like(values, dtype=torch.bool)


class _Words(nn.Module):
    def __init__(self, spec: TextField) -> None:
        super().__init__()
        (self.size,) = target_shape(spec)
        self.scale = word_scale(spec)

    def forward(self, text_BT: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(len(text_BT), self.size, device=text_BT.device)
        counts.scatter_add_(1, text_BT.long() % self.size, (text_BT != 0).float())
        values = counts.clamp(max=1) * self.scale
        return values, torch.ones_like(values, dtype=torch.bool)


class _Ground(nn.Module):
    """Where the points lie, on the squares of the ``pillars`` encoder's default extent."""

    low: Tensor
    cell: Tensor

    def __init__(self, spec: PointsField, statistics: Statistics | None) -> None:
        super().__init__()
        assert spec.channels is not None
        low_x, high_x, low_y, high_y = extent_of(statistics)
        low, high = torch.tensor([low_x, low_y]), torch.tensor([high_x, high_y])
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("cell", (high - low) / CELLS, persistent=False)
        self.standardise = standardise(statistics, spec.channels)

    def forward(self, points_BNC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        valid_BN = length_mask(length_B, points_BNC.shape[1])
        cell_BN = ground_cells(points_BNC, valid_BN, self.low, self.cell, CELLS)
        said_BNC = self.standardise(points_BNC)[..., 2:] * valid_BN[..., None]
        empty = said_BNC.new_zeros(len(points_BNC), CELLS**2 + 1, said_BNC.shape[2] + 1)
        summed = torch.cat([valid_BN[..., None].to(said_BNC.dtype), said_BNC], dim=-1)
        sums = empty.scatter_add(1, cell_BN[..., None].expand_as(summed), summed)[:, :-1]
        count, means = sums[..., :1], sums[..., 1:] / sums[..., :1].clamp(min=1)
        values = torch.cat([count.log1p(), means], dim=-1)
        known = torch.cat([torch.ones_like(count), (count > 0).expand_as(means)], dim=-1) > 0
        shape = (len(values), CELLS, CELLS, values.shape[2])
        return values.reshape(shape), known.reshape(shape)


def ground_cells(points_BNC: Tensor, valid_BN: Tensor, low: Tensor, cell: Tensor, cells: int) -> Tensor:
    """In which square of the ground each point lies: int64 [B, N], row by row along x; ``cells``² is beyond all of them.

    Args:
        points_BNC: x and y first.
        valid_BN: which of them are there, bool.
        low: x and y where the squares begin.
        cell: width of a square along x and y.
        cells: squares along each side.
    """
    index = ((points_BNC[..., :2].float() - low) / cell).floor()
    inside = ((index >= 0) & (index < cells)).all(-1) & valid_BN
    row, column = index.clamp(-1, cells).long().unbind(-1)
    return torch.where(inside, row * cells + column, cells**2)


def _averaged(pictures_NHWC: Tensor, rows: int, columns: int) -> Tensor:
    """uint8 → float32 [N, rows, columns, C], standardised."""
    x_NCHW = F.adaptive_avg_pool2d(pictures_NHWC.permute(0, 3, 1, 2).float(), (rows, columns))
    return ((x_NCHW - GREY) / GREY_STD).permute(0, 2, 3, 1)
