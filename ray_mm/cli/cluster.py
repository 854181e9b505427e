"""Verbs on a cluster: submit a job, see how it stands, read its log, stop it; and the versions, here as there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ray_mm.cli.common import ClusterAddress, JobFile, Overrides, fail, show, verb
from ray_mm.errors import GateRefused

if TYPE_CHECKING:
    from ray_mm.launch.submit import Jobs


@verb
def submit(
    job: JobFile,
    address: ClusterAddress = None,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log, and end with its exit status.")] = False,
) -> None:
    """Run a job on a Ray cluster. A job that is still running there is not started again."""
    from ray_mm.config.load import load_job, parse_overrides

    loaded = load_job(job, parse_overrides(overrides or []))
    jobs = _jobs(address)
    submission = jobs.submit(loaded)
    print(f"{submission.id}: {'submitted to' if submission.is_new else 'already runs on'} {jobs.address}", flush=True)
    if follow:
        _follow(jobs, submission.id)
    else:
        print(f"its log: ray-mm logs {submission.id} --follow --address {jobs.address}")


@verb
def status(
    submission: Annotated[str | None, typer.Argument(metavar="[ID]", help="Unset: all that the cluster knows.")] = None,
    address: ClusterAddress = None,
) -> None:
    """Show how submitted jobs stand."""
    from ray_mm.summary import status_table

    jobs = _jobs(address)
    show([status_table(jobs.list() if submission is None else [jobs.status(submission)])])


@verb
def logs(
    submission: Annotated[str, typer.Argument(metavar="ID")],
    address: ClusterAddress = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; then end with its exit status.")] = False,
) -> None:
    """Show the log of a submitted job."""
    jobs = _jobs(address)
    if follow:
        _follow(jobs, submission)
    else:
        sys.stdout.write(jobs.logs(submission))


@verb
def stop(submission: Annotated[str, typer.Argument(metavar="ID")], address: ClusterAddress = None) -> None:
    """Stop a submitted job. Submitting it again goes on from what is there."""
    stopped = _jobs(address).stop(submission)
    print(f"{submission}: {stopped.state.lower()}")


@verb
def version() -> None:
    """Print the versions of ray_mm and of what decides a run's outcome."""
    from ray_mm.run_folder import versions

    for package, number in versions().items():
        print(f"{package} {number}")


def _jobs(address: str | None) -> Jobs:
    from ray_mm.launch.submit import connect

    return connect(address)


def _follow(jobs: Jobs, submission: str) -> None:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = jobs.follow(submission, write)
    except KeyboardInterrupt:
        fail(f"the job goes on; to see its log again: ray-mm logs {submission} --follow --address {jobs.address}", 130)
    else:
        state = "refused" if ended.exit_status == GateRefused.exit_status else ended.state.lower()
        print(f"{submission}: {state}{'' if ended.exit_status == 0 else f' ({ended.message})'}")
        raise typer.Exit(ended.exit_status or 0)
