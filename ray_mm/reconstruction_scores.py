"""How much of what varies from sample to sample an autoencoder says: R², from sums over samples. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def variation(sums: npt.ArrayLike, sizes: Sequence[int]) -> Floats:
    """Σ‖x − mean‖² of each field, the mean that of each of its numbers: float64 [F].

    Args:
        sums: [3, N]: over the samples in which each number is known, how many they are, their values, the squares of these.
        sizes: numbers of each field.
    """
    count, total, square = np.asarray(sums, np.float64)
    # Rounding must not make it negative where all samples are alike.
    of_number = np.maximum(square - total * total / np.maximum(count, 1), 0)
    of_number[of_number <= 1e-9 * square] = 0
    return np.array([part.sum() for part in np.split(of_number, np.cumsum(sizes)[:-1])])


def explained(errors: npt.ArrayLike, around_mean: Floats, names: Iterable[str]) -> dict[str, float | None]:
    """``r2/<field>`` = 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², None where nothing varies; and ``r2``, the mean over the other fields.

    Args:
        errors: Σ‖x − x̂‖² of each field, [F].
        around_mean: of each field, see ``variation``.
        names: of the fields.
    """
    found = {
        f"r2/{name}": float(1 - error / around) if around > 0 else None
        for name, error, around in zip(names, np.asarray(errors, np.float64), around_mean, strict=True)
    }
    return {"r2": mean_of(found), **found}


def mean_of(found: Mapping[str, float | None]) -> float:
    """The mean of those that exist; 0 where there is none."""
    known = [value for value in found.values() if value is not None]
    return sum(known) / len(known) if known else 0.0
