"""Random numbers that belong to a sample: functions of (seed, epoch, position, what for) alone.

They do not depend on the rank, on the number of workers, on the device or on what was drawn before. They are made on the
host, where positions are known without asking the device, and follow the batch there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def uniform(positions: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for every position, by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    bits = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def on_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array where the batch is. The device is not waited for: a copy from memory that is not pinned would be."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
