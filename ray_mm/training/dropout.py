"""Modality dropout: hides present fields at random, so that the model learns to do without any of them.

Whether a field of a sample is hidden depends on (seed, epoch, position, field) alone: not on the rank, the number of
workers or what was drawn before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ray_mm.data.fields import presence_name
from ray_mm.data.order import stable_hash
from ray_mm.training.draws import on_device, uniform


def hide_fields(
    tensors: dict[str, torch.Tensor],
    positions: npt.NDArray[np.int64],
    fields: list[str],
    rate: float,
    seed: int,
    epoch: int,
) -> dict[str, torch.Tensor]:
    """The batch with some presence set to False; a sample always keeps at least one of the fields that it has.

    Args:
        tensors: a batch.
        positions: of its samples.
        fields: the input fields.
        rate: chance per sample and field.
        seed: of the training.
        epoch: from 0.
    """
    if rate == 0.0:
        return tensors
    present = torch.stack([tensors[presence_name(field)] for field in fields])
    draws = np.stack([uniform(positions, stable_hash(seed, epoch, field, "hide")) for field in fields])
    kept = present & on_device(draws >= rate, present.device)
    # A sample that would lose everything keeps what it has.
    kept = torch.where(kept.any(dim=0), kept, present)
    return tensors | {presence_name(field): kept[row] for row, field in enumerate(fields)}
