"""Random numbers that belong to a sample: functions of (seed, epoch, position, what for) alone.

They do not depend on the rank, on the number of workers or on what was drawn before. Those of a sample are made on the host,
where positions are known without asking the device, and follow the batch there; only where there is a number per value or patch
are they made on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_mm.data.order import stable_hash

Numbers = npt.NDArray[np.float64]

_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Draws:
    """Where the samples of a batch stand in a training.

    Attributes:
        seed: of the training.
        epoch: from 0.
        positions: of the samples in the epoch's plan, int64 [B].
    """

    seed: int
    epoch: int
    positions: npt.NDArray[np.int64]

    def uniform(self, *what: str) -> Numbers:
        """A number in [0, 1) for every sample: float64 [B]."""
        return uniform(self.positions, stable_hash(self.seed, self.epoch, *what))

    def between(self, low: float, high: float, *what: str) -> Numbers:
        """A number between two for every sample: float64 [B]."""
        return low + (high - low) * self.uniform(*what)

    def beta(self, alpha: float, *what: str) -> Numbers:
        """A number from Beta(alpha, alpha) for every sample: float64 [B].

        From two uniform ones by Bailey's formula for Student's t (Mathematics of Computation 62, 1994), as in Devroye, Random
        Variate Generation in One Line of Code (1996).
        """
        # Never 0, of which there is no power.
        radius, angle = 1.0 - self.uniform(*what, "radius"), 2 * math.pi * self.uniform(*what, "angle")
        with np.errstate(over="ignore", divide="ignore"):
            spread = radius ** (-1.0 / alpha) - 1.0
            found: Numbers = 0.5 + 0.5 * np.cos(angle) / np.sqrt(1.0 / spread + np.cos(angle) ** 2)
        return found

    def normal(self, count: int, device: torch.device, *what: str) -> Tensor:
        """So many numbers from a standard normal distribution for every sample: float32 [B, count], made on the device."""
        bits = self._bits(count, device, *what)
        radius = ((bits >> 40) & 0xFFFFFF).float().add_(0.5).mul_(2.0**-24)
        angle = (bits & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
        return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_())

    def many(self, count: int, device: torch.device, *what: str) -> Tensor:
        """So many numbers in [0, 1) for every sample: float32 [B, count], made on the device."""
        return ((self._bits(count, device, *what) >> 40) & 0xFFFFFF).float().mul_(2.0**-24)

    def _bits(self, count: int, device: torch.device, *what: str) -> Tensor:
        """int64 [B, count]."""
        starts = _mixed(self.positions, stable_hash(self.seed, self.epoch, *what)).view(np.int64)
        counter = torch.arange(1, count + 1, device=device)[None, :] * _signed(_STEP)
        bits = on_device(starts, device)[:, None] + counter
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
            # Of signed numbers: what a shift draws in from the left is cut off.
            bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
        return bits


def uniform(positions: npt.NDArray[np.int64], key: int) -> Numbers:
    """A number in [0, 1) for every position, by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    return (_mixed(positions, key) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mixed(positions: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.uint64]:
    bits = positions.astype(np.uint64) * np.uint64(_STEP) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    return bits ^ (bits >> np.uint64(31))


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def on_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """An array where the batch is. The device is not waited for: a copy from memory that is not pinned would be."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
