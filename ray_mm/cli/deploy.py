"""Verbs that make a job run by itself: keep its schedule, or write what another scheduler takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_mm.cli.common import JobFile, Overrides, show, verb


@verb
def schedule(
    job: JobFile,
    overrides: Overrides = None,
    next_: Annotated[
        int | None, typer.Option("--next", min=1, max=1000, metavar="N", help="Show the next N times, and run nothing.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="Submit each run to this cluster. Unset: run it here.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What became of it so far. Unset: beside the job's output.")
    ] = None,
) -> None:
    """Run a job at the times of its schedule, until this command is asked to end."""
    from ray_mm.config.load import load_job, parse_overrides
    from ray_mm.launch.schedule import next_runs, schedule_of

    loaded = load_job(job, parse_overrides(overrides or []))
    times = schedule_of(loaded)
    if next_ is not None:
        from ray_mm.summary import titled_table

        header = (f"in {times.timezone}", "in UTC", "")
        show([titled_table(f"{loaded.name}: {times.cron}", header, next_runs(times, next_))])
        return
    from ray_mm.launch.due import state_path, utc_now
    from ray_mm.launch.schedule import keep_schedule

    settings = [argument for override in overrides or [] for argument in ("--set", override)]
    how = ["run", job] if cluster is None else ["submit", job, "--follow", "--cluster", cluster]
    zone = times.zone
    keep_schedule(
        times,
        [sys.executable, "-m", "ray_mm", *how, *settings],
        (state or state_path(loaded.output)).absolute(),
        lambda text: print(f"{utc_now().astimezone(zone):%Y-%m-%d %H:%M:%S %Z} {loaded.name}: {text}", flush=True),
    )
