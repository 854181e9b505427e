"""What a profiler saw of some steps → the parts of a step in seconds, and the operators that took the most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_mm.training.spans import PREFIX

PARTS = ("wait", "copy", "forward", "backward", "optimizer", "all-reduce", "other")
"""Of a step, in the order in which they are shown. They exclude each other, and are the whole step together."""

_MAX_OPERATORS = 15

Interval = tuple[float, float]
"""Start and end, in microseconds."""


@dataclass(frozen=True)
class Operator:
    """One kind of operator, over all profiled steps.

    Attributes:
        name: as torch calls it.
        calls: how often it ran.
        host_s: seconds of the worker's CPU in it, without what it called.
        device_s: seconds of a GPU that it caused.
        memory_bytes: that it took and did not give back itself, on the GPU where there is one.
    """

    name: str
    calls: int
    host_s: float
    device_s: float
    memory_bytes: int


@dataclass(frozen=True)
class RankProfile:
    """Of one rank, over all profiled steps.

    Attributes:
        rank, world_size: its place.
        device: ``cpu``, or the name of a GPU.
        precision: bf16, fp16, tf32 or fp32.
        first_step, num_steps: which steps.
        total_s: seconds of all of them.
        parts: each of ``PARTS`` → seconds of the worker's own thread. On a GPU it only hands out the work.
        hidden_s: seconds in which gradients were exchanged while other work was done.
        device_parts: part → seconds of the GPU for work that was handed out in it; empty without a GPU.
        device_busy_s: seconds in which the GPU did anything.
        operators: that took the most time or memory.
    """

    rank: int
    world_size: int
    device: str
    precision: str
    first_step: int
    num_steps: int
    total_s: float
    parts: dict[str, float]
    hidden_s: float
    device_parts: dict[str, float]
    device_busy_s: float
    operators: tuple[Operator, ...]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RankProfile:
        """From what ``asdict`` makes of it."""
        operators = tuple(Operator(**operator) for operator in content["operators"])
        return cls(**{**content, "operators": operators})

    def share(self, part: str) -> float:
        """Of a step, on the worker's thread."""
        return self.parts[part] / self.total_s if self.total_s else 0.0


def measured(profiled: Any, *, wait_s: float, copy_s: float, **about: Any) -> RankProfile:
    """The figures of a profile.

    Args:
        profiled: a ``torch.profiler.profile`` that has stopped.
        wait_s: seconds that the worker waited for the batches.
        copy_s: seconds of bringing them to the device.
        about: the other attributes of ``RankProfile`` that say what was profiled.
    """
    spans: dict[str, list[Interval]] = {}
    exchanges: list[Interval] = []
    work: list[Interval] = []
    kernels: list[tuple[float, float]] = []
    device_work: list[Interval] = []
    for event in profiled.events():
        interval = (event.time_range.start, event.time_range.end)
        on_device = str(event.device_type).endswith("CUDA")
        if event.name.startswith(PREFIX):
            if not on_device:
                spans.setdefault(event.name.removeprefix(PREFIX), []).append(interval)
        elif on_device:
            (exchanges if "nccl" in event.name.lower() else device_work).append(interval)
        elif event.name.startswith(("gloo:", "nccl:")):
            exchanges.append(interval)
        else:
            if event.name.startswith("aten::"):
                work.append(interval)
            # Whoever handed them out; in a backward pass that is another thread.
            kernels += [(interval[0], kernel.duration / 1e6) for kernel in event.kernels]
    whole = [interval for intervals in spans.values() for interval in intervals]
    total_s = (max(end for _, end in whole) - min(start for start, _ in whole)) / 1e6 if whole else 0.0
    has_device = bool(kernels)
    found = parts_of_step(spans, exchanges, device_work if has_device else work, total_s, wait_s, copy_s)
    device_parts = dict.fromkeys(PARTS, 0.0) if has_device else {}
    for at, seconds in kernels:
        part = next((name for name, given in spans.items() if any(start <= at <= end for start, end in given)), "other")
        device_parts[part if part in PARTS else "copy"] += seconds
    hidden_s = max(0.0, length(exchanges) - _exposed(exchanges, device_work if has_device else work)) / 1e6
    busy_s = length([*device_work, *exchanges]) / 1e6 if has_device else 0.0
    return RankProfile(
        total_s=total_s,
        parts=found,
        hidden_s=hidden_s,
        device_parts=device_parts,
        device_busy_s=busy_s,
        operators=_operators(profiled),
        **about,
    )


def parts_of_step(
    spans: dict[str, list[Interval]],
    exchanges: Sequence[Interval],
    work: Sequence[Interval],
    total_s: float,
    wait_s: float,
    copy_s: float,
) -> dict[str, float]:
    """Seconds of each of ``PARTS``.

    Args:
        spans: name → where it lay on the worker's thread.
        exchanges: when gradients were exchanged.
        work: when anything else was computed.
        total_s: of all steps.
        wait_s: of it, waiting for batches.
        copy_s: of it, bringing them to the device.
    """
    seconds = {name: length(spans.get(name, ())) / 1e6 for name in ("forward", "backward", "optimizer", "all-reduce")}
    # Gradients are exchanged while others are still computed; what is waited for at the end is no part of computing them.
    backward = spans.get("backward", ())
    exposed = _exposed([cut for interval in exchanges for cut in _within(interval, backward)], work) / 1e6
    seconds["backward"] -= exposed
    seconds["all-reduce"] += exposed
    data_s = length(spans.get("data", ())) / 1e6
    # The loader's clock and the profiler's differ by what the profiler itself takes.
    seconds["wait"] = min(wait_s, data_s)
    seconds["copy"] = min(copy_s, data_s - seconds["wait"])
    seconds["other"] = max(0.0, total_s - sum(seconds.values()))
    return {name: seconds[name] for name in PARTS}


def length(intervals: Iterable[Interval]) -> float:
    """Of what they cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _exposed(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Length of what some cover and others don't."""
    others = list(others)
    return length([*intervals, *others]) - length(others)


def _within(interval: Interval, frames: Iterable[Interval]) -> Iterable[Interval]:
    for start, end in frames:
        cut = max(interval[0], start), min(interval[1], end)
        if cut[0] < cut[1]:
            yield cut


def _operators(profiled: Any) -> tuple[Operator, ...]:
    found = []
    for row in profiled.key_averages():
        if row.key.startswith((PREFIX, "ProfilerStep", "[")):
            continue
        on_device = int(row.self_device_memory_usage)
        found.append(
            Operator(
                name=row.key[:120],
                calls=int(row.count),
                host_s=row.self_cpu_time_total / 1e6,
                device_s=row.self_device_time_total / 1e6,
                memory_bytes=on_device or int(row.self_cpu_memory_usage),
            )
        )
    by_time = sorted(found, key=lambda operator: -(operator.device_s or operator.host_s))[:_MAX_OPERATORS]
    by_memory = sorted(found, key=lambda operator: -operator.memory_bytes)[:_MAX_OPERATORS]
    return tuple({operator.name: operator for operator in (*by_time, *by_memory)}.values())


def limit(profiled: RankProfile) -> str:
    """The part of a step that limits it, in a sentence."""
    wait = profiled.share("wait")
    largest = max((part for part in PARTS if part != "other"), key=profiled.share)
    if wait >= 0.1 and largest == "wait":
        return f"Waiting for data limits: {wait:.0%} of a step. The readers are the slower side."
    if profiled.device_parts:
        busy = profiled.device_busy_s / profiled.total_s if profiled.total_s else 0.0
        most = max(profiled.device_parts, key=lambda part: profiled.device_parts[part])
        if busy >= 0.8:
            return f"The GPU limits: it is busy {busy:.0%} of the time, for the most part with the {_words(most)}."
        return (
            f"Handing out the work limits: the GPU is busy {busy:.0%} of the time only, while the worker is in the "
            f"{_words(largest)} {profiled.share(largest):.0%} of it. A larger batch or train.compile would use it better."
        )
    if largest == "all-reduce":
        return (
            f"Exchanging gradients limits: {profiled.share(largest):.0%} of a step. A larger batch needs fewer of them."
        )
    also = f"; waiting for data takes {wait:.0%}" if wait >= 0.1 else ""
    return f"The {_words(largest)} takes the most: {profiled.share(largest):.0%} of a step{also}."


def _words(part: str) -> str:
    return {
        "forward": "forward pass",
        "backward": "backward pass",
        "optimizer": "optimizer",
        "copy": "copies to the device",
        "all-reduce": "exchange of gradients",
        "wait": "wait for data",
        "other": "work between the steps",
    }[part]
