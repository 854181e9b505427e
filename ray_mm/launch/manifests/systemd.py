"""A job → a systemd service that runs it once, and with a schedule the timer that starts it."""

from __future__ import annotations

import math
from pathlib import Path

from ray_mm.config.schedule import JobSchedule, values
from ray_mm.launch.manifests.parts import Call, commented, local_command, one_line, plain_line

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def render_systemd(call: Call) -> dict[str, str]:
    """File name → content.

    Raises:
        UsageError: something in the job can't stand in a unit.
    """
    name, schedule = f"ray-mm-{call.job.name}", call.job.schedule
    folder = str(Path.cwd())
    grace = math.ceil(call.of_cluster.stop_grace)
    notes = [
        call.header,
        "",
        "For you alone:        put them into ~/.config/systemd/user, then systemctl --user daemon-reload,",
        f"                      systemctl --user enable --now {name}.timer, and loginctl enable-linger so that it runs while you "
        "are away"
        if schedule
        else f"                      systemctl --user start {name}.service",
        "For the machine:      into /etc/systemd/system, with User= below [Service].",
        f"What a run writes:    journalctl --user --unit {name}.service",
    ]
    service = f"""{commented(notes)}
[Unit]
Description=ray_mm: the {call.job.kind} job {call.job.name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
WorkingDirectory={_path(folder)}
ExecStart={" ".join(_word(word) for word in local_command(call))}
# 143: it was asked to end, and has saved its state. 3: a gate refused, which is a result.
SuccessExitStatus=143 3
# The run alone is asked to end; what it has started ends with it, or is killed after this time.
KillMode=mixed
TimeoutStopSec={grace}
Environment=PYTHONUNBUFFERED=1
NoNewPrivileges=true
UMask=0077
"""
    files = {f"{name}.service": service}
    if schedule is not None:
        persistent = "true" if schedule.catch_up else "false"
        files[f"{name}.timer"] = f"""{commented([call.header])}
[Unit]
Description=ray_mm: times of the {call.job.kind} job {call.job.name}

[Timer]
# {one_line(schedule.cron)} in {schedule.timezone}
OnCalendar={on_calendar(schedule)}
# Whether times that went by while the machine was off are made up for, by one run.
Persistent={persistent}
AccuracySec=1s
# It is not started while it is at work.
Unit={name}.service

[Install]
WantedBy=timers.target
"""
    return files


def on_calendar(schedule: JobSchedule) -> str:
    """The times of a schedule as systemd says them; its weekday and its date both have to fit, as those of our schedules do."""
    found = values(schedule)

    def part(name: str, width: int = 1) -> str:
        numbers = found[name]
        return "*" if numbers is None else ",".join(f"{number:0{width}}" for number in numbers)

    weekdays = found["weekday"]
    days = "" if weekdays is None else f"{','.join(_WEEKDAYS[day] for day in weekdays)} "
    return f"{days}*-{part('month', 2)}-{part('day', 2)} {part('hour', 2)}:{part('minute', 2)}:00 {schedule.timezone}"


def _word(word: str) -> str:
    """A word of a command line: systemd takes \\ and quotes away, and puts values in the place of % and $."""
    plain_line("the command", word)
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _path(path: str) -> str:
    """A path that is a setting's whole value: there are no quotes, and % is still taken."""
    plain_line("the folder", path)
    return path.replace("%", "%%")
