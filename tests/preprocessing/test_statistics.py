"""Mean and standard deviation: of parts as of the whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ray_mm.preprocessing.statistics import Moments, RunningMoments, to_statistics

_parts = st.lists(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 6), st.just(2)),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    ),
    min_size=1,
    max_size=6,
)


@given(_parts)
def test_parts_give_what_the_whole_gives(parts: list[npt.NDArray[np.float32]]) -> None:
    whole = np.concatenate(parts).astype(np.float64)
    value_by_value, part_by_part = RunningMoments(), RunningMoments()
    for part in parts:
        value_by_value.add(part)
        one = RunningMoments()
        one.add(part)
        if (moments := one.moments()) is not None:
            part_by_part.merge(moments)
    for running in (value_by_value, part_by_part):
        found = running.moments()
        if not len(whole):
            assert found is None
            continue
        assert found is not None and found.count == len(whole)
        assert found.mean == pytest.approx(whole.mean(axis=0).tolist(), rel=1e-9, abs=1e-9)
        assert found.squares == pytest.approx((whole.var(axis=0) * len(whole)).tolist(), rel=1e-7, abs=1e-4)


def test_a_large_mean_does_not_swallow_the_deviation() -> None:
    running = RunningMoments()
    rng = np.random.default_rng(0)
    for _ in range(50):
        running.add((100_000 + rng.standard_normal((100, 1))).astype(np.float32))
    moments = running.moments()
    assert moments is not None
    assert to_statistics(moments).std[0] == pytest.approx(1.0, rel=0.05)


def test_a_constant_channel_has_deviation_one_and_a_tiny_one_keeps_its_own() -> None:
    running = RunningMoments()
    tiny = 1e-9 * np.random.default_rng(0).standard_normal(1000)
    running.add(np.stack([np.zeros(1000), np.full(1000, 0.1), tiny], axis=1).astype(np.float32))
    moments = running.moments()
    assert moments is not None
    statistics = to_statistics(moments)
    assert statistics.std[:2] == (1.0, 1.0)
    assert statistics.std[2] == pytest.approx(1e-9, rel=0.1)


def test_moments_survive_json_to_the_last_digit() -> None:
    running = RunningMoments()
    running.add(np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32))
    moments = running.moments()
    assert moments is not None
    assert Moments.model_validate_json(moments.model_dump_json()) == moments
