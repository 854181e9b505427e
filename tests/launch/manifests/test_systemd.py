"""Units, held against systemd and what it makes of their words and times."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ray_mm.config.load import load_job
from ray_mm.config.schedule import JobSchedule, times
from ray_mm.launch.manifests.parts import Call
from ray_mm.launch.manifests.render import render, write_files
from ray_mm.launch.manifests.systemd import on_calendar
from tests.config.jobs import SMALLEST
from tests.launch.manifests.calls import HOSTILE, SCHEDULE
from tests.launch.shell import require_valid_units, unit_settings


def test_units_are_read_by_systemd_and_start_exactly_the_command(tmp_path: Path) -> None:
    call = Call(load_job({**SMALLEST["train"], "schedule": SCHEDULE}), Path(HOSTILE), overrides=("output='$x %i'",))
    files = render("systemd", call)
    assert set(files) == {"ray-mm-fit.service", "ray-mm-fit.timer"}
    units = {name: unit_settings(content) for name, content in files.items()}
    (start,) = units["ray-mm-fit.service"]["Service"]["ExecStart"]
    assert unquoted(start) == [sys.executable, "-m", "ray_mm", "run", HOSTILE, "--set", "output='$x %i'"]
    assert units["ray-mm-fit.timer"]["Timer"]["OnCalendar"] == ["Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00 Europe/Berlin"]
    assert units["ray-mm-fit.timer"]["Install"] == {"WantedBy": ["timers.target"]}
    require_valid_units(write_files(files, tmp_path))


def unquoted(line: str) -> list[str]:
    """The words of an ExecStart as systemd takes them, which here are all quoted."""
    words, rest = [], line
    while rest:
        assert rest[0] == '"'
        word, i = "", 1
        while rest[i] != '"':
            if rest[i] == "\\":
                i += 1
            elif rest[i] in "%$":
                assert rest[i + 1] == rest[i], line
                i += 1
            word += rest[i]
            i += 1
        words.append(word)
        rest = rest[i + 1 :].lstrip(" ")
    return words


@pytest.mark.parametrize(
    ("line", "zone", "start"),
    [
        ("0 4 * * *", "Europe/Berlin", "2027-03-26 12:00"),
        ("0 4 * * *", "America/New_York", "2027-11-05 12:00"),
        ("*/20 5-7 1,15 * *", "UTC", "2026-12-10 00:00"),
        ("15 0 * feb,mar sun", "Europe/Berlin", "2026-12-10 00:00"),
    ],
)
def test_a_timer_comes_when_the_schedule_does(line: str, zone: str, start: str) -> None:
    schedule = JobSchedule(cron=line, timezone=zone)
    wanted = [
        f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"
        for time in itertools.islice(times(schedule, datetime.fromisoformat(f"{start}+00:00")), 6)
    ]
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not on this machine, and nothing else knows what systemd makes of a time")
    command = [tool, "calendar", "--iterations=6", f"--base-time={start}:00 UTC", on_calendar(schedule)]
    environment = {**os.environ, "TZ": "UTC"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = [text.split()[-3:-1] for text in done.stdout.splitlines() if "Iter." in text or "Next elapse" in text]
    assert [" ".join(parts) for parts in found] == wanted
