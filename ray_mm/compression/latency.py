"""Two models, the same batches, one call each in turn → p50 and p95 of both in milliseconds.

Taking turns is what makes the comparison fair on a machine that others use too: whatever slows one call down is as
likely to slow down the other. Which of the two goes first changes from round to round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WARM_UP_ROUNDS = 3
"""Untimed calls of each model at each batch size: allocators, caches, and kernels chosen at the first call."""


@dataclass(frozen=True)
class Latency:
    """Latencies of two models at one batch size, in milliseconds per call."""

    original_p50_ms: float
    original_p95_ms: float
    artifact_p50_ms: float
    artifact_p95_ms: float

    @property
    def speedup_p50(self) -> float | None:
        """Median of the original over median of the artifact; None if the clock could not tell."""
        ratio = self.original_p50_ms / self.artifact_p50_ms if self.artifact_p50_ms > 0 else math.inf
        return ratio if math.isfinite(ratio) else None


def compare(
    original: Callable[[], object],
    artifact: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times two calls in turn.

    Args:
        original: one forward pass of the original on a batch that is ready in memory.
        artifact: the same of the artifact.
        rounds: timed calls of each.
        clock: seconds.
    """
    for _ in range(WARM_UP_ROUNDS):
        original()
        artifact()
    calls = (original, artifact)
    seconds: tuple[list[float], list[float]] = ([], [])
    # A collection that falls into one call would be charged to it.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for model in (0, 1) if turn % 2 == 0 else (1, 0):
                start = clock()
                calls[model]()
                seconds[model].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    figures = [
        float(np.percentile(np.asarray(times) * 1e3, percentile)) for times in seconds for percentile in (50, 95)
    ]
    return Latency(*figures)
