"""What happens to a bad sample: it is kept aside with its reason, counted, and stops the run when there are too many.

    <run>/quarantine/<id>.json   dataset, shard, key, field, reason
    <run>/quarantine/<id>.bin    the member's bytes

The id is a hash of all but the reason, so that a sample that is met again in the next epoch is not written again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ray_mm.config.base import BadSamples
from ray_mm.data.order import stable_hash
from ray_mm.errors import QuarantineBudgetError, RayMMError, SampleError
from ray_mm.storage import write_atomic, write_json

UNUSABLE = "unusable.jsonl"
"""In a preprocess run's folder: a line per cell of the table, or member of a tar in place, that is there and was left absent."""

_JUDGED_FROM = 100


def quarantine(folder: Path, dataset: str, error: SampleError, payload: bytes | memoryview) -> None:
    """Keeps one bad member aside.

    Args:
        folder: the quarantine.
        dataset: path or URL of the dataset. A training reads two, whose shards and keys may have the same names.
        error: which member, and what is wrong with it.
        payload: the member.
    """
    where = _where(dataset, error)
    name = _name(where)
    record = folder / f"{name}.json"
    if record.exists():
        return
    try:
        # The record comes last: where it is, the bytes are.
        write_atomic(folder / f"{name}.bin", bytes(payload))
        write_json(record, {**where, "reason": error.reason})
    except OSError as reason:
        raise RayMMError(
            f"{error}; and it can't be kept aside in {folder} ({reason.strerror or reason}). Free space there, or choose "
            "another output."
        ) from None


def kept_bytes(folder: Path, dataset: str, error: SampleError) -> bytes | None:
    """The bytes of a member as a quarantine keeps them; None where it is not there. Arguments as of ``quarantine``."""
    try:
        return (folder / f"{_name(_where(dataset, error))}.bin").read_bytes()
    except FileNotFoundError:
        return None


def _where(dataset: str, error: SampleError) -> dict[str, str]:
    return {"dataset": dataset, "shard": error.shard, "key": error.key, "field": error.field}


def _name(where: dict[str, str]) -> str:
    return f"{stable_hash(*where.values()):032x}"


@dataclass(frozen=True)
class Quarantined:
    """A member that was kept aside.

    Attributes:
        dataset: path or URL of the dataset that it is in.
        error: which member, and what was wrong with it.
        path: of its bytes.
    """

    dataset: str
    error: SampleError
    path: Path


def list_quarantine(folder: Path) -> list[Quarantined]:
    """What lies in a quarantine, by shard, key and field."""
    found = []
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        error = SampleError(record["shard"], record["key"], record["field"], record["reason"])
        found.append(Quarantined(record["dataset"], error, path.with_suffix(".bin")))
    return sorted(found, key=lambda one: (one.error.shard, one.error.key, one.error.field, one.dataset))


def check_budget(limits: BadSamples, quarantined: int, seen: int, folder: Path) -> None:
    """Stops the run when too many samples of an epoch (or of an evaluation) were bad.

    Args:
        limits: of the job.
        quarantined: bad samples so far.
        seen: samples so far, bad ones included.
        folder: the quarantine, for the message.

    Raises:
        QuarantineBudgetError: over a limit.
    """
    over_count = quarantined > limits.max_count
    over_rate = seen >= _JUDGED_FROM and quarantined > limits.max_rate * seen
    if not (over_count or over_rate):
        return
    found = list_quarantine(folder)
    first = found[0].error if found else "not recorded"
    limit = f"max_count {limits.max_count}" if over_count else f"max_rate {limits.max_rate:g}"
    raise QuarantineBudgetError(
        f"{quarantined} of {seen} samples can't be read, more than bad_samples.{limit} allows; "
        f"the first is {first}. They lie with their reasons in {folder}; mend the data or raise the limit."
    )
