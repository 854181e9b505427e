from __future__ import annotations

import gc

import pytest

from ray_mm.compression.latency import WARM_UP_ROUNDS, Latency, compare


class Clock:
    """A clock that the timed calls move forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: list[float]) -> None:
        self.now += seconds[self.calls.count(name) % len(seconds)]
        self.calls.append(name)


def test_median_and_tail_are_those_of_each_model() -> None:
    clock = Clock()
    slow = [0.010] * 9 + [0.050]
    latency = compare(
        lambda: clock.work("original", slow), lambda: clock.work("artifact", [0.005]), rounds=20, clock=clock
    )
    assert latency.original_p50_ms == pytest.approx(10.0)
    assert latency.original_p95_ms == pytest.approx(50.0)
    assert latency.artifact_p50_ms == pytest.approx(5.0)
    assert latency.artifact_p95_ms == pytest.approx(5.0)
    assert latency.speedup_p50 == pytest.approx(2.0)


def test_the_models_take_turns_and_neither_always_goes_first() -> None:
    clock = Clock()
    compare(lambda: clock.work("original", [1.0]), lambda: clock.work("artifact", [1.0]), rounds=4, clock=clock)
    timed = clock.calls[2 * WARM_UP_ROUNDS :]
    assert timed == ["original", "artifact", "artifact", "original"] * 2


def test_a_clock_that_does_not_move_gives_no_speedup() -> None:
    assert compare(lambda: None, lambda: 0, rounds=3, clock=lambda: 0.0).speedup_p50 is None
    assert Latency(1.0, 1.0, 0.0, 0.0).speedup_p50 is None


def test_the_garbage_collector_is_left_as_it_was_even_when_a_model_fails() -> None:
    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("in a timed call")

    with pytest.raises(RuntimeError, match="timed call"):
        compare(fail, lambda: None, rounds=3)
    assert gc.isenabled()
