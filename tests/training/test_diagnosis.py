"""From what the stages cost to the one that limits, and to the CPUs that would remove the limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.plan import Schedule
from ray_mm.training.costs import DecodeCost, HandCost, Measured, ReadCost, Room, StepCost
from ray_mm.training.diagnosis import Diagnosis, diagnose

SCHEDULE = Schedule(train_samples=1000, validation_samples=100, batch_size=100, epochs=3)
READING = ("read", "decode", "hand over")


def costs(
    read_ms: float = 0.1,
    decode_ms: float = 1.0,
    step_ms: float = 1.0,
    *,
    step_cpu_ms: float = 0.1,
    hand_ms: float = 0.01,
    transfer_ms: float = 0.001,
    is_remote: bool = False,
    waits: float = 0.0,
    **room: Any,
) -> Measured:
    """A training on a GPU beside 8 CPUs, of which one is the worker's; costs in milliseconds per sample."""
    there: dict[str, Any] = {"workers": 1, "cpus": 8.0, "data_cpus": 7.0, "cpus_per_worker": 1.0, "num_tasks": 1000}
    return Measured(
        read=ReadCost((read_ms + waits) / 1e3, read_ms / 1e3, 1e5, 100, is_remote, None if is_remote else 0.0, None),
        decode=DecodeCost(decode_ms / 1e3, decode_ms / 1e3, {"image": decode_ms / 1e3}, 100, 0),
        hand_over=HandCost(hand_ms / 1e3, hand_ms / 2e3, hand_ms / 2e3, 100),
        step=StepCost(transfer_ms / 1e3, step_ms / 1e3, step_cpu_ms / 1e3, step_ms / 3e3, 100, 20, "bf16", 1),
        room=Room(**{**there, "readers_per_cpu": 1.5, **room}),
        reads_at="here",
        trains_at="here",
        device="GPU",
        has_cache=False,
    )


def found(measured: Measured) -> Diagnosis:
    return diagnose(measured, SCHEDULE)


def test_dear_decoding_limits_until_there_are_enough_cpus() -> None:
    diagnosis = found(costs(decode_ms=10.0, step_ms=0.5))
    assert diagnosis.limit == "decode"
    assert diagnosis.readers == 10, "one and a half for each of seven CPUs"
    assert diagnosis.readers_deliver == pytest.approx(10 / 10.105e-3)
    assert diagnosis.workers_take == pytest.approx(1 / 0.5e-3)
    # Ten readers are more than eight CPUs can keep busy, that of the worker included.
    assert diagnosis.shares_cpus and 7 / 10.105e-3 < diagnosis.predicted < 8 / 10.105e-3
    # 2,000 samples/s of 10.105 ms keep 20.2 CPUs busy, the step a part of one.
    assert (diagnosis.cpus_needed, diagnosis.cpus_per_worker) == (21, 8.0)


def test_a_dear_step_limits_and_no_cpus_help() -> None:
    diagnosis = found(costs(step_ms=5.0))
    assert (diagnosis.limit, diagnosis.cpus_needed) == ("train step", None)
    assert diagnosis.predicted == pytest.approx(1 / 5e-3)


def test_a_slow_disk_limits_with_cpus_idle_and_a_slow_store_is_waited_for_while_decoding() -> None:
    disk = found(costs(waits=20.0))
    assert disk.limit == "read" and disk.predicted == pytest.approx(10 / 21.105e-3)
    store = found(costs(waits=20.0, is_remote=True))
    assert store.limit == "read" and store.predicted == pytest.approx(10 / 20.1e-3)
    behind_decoding = found(costs(waits=5.0, decode_ms=10.0, is_remote=True))
    assert behind_decoding.limit == "decode"


def test_the_transfer_and_the_store_between_the_processes_can_limit_too() -> None:
    assert found(costs(transfer_ms=6.0)).limit == "transfer"
    diagnosis = found(costs(hand_ms=2.0))
    assert diagnosis.limit == "hand over" and diagnosis.predicted == pytest.approx(500)
    assert found(costs(hand_ms=2.0, workers=2)).predicted == pytest.approx(1000), "each worker has a stream of its own"


def test_readers_and_a_model_on_the_same_cpus_share_them() -> None:
    diagnosis = found(costs(decode_ms=1.0, step_ms=1.0, step_cpu_ms=2.0, cpus=2.0, data_cpus=1.0))
    assert diagnosis.shares_cpus and diagnosis.limit == "train step"
    assert diagnosis.predicted == diagnosis.cpus_allow == pytest.approx(2 / (0.1 + 1 + 0.005 + 2 + 0.005) * 1e3)
    assert diagnosis.cpus_needed == 4


def test_more_readers_than_read_tasks_find_nothing_to_do() -> None:
    diagnosis = found(costs(decode_ms=10.0, step_ms=0.5, num_tasks=2))
    assert (diagnosis.readers, diagnosis.limit, diagnosis.cpus_needed) == (2, "decode", None)


def test_an_epoch_is_its_padded_batches_and_its_validation() -> None:
    measured = costs(step_ms=10.0)
    diagnosis = diagnose(measured, replace(SCHEDULE, train_samples=950))
    # Ten steps of a hundred; a validation's forward pass takes a third of a step.
    assert diagnosis.epoch_s == pytest.approx(1000 * 10e-3 + 100 * 10e-3 / 3)
    assert diagnosis.run_s == 3 * diagnosis.epoch_s


milliseconds = st.floats(0.001, 50.0)


@given(
    read_ms=milliseconds,
    decode_ms=milliseconds,
    step_ms=milliseconds,
    step_cpu_ms=milliseconds,
    waits=st.floats(0, 20),
    is_remote=st.booleans(),
    workers=st.integers(1, 4),
    cpus=st.integers(8, 64),
)
def test_the_cpus_that_are_named_remove_the_limit_and_one_less_does_not(
    workers: int, cpus: int, step_ms: float, step_cpu_ms: float, **measured: Any
) -> None:
    def with_cpus(each: int) -> Diagnosis:
        room = {"workers": workers, "cpus": float(each * workers), "data_cpus": float(each * workers - workers)}
        return found(costs(step_ms=step_ms, step_cpu_ms=step_cpu_ms, hand_ms=1e-4, **room, **measured))

    needed = with_cpus(cpus).cpus_needed
    if needed is None:
        assert with_cpus(cpus).limit in ("train step", "transfer") or with_cpus(1024).limit not in (
            "train step",
            "transfer",
        )
        return
    assert needed > cpus
    assert with_cpus(needed).limit in ("train step", "transfer") and with_cpus(needed).cpus_needed is None
    assert with_cpus(needed - 1).predicted < with_cpus(needed).predicted
