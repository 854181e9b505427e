"""Modality dropout: hides present fields at random, so that the model learns to do without any of them.

Whether a field of a sample is hidden depends on (seed, epoch, position, field) alone: not on the rank, the number of
workers or what was drawn before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ray_mm.data.fields import POSITION, presence_name
from ray_mm.data.order import stable_hash


def hide_fields(
    tensors: dict[str, torch.Tensor], fields: list[str], rate: float, seed: int, epoch: int
) -> dict[str, torch.Tensor]:
    """The batch with some presence set to False; a sample always keeps at least one of the fields that it has.

    Args:
        tensors: a batch.
        fields: the input fields.
        rate: chance per sample and field.
        seed: of the training.
        epoch: from 0.
    """
    if rate == 0.0:
        return tensors
    position = tensors[POSITION]
    positions = position.cpu().numpy()
    present = torch.stack([tensors[presence_name(field)] for field in fields])
    draws = np.stack([uniform(positions, stable_hash(seed, epoch, field, "hide")) for field in fields])
    kept = present & torch.from_numpy(draws >= rate).to(present.device)
    # A sample that would lose everything keeps what it has.
    kept = torch.where(kept.any(dim=0), kept, present)
    return tensors | {presence_name(field): kept[row] for row, field in enumerate(fields)}


def uniform(positions: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for every position, by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    bits = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)).astype(np.float64) / float(1 << 53)
