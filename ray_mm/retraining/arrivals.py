"""Which shards are new: those that came and that no night has taken, as a listing, their names or a manifest tell."""

from __future__ import annotations

import contextlib
import json
import re
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ray_mm.config.retrain import Arrivals
from ray_mm.data.shards import find_shards
from ray_mm.errors import DatasetError, ObjectMissingError, UsageError
from ray_mm.retraining.watermark import Arrival, Watermark
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.remote import ObjectInfo, join, located, read_object

_GLOB = re.compile(r"[*?\[]")
_FORMS = ("%Y-%m-%d", "%Y-%m-%dT%H", "%Y-%m-%dT%H%M", "%Y-%m-%dT%H%M%S")


@dataclass(frozen=True)
class Incoming:
    """A shard that is new.

    Attributes:
        url: where it lies.
        size: bytes.
        version: see ``storage.remote.ObjectInfo``.
        modified_s: when it was written, in seconds since 1970; None where that is not known.
        event_time: of what is in it, in seconds since 1970; None where nothing tells it.
        sha256: that its manifest promises; None: none.
    """

    url: str
    size: int
    version: str
    modified_s: float | None = None
    event_time: float | None = None
    sha256: str | None = None

    def as_arrival(self, num_samples: int, until: float) -> Arrival:
        """For the watermark. Without an event time it is of the interval that ends at ``until``, and never late."""
        return Arrival(self.url, self.version, num_samples, until if self.event_time is None else self.event_time)

    def as_json(self) -> dict[str, Any]:
        """For a step's notes; ``Incoming(**…)`` is the way back."""
        return asdict(self)


@dataclass(frozen=True)
class Refused:
    """A shard that is not taken, and why.

    Attributes:
        shard: the shard.
        reason: in a few words.
    """

    shard: Incoming
    reason: str

    def as_json(self) -> dict[str, Any]:
        """For a step's notes."""
        return {**asdict(self.shard), "reason": self.reason}


@dataclass(frozen=True)
class Found:
    """What a night finds.

    Attributes:
        new: to be looked at, by event time and name.
        refused: that are not even looked at.
        num_settling: shards that were written to just now, and wait for the next night.
    """

    new: tuple[Incoming, ...]
    refused: tuple[Refused, ...] = ()
    num_settling: int = 0


def find_arrivals(config: Arrivals, watermark: Watermark, now: float) -> Found:
    """Sorts what is there into new and refused.

    Args:
        config: of the job.
        watermark: which shards earlier nights have seen.
        now: end of the data interval, in seconds since 1970.

    Raises:
        UsageError: the patterns or the manifest are wrong.
        StorageError: a store does not answer, or refuses.
    """
    wrong: dict[str, str] = {}
    there: dict[str, Incoming] = {}
    num_settling = 0
    for incoming, reason in _described(config) if config.by == "manifest" else _named(config):
        if incoming.modified_s is not None and now - incoming.modified_s < config.settle_s:
            num_settling += 1
        elif incoming.event_time is None or incoming.event_time <= now:
            there[incoming.url] = incoming
            if reason is not None:
                wrong[incoming.url] = reason
    found = watermark.sort((incoming.as_arrival(0, now) for incoming in there.values()), config.late_hours * 3600)
    refused = [Refused(there[each.path], reason) for kind, reason in _REASONS.items() for each in getattr(found, kind)]
    fresh = [there[each.path] for each in found.new]
    refused += [Refused(each, wrong[each.url]) for each in fresh if each.url in wrong]
    new = [each for each in fresh if each.url not in wrong]
    new.sort(key=lambda each: (each.event_time or 0.0, each.url))
    return Found(tuple(new), tuple(refused), num_settling)


_REASONS = {
    "changed": "has changed since a night took it; what is new belongs into a shard of a new name",
    "copies": "has the same bytes as a shard that was taken under another name",
    "too_late": "came later than arrivals.late_hours allows",
}


def listed(config: Arrivals) -> list[ObjectInfo]:
    """The shards that are there. A folder may be empty, and a glob may match nothing: nothing has come yet."""
    found: dict[str, ObjectInfo] = {}
    for pattern in config.patterns:
        try:
            infos = find_shards([pattern])
        except DatasetError:
            if not (is_remote(pattern) or _GLOB.search(pattern) or local_path(pattern).is_dir()):
                raise
            continue
        found |= {info.url: info for info in infos}
    return list(found.values())


def oldest_hours(shards: Sequence[Incoming], now: float) -> float | None:
    """For how long one of them has waited at the most; None where nothing tells."""
    ages = [now - shard.modified_s for shard in shards if shard.modified_s is not None]
    return max(ages) / 3600 if ages else None


def _named(config: Arrivals) -> Iterator[tuple[Incoming, None]]:
    for info in listed(config):
        time = _time_in_name(config, info.url) if config.by == "event_time" else None
        yield Incoming(info.url, info.size, info.version, info.modified_s, time), None


def _time_in_name(config: Arrivals, url: str) -> float:
    """The event time that a name tells.

    Raises:
        UsageError: it tells none.
    """
    name = url.rpartition("/")[2]
    match = re.search(config.time_pattern, name)
    head, _, clock = re.sub(r"[_ ]", "T", match[1]).partition("T") if match is not None else ("", "", "")
    text = "T".join(part for part in (head, re.sub(r"[:-]", "", clock)) if part)
    for form in _FORMS:
        with contextlib.suppress(ValueError):
            return _in_zone(datetime.strptime(text, form), config.time_zone)
    raise UsageError(
        f"arrivals.time_pattern: {config.time_pattern!r} finds no time such as 2026-11-03 or 2026-11-03T02-30 in {name!r}; "
        "correct it, or set by: listing."
    )


def _in_zone(time: datetime, zone: str) -> float:
    return (time if time.tzinfo is not None else time.replace(tzinfo=zoneinfo.ZoneInfo(zone))).timestamp()


def _described(config: Arrivals) -> Iterator[tuple[Incoming, str | None]]:
    """What the manifest lists and is there; and what is wrong with it."""
    assert config.manifest is not None, "Arrivals asks for it"
    file, infos = located(config.manifest), {info.url: info for info in listed(config)}
    try:
        lines = read_object(file).decode("utf-8").splitlines()
    except ObjectMissingError:
        return  # nothing has come yet
    except UnicodeDecodeError as error:
        raise UsageError(f"arrivals.manifest: {file} is not UTF-8 text ({error.reason}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path, size, digest, time = str(row["path"]), row.get("size_bytes"), row.get("sha256"), row.get("event_time")
            event_time = (
                _in_zone(datetime.fromisoformat(time.replace("Z", "+00:00")), config.time_zone) if time else None
            )
            if not (size is None or isinstance(size, int)) or not (
                digest is None or re.fullmatch(r"[0-9a-f]{64}", digest)
            ):
                raise ValueError("size_bytes is a whole number, sha256 has 64 hex digits")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"arrivals.manifest: {file}:{number} can't be read ({error}); expected JSON with path, and optionally "
                "size_bytes, sha256 and event_time."
            ) from None
        url = path if "://" in path or path.startswith("/") else join(file.rpartition("/")[0], path)
        info = infos.get(url)
        if info is not None:  # else it is announced, and will come
            reason = f"has {info.size} bytes, the manifest says {size}" if size not in (None, info.size) else None
            yield Incoming(url, info.size, info.version, info.modified_s, event_time, digest), reason
