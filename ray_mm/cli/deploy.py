"""Verbs that make a job run by itself: keep its schedule, write what another scheduler takes; and tell how runs stand."""

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
    from ray_mm.config.cluster import find_cluster
    from ray_mm.launch.due import state_path, utc_now
    from ray_mm.launch.manifests.parts import Call, local_command
    from ray_mm.launch.schedule import keep_schedule

    call = Call(job=loaded, file=Path(job).absolute(), overrides=tuple(overrides or ()), cluster=cluster)
    if cluster is not None:
        find_cluster(cluster)  # each run will read it anew; one that is wrong is told before the first
    zone = times.zone
    keep_schedule(
        times,
        local_command(call),
        (state or state_path(loaded.output)).absolute(),
        lambda text: print(f"{utc_now().astimezone(zone):%Y-%m-%d %H:%M:%S %Z} {loaded.name}: {text}", flush=True),
    )


@verb
def render(
    target: Annotated[str, typer.Argument(metavar="kuberay|slurm|systemd|cron", help="What is to run the job.")],
    job: JobFile,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="Its profile says what the nodes share and run.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Of kuberay: rayjob, raycluster, raycronjob or cronjob. Unset: cronjob for a job with a schedule, else rayjob.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Unset: shown here.")] = None,
    node_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a node. Unset: for one worker.")] = None,
    node_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a node. Unset: for one worker.")] = None,
    node_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Such as 64GiB. Unset: 4GiB per CPU.")] = None,
) -> None:
    """Write what KubeRay, Slurm, systemd or cron run a job by."""
    from ray_mm.config.cluster import find_cluster
    from ray_mm.config.load import load_job, parse_overrides
    from ray_mm.launch.manifests.parts import Call, memory_of
    from ray_mm.launch.manifests.render import render as render_job
    from ray_mm.launch.manifests.render import write_files

    loaded = load_job(job, parse_overrides(overrides or []))
    call = Call(
        job=loaded,
        file=Path(job).absolute(),
        overrides=tuple(overrides or ()),
        profile=None if cluster is None else find_cluster(cluster),
        cluster=cluster,
        node_cpus=node_cpus,
        node_gpus=node_gpus,
        node_memory_bytes=None if node_memory is None else memory_of(node_memory),
    )
    files = render_job(target, call, form)
    if output is None:
        for name, content in files.items():
            print(content if len(files) == 1 else f"# {name}\n{content}")
        return
    for path in write_files(files, output):
        print(path)


@verb
def metrics(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder that the folders of runs lie in.")],
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Answer Prometheus there until this is ended. Unset: show them once."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
) -> None:
    """Tell Prometheus how runs and schedules stand."""
    from ray_mm.launch.metrics import exposition, serve_metrics

    if port is None:
        sys.stdout.write(exposition(runs.absolute()))
        return
    server, thread = serve_metrics(runs.absolute(), host, port)
    print(f"http://{host}:{server.server_port}/metrics: figures of the runs in {runs}", flush=True)
    thread.join()
