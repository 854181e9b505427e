"""A job with a schedule → a crontab: one line for ``crontab``; in ``/etc/cron.d`` a user's name stands before its command."""

from __future__ import annotations

import shlex
from pathlib import Path

from ray_mm.config.schedule import cron_line
from ray_mm.errors import UsageError
from ray_mm.launch.due import state_path
from ray_mm.launch.manifests.parts import Call, commented, local_command, plain_line
from ray_mm.launch.schedule import schedule_of

_MOST = 900
"""Characters of a line that every cron takes."""


def render_cron(call: Call) -> dict[str, str]:
    """File name → content.

    Raises:
        UsageError: the job has no schedule, or something in it can't stand in a crontab.
    """
    schedule = schedule_of(call.job)
    name = call.job.name
    lock = state_path(call.job.output).with_suffix(".lock")
    # A shell reads it; but before that cron itself takes every % for a line end.
    alone = ["flock", "--nonblock", "--conflict-exit-code", "0", str(lock), *local_command(call)]
    command = (
        f"cd {shlex.quote(str(Path.cwd()))} && mkdir -p {shlex.quote(str(lock.parent))} && exec {shlex.join(alone)}"
    )
    line = plain_line("the command", command).replace("%", "\\%")
    if len(line) > _MOST:
        raise UsageError(
            f"the command has {len(line)} characters, and some crons take no more than {_MOST}; put overrides into the job file, "
            "or take ray-mm render systemd."
        )
    missed = "A time that goes by while the machine is off is not made up for: for that take ray-mm render systemd, or"
    notes = [
        call.header,
        f"Times are those of {schedule.timezone}. cronie (Fedora, RHEL, Arch) reads CRON_TZ; the cron of Debian and Ubuntu",
        f"does not, and there the machine's own zone must be {schedule.timezone} (timedatectl), or it comes at another time.",
        *([missed, "ray-mm schedule."] if schedule.catch_up else []),
        "A run that is still at work is not begun a second time. What a run writes is sent by mail, if the machine can.",
    ]
    content = f"{commented(notes)}SHELL=/bin/sh\nCRON_TZ={schedule.timezone}\n{cron_line(schedule)} {line}\n"
    return {f"{name}.cron": content}
