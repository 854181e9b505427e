"""A diagnosis in words and figures: the limit in a sentence, a row per stage, what one should know, and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_mm.data.plan import Schedule
from ray_mm.training.costs import Measured
from ray_mm.training.diagnosis import MAX_CPUS, Diagnosis, Stage, diagnose

_BUSY = 1.25
"""Seconds per CPU second of decoding, from which on others must have used the CPU, too."""


@dataclass(frozen=True)
class Row:
    """A stage, alone.

    Attributes:
        stage: which one.
        samples_per_s: in one process.
        per: what has this rate: a process that reads, a CPU, a worker.
        bytes_per_s: likewise; None: not of this stage.
        told: how it was measured, or what it means.
    """

    stage: str
    samples_per_s: float | None
    per: str
    bytes_per_s: float | None
    told: str


@dataclass(frozen=True)
class Examined:
    """A training whose stages were measured.

    Attributes:
        name: of the job.
        seconds: per stage.
        measured: what they cost.
        diagnosis: what follows from that.
    """

    name: str
    seconds: float
    measured: Measured
    diagnosis: Diagnosis


def examined(name: str, seconds: float, measured: Measured, schedule: Schedule) -> Examined:
    """Measured stages with their diagnosis."""
    return Examined(name, seconds, measured, diagnose(measured, schedule))


def rows(measured: Measured) -> list[Row]:
    """The table: a row per stage, in the order of a sample's way."""
    read, decode, step = measured.read, measured.decode, measured.step
    found = [_rate_row("read", read.wall_s, "process", _memory_text(measured), read.size_bytes)]
    if read.again_s is not None:
        found.append(_rate_row("read again", read.again_s, "process", "the same samples, from memory", read.size_bytes))
    dearest = sorted(decode.fields_s.items(), key=lambda each: -each[1])
    told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in dearest)
    found.append(_rate_row("decode", decode.cpu_s, "CPU", told))
    told = f"{measured.hand_over.block_rows:,} samples at once, through Ray's object store"
    found.append(_rate_row("hand over", measured.hand_over.wall_s, "worker", told))
    if measured.device == "cpu":
        found.append(Row("transfer", None, "worker", None, "nothing to do: the model computes on the CPU"))
        device = f"CPU, {step.num_threads} thread{'s' if step.num_threads > 1 else ''}"
    else:
        found.append(_rate_row("transfer", step.transfer_s, "worker", f"to {measured.device}"))
        device = measured.device
    told = f"{step.batch_size:,} samples, {step.precision}, {device}; {step.num_steps:,} steps"
    found.append(_rate_row("train step", step.step_s, "worker", told))
    return found


def notes(measured: Measured) -> Iterator[str]:
    """What one should know about the figures."""
    read, decode = measured.read, measured.decode
    where = f"measured on {measured.reads_at}"
    if measured.trains_at != measured.reads_at:
        where += f" (read, decode) and {measured.trains_at} (hand over, transfer, train step)"
    yield f"{where}, each stage alone; a start of the workers takes some seconds more"
    if decode.num_bad:
        yield f"{decode.num_bad:,} of the first {decode.num_samples:,} samples can't be decoded; a run would quarantine them"
    if read.in_memory == 1.0:
        yield "all that was read lay in memory already (page cache), so this says nothing about the disk itself"
    if measured.has_cache:
        yield "read and decoded past data.cache, as in a first epoch; later ones are faster where that limits"
    if measured.room.workers > 1:
        yield "the step is that of one worker; the exchange of gradients with the others is not in it"
    if decode.wall_s > _BUSY * decode.cpu_s:
        yield (
            f"decoding took {decode.wall_s / decode.cpu_s:.1f} times its CPU time, so other programs used the CPUs meanwhile; "
            "on a quiet machine all of this is faster"
        )


def as_json(found: Examined) -> dict[str, Any]:
    """What ``ray-mm doctor JOB --json`` prints as ``training``; docs/performance.md explains each key."""
    measured, diagnosis = found.measured, found.diagnosis
    return {
        "name": found.name,
        "limit": diagnosis.limit,
        "sentence": sentence(measured, diagnosis),
        "samples_per_s": diagnosis.predicted,
        "epoch_s": diagnosis.epoch_s,
        "run_s": diagnosis.run_s,
        "readers": diagnosis.readers,
        "readers_deliver": diagnosis.readers_deliver,
        "workers": measured.room.workers,
        "workers_take": diagnosis.workers_take,
        "cpus_allow": diagnosis.cpus_allow,
        "cpus_per_worker": diagnosis.cpus_per_worker,
        "cpus_needed": diagnosis.cpus_needed,
        "stages": [vars(row) for row in rows(measured)],
        "fields_ms": {name: 1e3 * seconds for name, seconds in measured.decode.fields_s.items()},
        "sample_bytes": measured.read.size_bytes,
        "in_memory": measured.read.in_memory,
        "num_decoded": measured.decode.num_samples,
        "num_bad": measured.decode.num_bad,
        "reads_at": measured.reads_at,
        "trains_at": measured.trains_at,
        "device": measured.device,
        "notes": list(notes(measured)),
    }


def _rate_row(stage: str, seconds: float, per: str, told: str, size_bytes: float | None = None) -> Row:
    bytes_per_s = None if size_bytes is None else size_bytes / seconds
    return Row(stage, 1 / seconds, per, bytes_per_s, told)


def _memory_text(measured: Measured) -> str:
    read = measured.read
    if read.is_remote:
        return "from the store"
    if read.in_memory is None:
        return "whether from the disk or from memory, can't be told here"
    return f"{read.in_memory:.0%} of the samples lay in memory already"


def sentence(measured: Measured, found: Diagnosis) -> str:
    """The limit in words: what limits, by which figures, and what would remove it."""
    room = measured.room
    workers = "the worker takes" if room.workers == 1 else f"the {room.workers} workers take"
    readers = "its reader delivers" if found.readers == 1 else f"its {found.readers} readers deliver"
    figures = (
        f"{readers} {_rate(found.readers_deliver)} samples/s on the {_cpus(room.data_cpus)} that the job leaves them, {workers} "
        f"{_rate(found.workers_take)}"
    )
    if found.shares_cpus:
        figures += f", and both together need the same {_cpus(room.cpus)}, which allow {_rate(found.cpus_allow)}"
    return f"{_SUBJECTS[found.limit]} limits this job: {figures}; {_remedy(measured, found)}."


_SUBJECTS: dict[Stage, str] = {
    "read": "reading",
    "decode": "decoding",
    "hand over": "handing blocks over",
    "transfer": "bringing batches to the device",
    "train step": "the train step",
}


def _remedy(measured: Measured, found: Diagnosis) -> str:
    now = f"now {found.cpus_per_worker:g}"
    if found.limit == "hand over":
        return (
            f"Ray's object store gives a worker {_rate(1 / measured.hand_over.wall_s)} samples/s; smaller fields "
            "(data.fields) or, of tiny samples, a larger data.batch_size make it faster"
        )
    if found.limit == "transfer":
        return "smaller fields (data.fields) are brought there faster"
    if found.limit == "train step" and not found.shares_cpus:
        return "more CPUs for reading would change nothing, a smaller model or a faster device would"
    if found.cpus_needed is None:
        if found.readers == measured.room.num_tasks:
            tasks = (
                "1 read task, which one reader" if found.readers == 1 else f"{found.readers} read tasks, which as many"
            )
            return f"more CPUs would not remove it: the training has only {tasks} can work on"
        return f"no number of CPUs up to {MAX_CPUS:,} per worker would remove it"
    needed = f"{_cpus(found.cpus_needed)} per worker would remove it, {now}"
    if found.limit == "read" and measured.read.wall_s > 2 * measured.read.cpu_s:
        return f"{needed}, if the disk or the store gives as much to every process"
    if found.limit == "decode":
        field, seconds = max(measured.decode.fields_s.items(), key=lambda each: each[1])
        return f"{needed} ({field} is {seconds / measured.decode.cpu_s:.0%} of decoding)"
    return needed


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _cpus(count: float) -> str:
    return "1 CPU" if count == 1 else f"{count:g} CPUs"
