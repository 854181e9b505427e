"""What the stages of a training cost, each measured alone: seconds per sample. Plain values, which travel between processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadCost:
    """Of reading members, per sample in one process.

    Attributes:
        wall_s: seconds, waiting included.
        cpu_s: seconds of a CPU.
        size_bytes: of its members.
        num_samples: that were read.
        is_remote: whether they lie in a store: then reading goes on while others are decoded.
        in_memory: share of the samples that lay in the system's page cache before; None where that can't be told.
        again_s: seconds when the same samples are read once more, from memory; None: of a store.
    """

    wall_s: float
    cpu_s: float
    size_bytes: float
    num_samples: int
    is_remote: bool
    in_memory: float | None
    again_s: float | None


@dataclass(frozen=True)
class DecodeCost:
    """Of decoding, per sample in one process.

    Attributes:
        wall_s: seconds; more than ``cpu_s`` where others use the CPU, too.
        cpu_s: seconds of a CPU.
        fields_s: of that, field → seconds of a CPU.
        num_samples: different ones that were decoded.
        num_bad: of these, that can't be decoded.
    """

    wall_s: float
    cpu_s: float
    fields_s: dict[str, float]
    num_samples: int
    num_bad: int


@dataclass(frozen=True)
class HandCost:
    """Of blocks on their way from a read task to a worker, per sample.

    Attributes:
        wall_s: seconds from one to the next.
        send_cpu_s: seconds of a CPU in the process that reads.
        receive_cpu_s: seconds of a CPU in the worker.
        block_rows: samples of a block.
    """

    wall_s: float
    send_cpu_s: float
    receive_cpu_s: float
    block_rows: int


@dataclass(frozen=True)
class StepCost:
    """Of a worker, per sample.

    Attributes:
        transfer_s: seconds of bringing a batch to the device.
        step_s: seconds of a training step: forward, backward, optimizer.
        step_cpu_s: of that, seconds of a CPU, all threads together.
        validate_s: seconds of a validation's forward pass.
        batch_size: samples of a step on this worker.
        num_steps: that were measured; those before, for warming up, are not among them.
        precision: bf16, fp16, tf32 or fp32.
        num_threads: of torch on the CPU.
    """

    transfer_s: float
    step_s: float
    step_cpu_s: float
    validate_s: float
    batch_size: int
    num_steps: int
    precision: str
    num_threads: int


@dataclass(frozen=True)
class Room:
    """What a training has to run on.

    Attributes:
        workers: of the job.
        cpus: of the whole Ray.
        data_cpus: that the workers leave to Ray Data.
        cpus_per_worker: that each worker reserves.
        num_tasks: read tasks of the whole training: so many can be read at once, at the most.
        readers_per_cpu: that Ray Data runs on a CPU.
    """

    workers: int
    cpus: float
    data_cpus: float
    cpus_per_worker: float
    num_tasks: int
    readers_per_cpu: float


@dataclass(frozen=True)
class Measured:
    """All stages of a training.

    Attributes:
        read, decode, hand_over, step: what each costs.
        room: what there is.
        reads_at: the machine that read and decoded.
        trains_at: the machine of the worker.
        device: of the worker: cpu, or the name of a GPU.
        has_cache: whether the job keeps something on a disk, which was not used.
    """

    read: ReadCost
    decode: DecodeCost
    hand_over: HandCost
    step: StepCost
    room: Room
    reads_at: str
    trains_at: str
    device: str
    has_cache: bool
