"""Costs of the stages, each measured alone → which of them limits a training, and what would remove the limit.

    readers   take turns at reading, decoding and handing over; there are READERS_PER_CPU for each CPU that the workers leave
    workers   train on a batch while the next one goes to the device, and the readers make those after it
    CPUs      what both need together, where workers compute on them, too

A training is as fast as the least of what these can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ray_mm.data.plan import Schedule
from ray_mm.training.costs import Measured

Stage = Literal["read", "decode", "hand over", "transfer", "train step"]

MAX_CPUS = 1024
"""Per worker: more is no advice."""


@dataclass(frozen=True)
class Diagnosis:
    """What a training will come to. Rates are samples per second, of the whole training.

    Attributes:
        limit: the stage that decides.
        shares_cpus: whether it decides because readers and workers need the same CPUs.
        predicted: how fast the training will be.
        readers: how many read and decode at once.
        readers_deliver: what they can give with the CPUs that the workers leave.
        workers_take: what the workers can train on.
        cpus_allow: what readers and workers can do together on all CPUs.
        cpus_per_worker: that there are now, those that read included.
        cpus_needed: per worker, with which the limit would be another; None: CPUs don't remove it.
        epoch_s: seconds of an epoch, its validation included.
        run_s: seconds of all epochs.
    """

    limit: Stage
    shares_cpus: bool
    predicted: float
    readers: int
    readers_deliver: float
    workers_take: float
    cpus_allow: float
    cpus_per_worker: float
    cpus_needed: int | None
    epoch_s: float
    run_s: float


def diagnose(measured: Measured, schedule: Schedule) -> Diagnosis:
    """Names the limit.

    Args:
        measured: all stages.
        schedule: the whole training.
    """
    room = measured.room
    readers_deliver = _readers_deliver(measured, room.data_cpus)
    hands_over = room.workers / measured.hand_over.wall_s
    workers_take = room.workers / max(measured.step.transfer_s, measured.step.step_s)
    cpus_allow = room.cpus / (_reader_cpu_s(measured) + _worker_cpu_s(measured))
    predicted = min(readers_deliver, hands_over, workers_take, cpus_allow)
    shares_cpus = predicted == cpus_allow
    if shares_cpus:
        limit = _dearest(_cpu_costs(measured))
    elif predicted == workers_take:
        limit = _dearest({"transfer": measured.step.transfer_s, "train step": measured.step.step_s})
    elif predicted == hands_over:
        limit = "hand over"
    else:
        limit = _dearest(_reader_costs(measured))
    scored = min(readers_deliver, hands_over, room.workers / max(measured.step.transfer_s, measured.step.validate_s))
    epoch_s = schedule.batch_size * (schedule.train_batches / predicted + schedule.validation_batches / scored)
    return Diagnosis(
        limit=limit,
        shares_cpus=shares_cpus,
        predicted=predicted,
        readers=_num_readers(measured, room.data_cpus),
        readers_deliver=readers_deliver,
        workers_take=workers_take,
        cpus_allow=cpus_allow,
        cpus_per_worker=room.cpus / room.workers,
        cpus_needed=_cpus_needed(measured, min(workers_take, hands_over), predicted),
        epoch_s=epoch_s,
        run_s=epoch_s * schedule.epochs,
    )


def _readers_deliver(measured: Measured, cpus: float) -> float:
    """Samples per second of all readers that Ray starts where it may use so many CPUs.

    It counts CPUs, and binds no process to one: while a worker waits, readers have its CPU, too. What all CPUs together allow
    is another bound.
    """
    return _num_readers(measured, cpus) / _reader_s(measured)


def _num_readers(measured: Measured, cpus: float) -> int:
    # A thousandth is lost where Ray rounds what a worker reserves.
    return max(1, min(math.floor(cpus * measured.room.readers_per_cpu + 1e-3), measured.room.num_tasks))


def _reader_s(measured: Measured) -> float:
    """Seconds that a reader is busy with a sample."""
    costs = _reader_costs(measured)
    if measured.read.is_remote:
        # What comes next is on its way while this is decoded.
        return max(costs["read"], measured.read.cpu_s + costs["decode"] + costs["hand over"])
    return sum(costs.values())


def _reader_costs(measured: Measured) -> dict[Stage, float]:
    return {
        "read": measured.read.wall_s,
        "decode": measured.decode.wall_s,
        "hand over": measured.hand_over.send_cpu_s,
    }


def _reader_cpu_s(measured: Measured) -> float:
    return measured.read.cpu_s + measured.decode.cpu_s + measured.hand_over.send_cpu_s


def _worker_cpu_s(measured: Measured) -> float:
    return measured.step.step_cpu_s + measured.hand_over.receive_cpu_s


def _cpu_costs(measured: Measured) -> dict[Stage, float]:
    return {
        "read": measured.read.cpu_s,
        "decode": measured.decode.cpu_s,
        "hand over": measured.hand_over.send_cpu_s + measured.hand_over.receive_cpu_s,
        "train step": measured.step.step_cpu_s,
    }


def _dearest(costs: dict[Stage, float]) -> Stage:
    return max(costs, key=lambda stage: costs[stage])


def _cpus_needed(measured: Measured, wanted: float, predicted: float) -> int | None:
    """The least CPUs per worker with which the readers give all that the workers take."""
    room = measured.room
    if predicted >= wanted:
        return None
    both = _reader_cpu_s(measured) + _worker_cpu_s(measured)
    for cpus in range(1, MAX_CPUS + 1):
        left = room.workers * (cpus - room.cpus_per_worker)
        if left > 0 and room.workers * cpus / both >= wanted and _readers_deliver(measured, left) >= wanted:
            return cpus
    return None
