"""Verbs on a cluster: submit a job, see how it stands, read its log, stop it, fetch what it wrote; make a cluster's token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_mm.cli.common import Cluster, JobFile, Overrides, Unauthenticated, fail, show, verb
from ray_mm.errors import GateRefused, StopRequested, UsageError

if TYPE_CHECKING:
    from ray_mm.launch.jobs import Jobs

_Id = Annotated[str, typer.Argument(metavar="ID")]


@verb
def submit(
    job: JobFile,
    cluster: Cluster = None,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its log, and end with its exit status.")] = False,
    retries: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Start it again so often if it fails. Unset: as the profile says."),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Have it save and end after this: 90m, 12h. Unset: as the profile says."),
    ] = None,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Run a job on a Ray cluster. A job that is still running there is not started again."""
    from ray_mm.config.cluster import find_cluster, with_limits
    from ray_mm.config.load import load_job, parse_overrides

    loaded = load_job(job, parse_overrides(overrides or []))
    profile = with_limits(find_cluster(cluster), retries, time_limit)
    from ray_mm.launch.jobs import connect
    from ray_mm.launch.submit import submit as submit_job

    jobs = connect(profile)
    submission = submit_job(jobs, loaded, allow_unauthenticated)
    print(f"{submission.id}: {'submitted to' if submission.is_new else 'already runs on'} {jobs.address}", flush=True)
    if follow:
        _follow(jobs, submission.id, cluster)
    else:
        print(f"its log: ray-mm logs {submission.id} --follow{_named(cluster)}")


@verb
def status(
    submission: Annotated[str | None, typer.Argument(metavar="[ID]", help="Unset: all that the cluster knows.")] = None,
    cluster: Cluster = None,
) -> None:
    """Show how a submitted job stands, or all."""
    from ray_mm.summary import status_table

    jobs = _jobs(cluster)
    show([status_table(jobs.list() if submission is None else [jobs.status(submission)])])


@verb
def list_(cluster: Cluster = None) -> None:
    """Show all jobs that a cluster knows, the newest first."""
    from ray_mm.summary import status_table

    show([status_table(_jobs(cluster).list())])


@verb
def logs(
    submission: _Id,
    cluster: Cluster = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until it ends; then end with its exit status.")
    ] = False,
) -> None:
    """Show the log of a submitted job."""
    jobs = _jobs(cluster)
    if follow:
        _follow(jobs, submission, cluster)
    else:
        sys.stdout.write(jobs.logs(submission))


@verb
def stop(submission: _Id, cluster: Cluster = None) -> None:
    """Stop a submitted job, which saves its state first. Submitting it again goes on from there."""
    stopped = _jobs(cluster).stop(submission)
    print(f"{submission}: {stopped.state.lower()}")


@verb
def fetch(
    submission: _Id,
    cluster: Cluster = None,
    into: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Unset: runs/ID.")] = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Also its best checkpoint, or of a compress run its artifact.")
    ] = False,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Bring a submitted job's result, metrics and report here."""
    from ray_mm.launch.fetch import fetch as fetch_run

    jobs = _jobs(cluster)
    jobs.details(submission)  # an id is part of the path
    target = into or Path("runs") / submission
    names = fetch_run(jobs, submission, target, checkpoint, allow_unauthenticated)
    print(f"{target}: {len(names)} files" + "".join(f"\n  {name}" for name in names))


@verb
def cluster(
    what: Annotated[str, typer.Argument(metavar="token", help="Make its access token.")],
    name: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="Where its profile says. Unset: where Ray reads it.")
    ] = None,
    path: Annotated[Path | None, typer.Option(metavar="FILE", help="In this file instead.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="In the place of the one that is there.")] = False,
) -> None:
    """Make the access token of a new cluster, which only you can read."""
    from ray_mm.auth import DEFAULT_TOKEN, make_token, read_token, token_path
    from ray_mm.config.cluster import find_cluster

    if what != "token":
        raise UsageError(f"cluster: takes token, found {what!r}.")
    if path is not None and name is not None:
        raise UsageError("cluster token: --path and --cluster both say where it belongs; leave one of them out.")
    file = path or token_path() or DEFAULT_TOKEN
    if name is not None:
        of_profile = find_cluster(name).token
        if of_profile is None:
            raise UsageError(
                f"--cluster {name}: its profile names no file for a token; add token:, or give --path instead."
            )
        file = Path(of_profile)
    file = file.expanduser()
    is_new = make_token(file, renew)
    read_token(file)
    print(f"{file}: {'a new token' if is_new else 'has a token already, which is kept; --renew replaces it'}")
    print(f"every node needs it, before Ray starts: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={file}")


@verb
def version() -> None:
    """Print the versions of ray_mm and of what decides a run's outcome."""
    from ray_mm.run_folder import versions

    for package, number in versions().items():
        print(f"{package} {number}")


def _jobs(cluster: str | None) -> Jobs:
    from ray_mm.config.cluster import find_cluster

    profile = find_cluster(cluster)
    from ray_mm.launch.jobs import connect

    return connect(profile)


def _named(cluster: str | None) -> str:
    import shlex

    return f" --cluster {shlex.quote(cluster)}" if cluster else ""


def _follow(jobs: Jobs, submission: str, cluster: str | None) -> None:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = jobs.follow(submission, write)
    except KeyboardInterrupt:
        fail(f"the job goes on; to see its log again: ray-mm logs {submission} --follow{_named(cluster)}", 130)
    else:
        states = {GateRefused.exit_status: "refused", StopRequested.exit_status: "stopped; submitting it again goes on"}
        state = states.get(ended.exit_status or 0, ended.state.lower())
        print(f"{submission}: {state}{'' if ended.exit_status == 0 else f' ({ended.message})'}")
        raise typer.Exit(ended.exit_status or 0)
