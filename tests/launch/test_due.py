"""What is due: nothing is run twice, what was missed is made up for once, what was interrupted goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.schedule import JobSchedule, missed
from ray_mm.errors import UsageError
from ray_mm.launch.due import (
    begun,
    ended,
    first_state,
    kept_by_one,
    next_due,
    read_state,
    state_path,
    when_it_comes,
    write_state,
)

NIGHTLY = JobSchedule(cron="0 2 * * *", timezone="Europe/Berlin")
MONDAY = datetime(2026, 11, 30, 12, 0, tzinfo=timezone.utc)
NIGHT = timedelta(days=1)


def test_a_schedule_that_nobody_has_kept_yet_has_missed_nothing() -> None:
    due = next_due(first_state(NIGHTLY, MONDAY), MONDAY)
    assert (f"{due.planned:%m-%d %H:%M}", due.at, due.merged, due.goes_on) == ("12-01 02:00", due.planned, 0, False)


@pytest.mark.parametrize(("nights", "merged"), [(1, 0), (3, 2), (400, 399)])
def test_nights_that_were_missed_are_made_up_for_by_one_run(nights: int, merged: int) -> None:
    later = MONDAY + nights * NIGHT
    due = next_due(first_state(NIGHTLY, MONDAY), later)
    assert (due.at, due.merged, due.goes_on) == (later, merged, False)
    assert later - NIGHT < due.planned < later
    done = ended(begun(first_state(NIGHTLY, MONDAY), due, later), 0, later, interrupted=False)
    assert next_due(done, later).planned - due.planned == NIGHT
    assert done.running is None and [run.merged for run in done.runs] == [merged]


def test_nights_that_were_missed_are_let_go_where_the_job_says_so() -> None:
    schedule = NIGHTLY.model_copy(update={"catch_up": False})
    due = next_due(first_state(schedule, MONDAY), MONDAY + 3 * NIGHT)
    assert due.at == due.planned == datetime(2026, 12, 4, 1, 0, tzinfo=timezone.utc)


def test_a_machine_that_slept_over_a_time_and_others_runs_once_for_all_of_them() -> None:
    state = first_state(NIGHTLY, MONDAY)
    due = next_due(state, MONDAY)
    second = timedelta(seconds=1)
    assert when_it_comes(state, due, due.at) == replace(due, at=due.at)
    woken = when_it_comes(state, due, due.at + 2 * NIGHT + second)
    assert woken is not None and (woken.planned, woken.merged) == (due.planned + 2 * NIGHT, 2)
    assert when_it_comes(state, due, due.at - second) == due, "a clock that was put back a little"
    strict = first_state(NIGHTLY.model_copy(update={"catch_up": False}), MONDAY)
    assert when_it_comes(strict, due, due.at + 30 * second) == due
    assert when_it_comes(strict, due, due.at + NIGHT / 2) is None


def test_a_run_that_was_interrupted_goes_on_also_where_nothing_is_made_up_for() -> None:
    schedule = NIGHTLY.model_copy(update={"catch_up": False})
    first = next_due(first_state(schedule, MONDAY), MONDAY)
    left = begun(first_state(schedule, MONDAY), first, first.planned)
    late = first.planned + 2 * NIGHT + timedelta(hours=1)
    due = next_due(left, late)
    assert (due.planned, due.at, due.merged, due.goes_on) == (first.planned, late, 0, True)
    assert when_it_comes(left, due, late + NIGHT) == due
    done = ended(begun(left, due, late), 0, late, interrupted=False)
    assert next_due(done, late).planned == first.planned + 3 * NIGHT


def test_a_run_that_is_longer_than_a_night_is_followed_by_one_for_all_that_it_covered() -> None:
    state = first_state(NIGHTLY, MONDAY)
    first = next_due(state, MONDAY)
    ends = first.planned + timedelta(hours=60)
    after = ended(begun(state, first, first.planned), 1, ends, interrupted=False)
    due = next_due(after, ends)
    assert (due.at, due.merged, due.planned) == (ends, 1, first.planned + 2 * NIGHT)


def test_a_run_that_was_interrupted_goes_on_and_takes_along_what_was_missed_since() -> None:
    state = first_state(NIGHTLY, MONDAY)
    first = next_due(state, MONDAY)
    working = begun(state, first, first.planned)
    stopped = ended(working, 143, first.planned + timedelta(hours=1), interrupted=True)
    for left in (working, stopped):  # killed, or asked to end
        soon = first.planned + timedelta(hours=2)
        due = next_due(left, soon)
        assert (due.planned, due.at, due.merged, due.goes_on) == (first.planned, soon, 0, True)
        late = first.planned + 2 * NIGHT + timedelta(hours=1)
        due = next_due(left, late)
        assert (due.planned, due.merged, due.goes_on) == (first.planned + 2 * NIGHT, 2, True)
    for result in (0, 3):  # a gate that refused while it was asked to end has refused
        done = ended(working, result, first.planned + timedelta(hours=1), interrupted=True)
        assert done.running is None and done.runs[-1].exit_status == result


@given(
    line=st.sampled_from(["0 2 * * *", "30 2 * * *", "0 */5 * * *", "15 1 * * MON"]),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]),
    start=st.datetimes(datetime(2026, 10, 1), datetime(2027, 12, 1), timezones=st.just(timezone.utc)),
    steps=st.lists(
        st.tuples(st.integers(0, 72), st.integers(0, 40), st.sampled_from(["done", "failed", "stopped", "killed"])),
        max_size=12,
    ),
)
def test_whatever_happens_every_time_is_covered_once_and_in_order(
    line: str, zone: str, start: datetime, steps: list[tuple[int, int, str]]
) -> None:
    schedule = JobSchedule(cron=line, timezone=zone)
    state, now, covered = first_state(schedule, start), start, 0
    for away_h, takes_h, how in steps:
        now += timedelta(hours=away_h)  # nobody keeps the schedule meanwhile
        due = next_due(state, now)
        now = max(now, due.at)
        assert due.planned <= now and due.at <= now
        state = begun(state, due, now)
        now += timedelta(hours=takes_h)
        if how != "killed":
            state = ended(state, {"done": 0, "failed": 1, "stopped": 143}[how], now, interrupted=how == "stopped")
        if state.running is None:
            covered += state.runs[-1].merged + 1
        planned = [run.planned for run in state.runs]
        assert planned == sorted(set(planned))
    covered += 0 if state.running is None else state.running.merged + 1
    assert covered == len(missed(schedule, start, state.settled))


def test_the_file_says_the_same_to_whoever_reads_it_next(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "night.schedule.json"
    assert read_state(path, NIGHTLY, MONDAY) == first_state(NIGHTLY, MONDAY)
    state = begun(first_state(NIGHTLY, MONDAY), next_due(first_state(NIGHTLY, MONDAY), MONDAY), MONDAY)
    write_state(path, state)
    assert read_state(path, NIGHTLY, MONDAY + 2 * NIGHT) == state
    # Another schedule has not missed what the old one did not have.
    other = NIGHTLY.model_copy(update={"cron": "0 12 * * *"})
    assert read_state(path, other, MONDAY + 2 * NIGHT).settled == MONDAY + 2 * NIGHT
    # A clock that is set back by an hour repeats no run.
    hour = timedelta(hours=1)
    assert next_due(read_state(path, NIGHTLY, state.settled - hour), state.settled - hour).planned >= state.settled
    # A clock that was a year ahead does not hold the schedule up for a year.
    for schedule in (NIGHTLY, other):
        assert read_state(path, schedule, MONDAY - 365 * NIGHT).settled == MONDAY - 365 * NIGHT


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1}', "is damaged"),
        ('{"format": 2, "more": true}', "is of format 2, and this version knows 1"),
        ("\ud800", "is damaged"),
        (
            json.dumps({"format": 1, "schedule": {"cron": "0 2 * * *"}, "settled": "2026-11-30T12:00:00"}),
            "a time without a time zone",
        ),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_and_left_as_it_is(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "night.schedule.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        read_state(path, NIGHTLY, MONDAY)
    assert reason in str(caught.value) or (content == "\ud800" and "can't be read" in str(caught.value))
    assert path.read_bytes() == before


def test_the_file_lies_beside_the_output_and_not_in_a_store(tmp_path: Path) -> None:
    assert state_path(str(tmp_path / "runs" / "night")) == tmp_path / "runs" / "night.schedule.json"
    with pytest.raises(UsageError, match="--state FILE"):
        state_path("s3://bucket/night")


def test_a_file_that_can_not_be_written_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"can't be written .*--state"), kept_by_one(tmp_path / "file" / "x.json"):
        pass


def test_two_processes_do_not_keep_one_schedule(tmp_path: Path) -> None:
    path = tmp_path / "night.schedule.json"
    with kept_by_one(path), pytest.raises(UsageError, match="another process keeps this schedule"), kept_by_one(path):
        pass
    with kept_by_one(path):
        pass
