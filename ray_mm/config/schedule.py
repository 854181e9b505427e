"""``schedule:`` of any job: when it is run, and what follows from that. What runs a job makes no difference to what it does.

Times are those of a cron line of the classic five fields, in a time zone, as Debian's cron reads them: a time that is left out
when clocks go forward comes as soon as they have, and one that comes twice when they go back comes once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import model_validator

from ray_mm.config.base import Config

_EXAMPLE = 'expected five fields, minute hour day month weekday, such as "0 2 * * *" for every night at two'
_VALUE = r"(?:\d{1,2}|[A-Za-z]{3})"
_FIELD = re.compile(
    rf"(?:\*(?:/\d+)?|{_VALUE}(?:-{_VALUE}(?:/\d+)?)?)(?:,(?:\*(?:/\d+)?|{_VALUE}(?:-{_VALUE}(?:/\d+)?)?))*"
)
_MOST_LOOKED_AT = 5000
_NICKNAMES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0"}
_NICKNAMES |= {"@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}


class JobSchedule(Config):
    """When the job is run. ``ray-mm schedule`` runs it then; ``ray-mm render`` writes the same for cron, systemd and KubeRay."""

    cron: str
    """Minute, hour, day of the month, month, weekday: ``"0 2 * * *"`` is every night at two."""
    timezone: str = "UTC"
    """Whose clocks count, such as ``Europe/Berlin``: a name of the IANA time zone database."""
    catch_up: bool = True
    """Whether a run whose time went by while nothing could start it is made up for: once, however many there were."""

    @model_validator(mode="after")
    def _comes(self) -> JobSchedule:
        require_zone("timezone", self.timezone)
        _require_fields(self.cron)
        try:
            next(times(self, datetime.now(timezone.utc)))
        except CronSimError as error:
            if "day-of-month" in str(error) and _days_alone_are_right(self.cron):
                raise ValueError(
                    f"cron {self.cron!r} never comes: no such month has that day; change one of them"
                ) from None
            raise ValueError(f"cron {self.cron!r}: {str(error)[:1].lower()}{str(error)[1:]}; {_EXAMPLE}") from None
        except StopIteration:
            raise ValueError(f"cron {self.cron!r} never comes; {_EXAMPLE}") from None
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)


def times(schedule: JobSchedule, after: datetime) -> Iterator[datetime]:
    """Every time after another, in the schedule's time zone, without an end.

    Args:
        schedule: of the job.
        after: with a time zone, whichever it is.
    """
    zone = schedule.zone
    for found in CronSim(schedule.cron, after.astimezone(zone)):
        # Within the hour that comes twice, the library may begin with the first of the two.
        if found.astimezone(timezone.utc) > after:
            yield found


def without_schedule(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a job is, whenever it is run: two that differ in nothing else are the same.

    Args:
        content: of the job, with every default filled in.
    """
    return {key: value for key, value in content.items() if key != "schedule"}


def missed(schedule: JobSchedule, after: datetime, until: datetime) -> list[datetime]:
    """The times after one and up to another."""
    found = []
    for time in times(schedule, after):
        if time.astimezone(timezone.utc) > until:
            break
        found.append(time)
    return found


def at_changes(schedule: JobSchedule, after: datetime) -> tuple[datetime | None, datetime | None]:
    """The first times within a year or so at which schedulers differ, of a line that names its hours.

    Returns:
        One that is not the line's own, because clocks go forward over it; and one that comes twice when they go back. None: there
        is no such time.
    """
    found = values(schedule)
    minutes, hours = found["minute"], found["hour"]
    late: datetime | None = None
    twice: datetime | None = None
    if hours is None:
        return None, None
    for time in itertools.islice(times(schedule, after), _MOST_LOOKED_AT):
        if time > after + timedelta(days=400):
            break
        if late is None and (time.hour not in hours or (minutes is not None and time.minute not in minutes)):
            late = time
        if twice is None and time.replace(fold=0).utcoffset() != time.replace(fold=1).utcoffset():
            twice = time
    return late, twice


def values(schedule: JobSchedule) -> dict[str, tuple[int, ...] | None]:
    """``minute``, ``hour``, ``day``, ``month``, ``weekday`` (0: Sunday) → the values that count; None: all."""
    line = CronSim(schedule.cron, datetime.now(timezone.utc))
    weekdays = {int(number) % 7 for number in line.weekdays if isinstance(number, int)}
    found = {"minute": line.minutes, "hour": line.hours, "day": line.days, "month": line.months, "weekday": weekdays}
    sizes = {"minute": 60, "hour": 24, "day": 31, "month": 12, "weekday": 7}
    return {name: None if len(found[name]) == sizes[name] else tuple(sorted(found[name])) for name in found}


def cron_line(schedule: JobSchedule) -> str:
    """The five fields as every scheduler reads them: some know no weekday 7, some no names in lists."""
    minute, hour, day, month, _ = schedule.cron.split()
    found = values(schedule)
    fields = {"minute": minute, "hour": hour, "day": day, "month": month, "weekday": "x"}
    plain = re.compile(r"\*(/\d+)?|\d+")
    return " ".join(
        "*" if found[name] is None else text if plain.fullmatch(text) else ",".join(map(str, found[name] or ()))
        for name, text in fields.items()
    )


def require_zone(key: str, name: str) -> None:
    """Refuses a time zone that is not known.

    Args:
        key: that names it.
        name: of the zone.

    Raises:
        ValueError: it is not known.
    """
    try:
        ZoneInfo(name)
    except Exception:  # not found, a path out of the database, a folder of it: each another error
        raise ValueError(
            f"{key} {name!r} is not known; expected a name of the IANA database, such as UTC, Europe/Berlin or "
            "America/New_York"
        ) from None


def _require_fields(line: str) -> None:
    if line.strip().lower() in _NICKNAMES:
        raise ValueError(f'cron {line!r}: write it out: "{_NICKNAMES[line.strip().lower()]}"')
    fields = line.split(" ") if re.search(r"[^\S ]", line) else line.split()
    if len(fields) != 5:
        raise ValueError(f"cron {line!r} has {len(fields)} fields; {_EXAMPLE}")
    for field in fields:
        if not _FIELD.fullmatch(field):
            raise ValueError(
                f"cron {line!r}: {field!r} is no field that every scheduler reads alike: *, */5, 7, 1-5, 1-9/2, MON, or several "
                f"of them with commas between; {_EXAMPLE}"
            )
    if fields[2] != "*" and fields[4] != "*":
        raise ValueError(
            f"cron {line!r} names days of the month and weekdays: some schedulers then run it on days that are either, some on "
            "those that are both; leave one of the two at *"
        )


def _days_alone_are_right(line: str) -> bool:
    minute, hour, day, _, weekday = line.split()
    try:
        CronSim(" ".join((minute, hour, day, "*", weekday)), datetime.now(timezone.utc))
    except CronSimError:
        return False
    return True
