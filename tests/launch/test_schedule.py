"""``ray-mm schedule`` as a process: its runs are processes too, and nothing is lost when it is told to end, or killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.schedule import JobSchedule
from ray_mm.errors import UsageError
from ray_mm.launch.due import first_state, kept_by_one, write_state
from ray_mm.launch.schedule import next_runs
from tests.config.jobs import SMALLEST

ROOT = Path(__file__).parents[2]
RARELY = {"cron": "0 2 1 1 *", "timezone": "Europe/Berlin"}
KEEP = """
import sys
from pathlib import Path
from ray_mm.config.schedule import JobSchedule
from ray_mm.launch.schedule import keep_schedule
schedule = JobSchedule(cron="0 2 1 1 *", timezone="Europe/Berlin")
keep_schedule(schedule, sys.argv[2:], Path(sys.argv[1]), lambda text: print(text, flush=True))
"""
SAVES = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("at work", flush=True)
time.sleep(600)
"""
DEAF = SAVES.replace("sys.exit(143)", "print('no', flush=True)")

Process = subprocess.Popen[str]
_started: list[Process] = []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def start(command: list[str], folder: Path) -> Process:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _started.append(process)
    return process


def read_until(process: Process, text: str) -> str:
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, f"it ended ({process.wait()}):\n{seen}"
        seen += line
    return seen


def missed_since_last_year(path: Path) -> None:
    """The file of a schedule that was not kept for a year."""
    write_state(path, first_state(JobSchedule(**RARELY), datetime.now(timezone.utc) - timedelta(days=370)))


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def keep(folder: Path, program: str) -> tuple[Process, Path]:
    path = folder / "night.schedule.json"
    return start(["-c", KEEP, str(path), sys.executable, "-c", program], folder), path


def test_what_was_missed_is_run_once_and_then_the_next_time_is_waited_for(tmp_path: Path) -> None:
    missed_since_last_year(tmp_path / "night.schedule.json")
    process, path = keep(tmp_path, "print('the run'); raise SystemExit(3)")
    seen = read_until(process, "next run at")
    assert "was missed" in seen and seen.count("the run\n") == 1 and "ended with status 3" in seen
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    state = content(path)
    assert state["running"] is None and [run["exit_status"] for run in state["runs"]] == [3]


def test_a_run_is_asked_to_end_with_it_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    missed_since_last_year(tmp_path / "night.schedule.json")
    process, path = keep(tmp_path, SAVES)
    read_until(process, "at work")
    process.send_signal(signal.SIGTERM)
    seen = read_until(process, "ended with status 143")
    assert "waiting for the run to save its state" in seen and process.wait(60) == 0
    assert content(path)["running"]["exit_status"] == 143 and content(path)["runs"] == []
    again, path = keep(tmp_path, "pass")
    assert "going on with the run of" in read_until(again, "next run at")
    again.send_signal(signal.SIGINT)
    assert again.wait(60) == 0
    assert content(path)["running"] is None and len(content(path)["runs"]) == 1


def test_a_run_that_does_not_end_is_killed_by_the_second_signal(tmp_path: Path) -> None:
    missed_since_last_year(tmp_path / "night.schedule.json")
    process, path = keep(tmp_path, DEAF)
    read_until(process, "at work")
    process.send_signal(signal.SIGTERM)
    read_until(process, "no\n")
    process.send_signal(signal.SIGTERM)
    read_until(process, "ended with status 137")
    assert process.wait(60) == 0 and content(path)["running"] is not None


def test_a_terminal_that_is_closed_ends_the_run_by_asking_it(tmp_path: Path) -> None:
    missed_since_last_year(tmp_path / "night.schedule.json")
    saved = SAVES.replace("sys.exit(143)", "(time.sleep(1), open('saved', 'w').close(), sys.exit(143))")
    process, path = keep(tmp_path, saved)
    read_until(process, "at work")
    assert process.stdout is not None
    process.stdout.close()  # nobody reads what it says any more
    for _ in range(2):  # from the kernel, and from the shell
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
    process.wait(60)
    assert (tmp_path / "saved").exists() and content(path)["running"]["exit_status"] == 143


def test_under_nohup_it_stays_when_the_terminal_is_closed(tmp_path: Path) -> None:
    nohup = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    path = str(tmp_path / "night.schedule.json")
    process = start(["-c", nohup, sys.executable, "-c", KEEP, path, sys.executable, "-c", "pass"], tmp_path)
    read_until(process, "next run at")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert "SIGHUP" not in read_until(process, "SIGTERM: ending") and process.wait(60) == 0


def test_killed_itself_it_leaves_the_run_alone_and_nobody_begins_a_second_one(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    missed_since_last_year(tmp_path / "night.schedule.json")
    process, _ = keep(tmp_path, f"import os; open('pid', 'w').write(str(os.getpid()))\n{SAVES}")
    read_until(process, "at work")
    process.kill()
    process.wait(60)
    run = int((tmp_path / "pid").read_text())
    try:
        other, _ = keep(tmp_path, "pass")
        text, _ = other.communicate(timeout=60)
        assert other.returncode == 1 and "a run that it began is still at work" in text
    finally:
        os.kill(run, signal.SIGTERM)

    def is_over() -> bool:
        with contextlib.suppress(UsageError), kept_by_one(tmp_path / "night.schedule.json"):
            return True
        return False

    wait_for(is_over)
    third, _ = keep(tmp_path, "pass")
    assert "going on with the run" in read_until(third, "next run at")
    third.terminate()
    assert third.wait(60) == 0


def test_the_command_runs_the_job_with_its_overrides_and_remembers_how_it_ended(tmp_path: Path) -> None:
    job = {**SMALLEST["preprocess"], "schedule": RARELY, "output": "runs/night"}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    missed_since_last_year(tmp_path / "runs" / "night.schedule.json")
    process = start(["-m", "ray_mm", "schedule", "job.yaml", "--set", "table=no such.csv"], tmp_path)
    seen = read_until(process, "next run at")
    assert "no such.csv: no such file" in seen and "ended with status 2" in seen
    process.terminate()
    assert process.wait(60) == 0
    assert not (tmp_path / "runs" / "night").exists()


@pytest.mark.parametrize(
    ("schedule", "arguments", "reason"),
    [
        (None, (), "has none; add one, such as schedule: {cron:"),
        (RARELY, ("--state", "job.yaml"), "job.yaml: is damaged, or no schedule's file"),
        ({"cron": "0 0 31 2 *"}, ("--next", "3"), "never comes"),
        (RARELY, ("--cluster", "nobodys"), "--cluster nobodys: no such cluster"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_runs(
    tmp_path: Path, schedule: dict[str, str] | None, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps({**SMALLEST["preprocess"], "schedule": schedule}))
    process = start(["-m", "ray_mm", "schedule", "job.yaml", *arguments], tmp_path)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and reason in text and "Traceback" not in text
    assert json.loads((tmp_path / "job.yaml").read_text())["schedule"] == schedule


def test_the_next_times_are_shown_on_both_clocks_with_their_changes(tmp_path: Path) -> None:
    schedule = JobSchedule(cron="30 2 * * *", timezone="Europe/Berlin")
    rows = next_runs(schedule, 3, datetime(2027, 3, 26, 12, tzinfo=timezone.utc))
    assert rows == [
        ("Sat 2027-03-27 02:30 CET", "2027-03-27 01:30", ""),
        ("Sun 2027-03-28 03:00 CEST", "2027-03-28 01:00", "clocks go forward by 1:00:00 before"),
        ("Mon 2027-03-29 02:30 CEST", "2027-03-29 00:30", ""),
    ]
    rows = next_runs(
        JobSchedule(cron="0 4 * * *", timezone="America/New_York"), 2, datetime(2027, 11, 6, 12, tzinfo=timezone.utc)
    )
    assert [row[2] for row in rows] == ["clocks go back by 1:00:00 before", ""]
    (tmp_path / "job.yaml").write_text(json.dumps({**SMALLEST["tune"], "schedule": RARELY}))
    process = start(["-m", "ray_mm", "schedule", "job.yaml", "--next", "2"], tmp_path)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and text.count("-01-01 02:00 CET") == 2 and text.count("-01-01 01:00") == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "job.yaml"]
