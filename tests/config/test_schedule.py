"""A schedule comes when its line says, in its zone, through both changes of the clocks; one that can't be is refused."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_mm.config.load import JOB_KINDS, load_job, settled_keys
from ray_mm.config.schedule import JobSchedule, at_changes, cron_line, missed, times, values, without_schedule
from ray_mm.errors import JobFileError
from tests.config.jobs import SMALLEST, jobs

NIGHTLY = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}


def told(cron: str, zone: str, start: str, count: int) -> list[str]:
    schedule = JobSchedule(cron=cron, timezone=zone)
    after = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    return [f"{time:%m-%d %H:%M %Z}" for time in itertools.islice(times(schedule, after), count)]


@pytest.mark.parametrize(
    ("zone", "start", "expected"),
    [
        # A time that is left out comes as soon as the clocks have gone forward.
        ("Europe/Berlin", "2027-03-26 12:00", ["03-27 02:30 CET", "03-28 03:00 CEST", "03-29 02:30 CEST"]),
        ("America/New_York", "2027-03-12 12:00", ["03-13 02:30 EST", "03-14 03:00 EDT", "03-15 02:30 EDT"]),
        # One that comes twice when they go back comes once.
        ("Europe/Berlin", "2027-10-29 12:00", ["10-30 02:30 CEST", "10-31 02:30 CEST", "11-01 02:30 CET"]),
        ("America/New_York", "2027-11-05 12:00", ["11-06 02:30 EDT", "11-07 02:30 EST", "11-08 02:30 EST"]),
        ("UTC", "2027-03-27 12:00", ["03-28 02:30 UTC", "03-29 02:30 UTC", "03-30 02:30 UTC"]),
    ],
)
def test_a_nightly_run_comes_once_a_night_through_both_changes_of_the_clocks(
    zone: str, start: str, expected: list[str]
) -> None:
    assert told("30 2 * * *", zone, start, 3) == expected


def test_a_time_of_the_hour_that_comes_twice_comes_once() -> None:
    assert told("30 1 * * *", "America/New_York", "2027-11-06 12:00", 2) == ["11-07 01:30 EDT", "11-08 01:30 EST"]
    schedule = JobSchedule(cron="50 2 * * *", timezone="Europe/Berlin")
    within_the_second = datetime(2027, 10, 31, 1, 45, tzinfo=timezone.utc)
    assert f"{next(times(schedule, within_the_second)):%m-%d %H:%M}" == "11-01 02:50"


@pytest.mark.parametrize(("day", "hours"), [((2027, 3, 28), 23), ((2027, 10, 31), 25), ((2027, 6, 1), 24)])
def test_an_hourly_run_comes_every_hour_that_there_is(day: tuple[int, int, int], hours: int) -> None:
    schedule = JobSchedule(cron="0 * * * *", timezone="Europe/Berlin")
    midnight = datetime(*day, tzinfo=ZoneInfo("Europe/Berlin"))
    night_after = (midnight + timedelta(days=1)).astimezone(timezone.utc)
    found = missed(
        schedule, midnight.astimezone(timezone.utc) - timedelta(seconds=1), night_after - timedelta(seconds=1)
    )
    assert len(found) == hours
    gaps = {(b.timestamp() - a.timestamp()) for a, b in itertools.pairwise(found)}
    assert gaps == {3600}


fields = st.tuples(
    st.sampled_from(["0", "30", "59", "*/20", "5,35"]),
    st.sampled_from(["*", "0", "2", "1-3", "*/6", "23"]),
    st.sampled_from(["*", "1", "31", "*/10"]),
    st.sampled_from(["*", "3", "OCT,NOV", "2-4"]),
    st.just("*"),
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])


@given(
    line=fields.map(" ".join),
    zone=zones,
    start=st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(timezone.utc)),
)
def test_times_ascend_and_are_those_of_the_line(line: str, zone: str, start: datetime) -> None:
    schedule = JobSchedule(cron=line, timezone=zone)
    found = list(itertools.islice(times(schedule, start), 6))
    moments = [start, *(time.astimezone(timezone.utc) for time in found)]
    assert all(a < b for a, b in itertools.pairwise(moments))
    wanted = values(schedule)
    for time in found:
        is_value = {
            "minute": time.minute,
            "hour": time.hour,
            "day": time.day,
            "month": time.month,
        }
        fits = all(wanted[name] is None or value in (wanted[name] or ()) for name, value in is_value.items())
        # Otherwise it is the first minute behind a gap.
        before = time.astimezone(timezone.utc) - timedelta(minutes=1)
        assert fits or before.astimezone(schedule.zone).utcoffset() != time.utcoffset()
    assert list(itertools.islice(times(JobSchedule(cron=cron_line(schedule), timezone=zone), start), 6)) == found


@pytest.mark.parametrize(
    ("line", "plain"),
    [("0 2 * * 7", "0 2 * * 0"), ("0 2 * * mon-fri", "0 2 * * 1,2,3,4,5"), ("*/15 1-3 1 JAN *", "*/15 1,2,3 1 1 *")],
)
def test_a_line_is_written_so_that_every_scheduler_reads_it(line: str, plain: str) -> None:
    assert cron_line(JobSchedule(cron=line)) == plain


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({"cron": "0 0 31 2 *"}, "'0 0 31 2 *' never comes: no such month has that day"),
        ({"cron": "0 0 30,31 2 *"}, "never comes"),
        ({"cron": "0 0 31 4,6,9,11 *"}, "never comes"),
        ({"cron": "0 0 32 2 *"}, "bad day-of-month; expected five fields"),
        ({"cron": "60 2 * * *"}, "bad minute"),
        ({"cron": "0 24 * * *"}, "bad hour"),
        ({"cron": "0 2 * * FUN"}, "bad day-of-week"),
        ({"cron": "0 2 * *"}, "has 4 fields; expected five fields"),
        ({"cron": "0 0 2 * * *"}, "has 6 fields"),
        ({"cron": ""}, "has 0 fields"),
        ({"cron": "@daily"}, 'write it out: "0 0 * * *"'),
        ({"cron": "0 2 L * *"}, "'L' is no field that every scheduler reads alike"),
        ({"cron": "0 2 * * 1#2"}, "'1#2' is no field"),
        ({"cron": "5/15 2 * * *"}, "'5/15' is no field"),
        ({"cron": "0 2 1 * 1"}, "names days of the month and weekdays"),
        ({"cron": "0 2 * * *\n* * * * * root rm"}, "fields"),
        ({"cron": "0\n2 * * *"}, "fields"),
        ({"cron": "0 2 * * $(id)"}, "is no field"),
        ({"cron": "0 2 * * *", "timezone": "Mars/Base"}, "timezone 'Mars/Base' is not known"),
        ({"cron": "0 2 * * *", "timezone": ""}, "timezone '' is not known"),
        ({"cron": "0 2 * * *", "timezone": "../../../etc/passwd"}, "is not known"),
        ({"cron": "0 2 * * *", "timezone": "/etc/localtime"}, "is not known"),
        ({"cron": "0 2 * * *", "timezone": "Europe"}, "is not known"),
        ({"cron": "0 2 * * *", "tz": "UTC"}, "tz"),
        ({"timezone": "UTC"}, "cron"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused_with_the_reason(schedule: dict[str, Any], reason: str) -> None:
    with pytest.raises(JobFileError) as caught:
        load_job({**SMALLEST["train"], "schedule": schedule})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("line", "zone", "late", "twice"),
    [
        ("30 2 * * *", "Europe/Berlin", "2027-03-28 03:00", "2027-10-31 02:30"),
        ("0 2 * * *", "America/New_York", "2027-03-14 03:00", None),
        ("30 1 * * *", "America/New_York", None, "2027-11-07 01:30"),
        ("0 3 * * *", "Europe/Berlin", None, None),
        ("30 2 * * *", "UTC", None, None),
        ("30 2 * * MON", "Europe/Berlin", None, None),
        ("*/5 * * * *", "Europe/Berlin", None, None),
    ],
)
def test_nights_in_which_schedulers_differ_are_known_beforehand(
    line: str, zone: str, late: str | None, twice: str | None
) -> None:
    found = at_changes(JobSchedule(cron=line, timezone=zone), datetime(2026, 11, 30, tzinfo=timezone.utc))
    assert [time and f"{time:%Y-%m-%d %H:%M}" for time in found] == [late, twice]


def test_a_leap_day_comes() -> None:
    assert told("0 0 29 2 *", "UTC", "2026-01-01 00:00", 2) == ["02-29 00:00 UTC", "02-29 00:00 UTC"]


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_every_kind_of_job_can_have_a_schedule_and_goes_on_under_another(kind: str) -> None:
    job = load_job({**SMALLEST[kind], "schedule": NIGHTLY})
    assert job.schedule == JobSchedule(**NIGHTLY)
    assert load_job(SMALLEST[kind]).schedule is None
    assert "schedule" not in settled_keys(job)


@given(jobs)
def test_a_schedule_changes_nothing_else_of_a_job(content: dict[str, Any]) -> None:
    without = load_job({key: value for key, value in content.items() if key != "schedule"})
    with_one = load_job({**content, "schedule": NIGHTLY})
    assert with_one.model_copy(update={"schedule": None}) == without


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_is_the_same_whenever_it_is_run(kind: str) -> None:
    contents = [load_job({**SMALLEST[kind], "schedule": when}).model_dump() for when in (None, NIGHTLY)]
    assert contents[0] != contents[1] and without_schedule(contents[0]) == without_schedule(contents[1])
    assert without_schedule({**contents[0], "name": "other"}) != without_schedule(contents[0])


def test_a_search_does_not_run_over_schedules() -> None:
    with pytest.raises(JobFileError, match="one after the other"):
        load_job({**SMALLEST["tune"], "search": {"schedule.cron": {"choice": ["0 2 * * *", "0 3 * * *"]}}})


def test_a_schedule_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JobSchedule(**NIGHTLY).cron = "0 3 * * *"  # type: ignore[misc]
