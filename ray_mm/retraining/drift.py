"""Two histograms of classes → how far they are apart. Pure.

Sources: J. Lin, Divergence measures based on the Shannon entropy, 1991; Siddiqi, Credit Risk Scorecards, 2006 (population
stability index); Pearson's test of homogeneity, with the classes that occur in either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

Method = Literal["jensen_shannon", "psi", "chi_square"]


def drift_of(method: Method, before: Mapping[str, int], now: Mapping[str, int]) -> float | None:
    """How far samples are from those that are known.

    Args:
        method: see ``config.retrain.Validation.drift``.
        before: class → samples that are known.
        now: class → samples that are new.

    Returns:
        0 where both are the same; None where one of them is empty.
    """
    classes = sorted({name for counts in (before, now) for name, count in counts.items() if count})
    counts = np.array([[known.get(name, 0) for name in classes] for known in (before, now)], np.float64)
    if not classes or not counts.sum(axis=1).all():
        return None
    match method:
        case "jensen_shannon":
            shares = counts / counts.sum(axis=1, keepdims=True)
            middle = shares.mean(axis=0)
            with np.errstate(divide="ignore", invalid="ignore"):
                parts = np.where(shares > 0, shares * np.log2(shares / middle), 0.0)
            return max(0.0, float(parts.sum() / 2))
        case "psi":
            # Half a sample each: a class that is new would be infinitely far.
            smoothed = counts + 0.5
            known, new = smoothed / smoothed.sum(axis=1, keepdims=True)
            return float(((new - known) * np.log(new / known)).sum())
        case "chi_square":
            expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
            statistic = float(((counts - expected) ** 2 / expected).sum())
            if len(classes) == 1:
                return 0.0
            half = torch.tensor([(len(classes) - 1) / 2, statistic / 2], dtype=torch.float64)
            return float(1 - torch.special.gammaincc(half[0], half[1]))
