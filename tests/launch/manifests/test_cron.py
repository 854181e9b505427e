"""A crontab, read as cron reads it and run by a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mm.config.load import load_job
from ray_mm.launch.manifests.parts import Call
from ray_mm.launch.manifests.render import render
from tests.config.jobs import SMALLEST
from tests.launch.manifests.calls import SCHEDULE


def test_a_crontab_runs_the_command_as_it_is_and_not_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's $(touch canary) 100% here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    job = load_job({**SMALLEST["train"], "schedule": SCHEDULE, "output": "runs/a b"})
    (content,) = render("cron", Call(job, folder / "job.yaml", overrides=("name=a%b",))).values()
    lines = [line for line in content.splitlines() if not line.startswith("#")]
    assert lines[:2] == ["SHELL=/bin/sh", "CRON_TZ=Europe/Berlin"] and len(lines) == 3
    *fields, command = lines[2].split(" ", 5)
    assert " ".join(fields) == "30 2 * * 1,2,3,4,5"
    # cron takes a bare % for a line end, and a \ before it away.
    assert "%" not in command.replace("\\%", "")
    shell = command.replace("\\%", "%").replace(shlex.quote(sys.executable), "printf '%s\\n'")
    done = subprocess.run(["sh", "-c", shell], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "ray_mm", "run", str(folder / "job.yaml"), "--set", "name=a%b"]
    holds = ["flock", "--no-fork", str(folder / "runs" / "a b.schedule.lock"), "sh", "-c", "echo held; exec sleep 600"]
    with subprocess.Popen(holds, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = subprocess.run(["sh", "-c", shell], cwd="/", capture_output=True, text=True, check=True)
        holder.terminate()
    assert (done.returncode, done.stdout) == (0, "")
    assert not list(tmp_path.rglob("canary"))
