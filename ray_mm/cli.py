"""``ray-mm``: verbs only; every verb is one call into the package.

Exit status: 0 done; 1 failed; 2 the job file or the call is wrong; 3 a gate refused; 130 interrupted; 143 asked to end.
Nothing heavy is imported before a verb needs it: ``--help`` and ``check`` answer at once.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_mm.errors import GateRefused, JobFileError, RayMMError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ray_mm.launch.submit import Jobs

app = typer.Typer(
    name="ray-mm",
    help="Train one fusion model over image, text, audio, sensor series and point clouds in WebDataset tars, on Ray.",
    epilog="Exit status: 0 done; 1 failed; 2 the job file or the call is wrong; 3 a gate refused; 130 interrupted; 143 asked to "
    "end.",
    rich_markup_mode=None,  # rich would take a fifth of the time that --help may take
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="A job file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as train.epochs=3. May be given again."),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that this machine is part of: auto or HOST:PORT.")
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        envvar=["RAY_API_SERVER_ADDRESS"],
        metavar="URL",
        help="The cluster's dashboard; unset: http://127.0.0.1:8265.",
    ),
]
_debug = False
_WRONG_CALL: Any = typer.BadParameter.__base__
"""What is raised when a call is wrong; typer gives it no public name of its own."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from ray_mm.version import __version__

        print(f"ray_mm {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point of ``ray-mm``."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # it may stand anywhere: that is where one adds it after an error
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        status = app(arguments or ["--help"], prog_name="ray-mm", standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except _WRONG_CALL as error:
        from ray_mm.config.calls import wrong_call

        command = error.ctx.command_path if error.ctx is not None else "ray-mm"
        verbs = [verb.callback.__name__ for verb in app.registered_commands if verb.callback is not None]
        print(f"ray-mm: {wrong_call(command, error.format_message(), arguments, verbs)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if arguments else 2)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything logged.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from ray_mm.logs import configure_logging

    global _debug
    _debug = debug
    configure_logging(debug)


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a function a verb; whatever it raises becomes one paragraph on stderr and an exit status."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _fail("interrupted; running the same command again goes on from what is there.", 130)
        except RayMMError as error:
            _fail(_placed(error, kwargs), error.exit_status)
        except Exception as error:
            from ray_mm.session import cause_of

            cause = cause_of(error)
            if isinstance(cause, RayMMError):
                _fail(_placed(cause, kwargs), cause.exit_status)
            text = " ".join(line.strip() for line in str(cause).strip().splitlines()[:3])
            _fail(f"{type(cause).__name__}: {text or 'no message'} (for the traceback, run again with --debug)", 1)

    return app.command()(guarded)


def _placed(error: RayMMError, arguments: Mapping[str, Any]) -> str:
    """An error's text, after the file and the line of the key that it is about, where it is about one."""
    job = arguments.get("job")
    if error.exit_status != UsageError.exit_status or isinstance(error, JobFileError) or not isinstance(job, str):
        return str(error)
    from ray_mm.config.load import parse_overrides, placed

    return placed(str(error), job, parse_overrides(arguments.get("overrides") or []))


def _fail(message: str, status: int) -> None:
    if _debug:
        traceback.print_exc()
    print(f"ray-mm: {message}", file=sys.stderr)
    raise typer.Exit(status)


@_verb
def run(
    job: JobFile,
    overrides: Overrides = None,
    address: RayAddress = None,
    resume: Annotated[
        str, typer.Option(metavar="exact|force", help="force: a training goes on although settings have changed.")
    ] = "exact",
) -> None:
    """Run a job here. Running it again goes on where it was interrupted."""
    from ray_mm.config.load import load_job, parse_overrides
    from ray_mm.stages import run_stage
    from ray_mm.summary import read_result, result_parts

    loaded = load_job(job, parse_overrides(overrides or []))
    try:
        result = run_stage(loaded, address, resume)
    except GateRefused:
        _show(result_parts(read_result(loaded.output), loaded.output))
        raise
    _show(result_parts(result, loaded.output))


@_verb
def check(job: JobFile, overrides: Overrides = None) -> None:
    """Validate a job file and what it names, without starting anything."""
    from ray_mm.config.load import load_job, parse_overrides

    loaded = load_job(job, parse_overrides(overrides or []))
    from ray_mm.check import check_job

    lines = check_job(loaded)
    print(f"{job}: a valid {loaded.kind} job, {loaded.name!r}")
    for line in lines:
        print(f"  {line}")


@_verb
def schema(
    kind: Annotated[str | None, typer.Argument(help="preprocess, train, evaluate, predict, compress or tune.")] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="A line per key instead: what it takes, default, meaning.")
    ] = False,
) -> None:
    """Print the JSON Schema of job files, for editors; or their keys, for people."""
    import json

    from ray_mm.config.keys import key_lines
    from ray_mm.config.load import job_schema

    if keys:
        print("\n".join(key_lines(kind)))
    else:
        print(json.dumps(job_schema(kind), indent=2))


@_verb
def demo(output: Annotated[Path, typer.Option(help="Folder for its data and runs.")] = Path("runs/demo")) -> None:
    """Run the whole path on generated data, then say where the report is."""
    from ray_mm.demo.demo import run_demo

    run_demo(output)


@_verb
def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="DATASET|TARS...")],
    html: Annotated[Path | None, typer.Option(help="Of tars: also write a page with a few samples drawn.")] = None,
) -> None:
    """Show what is in a dataset, or in tars: files, folders, globs, {0..9}, s3://, gs://, https://."""
    from ray_mm.data.inspect import describe
    from ray_mm.summary import titled_table

    if html is not None:
        from ray_mm.gallery import write_gallery

        found = [write_gallery(html, paths)]
    for inspection in describe(paths) if html is None else found:
        _show(titled_table(*table) for table in inspection.tables)
        if inspection.job:
            print(f"a job to begin with:\n\n{inspection.job}")


@_verb
def index(
    tars: Annotated[list[str], typer.Argument(metavar="TARS...")],
    output: Annotated[Path | None, typer.Option(help="Folder for the indexes. Unset: beside the tars.")] = None,
    crc: Annotated[bool, typer.Option("--crc", help="Read every member, too, for its CRC32C.")] = False,
    max_unpacked: Annotated[str, typer.Option(help="Largest tar that a .tgz may unpack to.")] = "16GiB",
) -> None:
    """Index tars that are there already: files, folders, globs, {0..9}, s3://, gs://, https://."""
    from ray_mm.data.indexing import index_tars

    for report in index_tars(tars, output, crc, max_unpacked):
        print(report)


@_verb
def quarantine(
    what: Annotated[str, typer.Argument(metavar="list|replay", help="Show them, or decode them once more.")],
    of: Annotated[str, typer.Argument(metavar="RUN|DATASET", help="A run, its quarantine, or a dataset.")],
    runs: Annotated[
        Path | None, typer.Option(help="Of a dataset: folder of the runs that read it. Unset: runs.")
    ] = None,
) -> None:
    """Show the samples that a run, or all runs on a dataset, could not read, and whether they can be read now."""
    from ray_mm.data.replay import RUNS
    from ray_mm.summary import listed_quarantine, replayed_quarantine

    if what not in ("list", "replay"):
        raise UsageError(f"quarantine: takes list or replay, found {what!r}.")
    _show((listed_quarantine if what == "list" else replayed_quarantine)(of, runs or Path(RUNS)))


@_verb
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job file, of a training.")] = None,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For measuring each stage of the job, about.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    address: RayAddress = None,
) -> None:
    """Look at this machine, Ray and the GPU; of a training, also measure which of its stages will limit it."""
    from ray_mm.config.load import load_job, parse_overrides

    loaded = None if job is None else load_job(job, parse_overrides(overrides or []))
    if loaded is not None and loaded.kind != "train":
        raise UsageError(
            f"{job}: is of kind {loaded.kind}; doctor measures a train job. For this one: ray-mm check {job}"
        )
    import json

    from ray_mm import doctor
    from ray_mm.summary import examined_parts

    worst, parts = doctor.Level.OK, []
    for part in doctor.examine(loaded, seconds, address):
        parts.append(part)
        worst = max(worst, part.level) if isinstance(part, doctor.Finding) else worst
        if as_json:
            continue
        if isinstance(part, doctor.Finding):
            print(part.line(), flush=True)
        else:
            _show(examined_parts(part))
    if as_json:
        print(json.dumps(doctor.as_json(parts), indent=2))
    if worst is doctor.Level.FAIL:
        raise typer.Exit(1)


@_verb
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


@_verb
def status(
    submission: Annotated[str | None, typer.Argument(metavar="[ID]", help="Unset: all that the cluster knows.")] = None,
    address: ClusterAddress = None,
) -> None:
    """Show how submitted jobs stand."""
    from ray_mm.summary import status_table

    jobs = _jobs(address)
    _show([status_table(jobs.list() if submission is None else [jobs.status(submission)])])


@_verb
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


@_verb
def stop(submission: Annotated[str, typer.Argument(metavar="ID")], address: ClusterAddress = None) -> None:
    """Stop a submitted job. Submitting it again goes on from what is there."""
    stopped = _jobs(address).stop(submission)
    print(f"{submission}: {stopped.state.lower()}")


@_verb
def version() -> None:
    """Print the versions of ray_mm and of what decides a run's outcome."""
    from ray_mm.run_folder import versions

    for package, number in versions().items():
        print(f"{package} {number}")


def _show(parts: Iterable[RenderableType]) -> None:
    """Prints texts as they are, and tables as wide as the terminal; in a file or a pipe as wide as they need to be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            console.print(part, highlight=False)
            print()


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
        _fail(f"the job goes on; to see its log again: ray-mm logs {submission} --follow --address {jobs.address}", 130)
    else:
        state = "refused" if ended.exit_status == GateRefused.exit_status else ended.state.lower()
        print(f"{submission}: {state}{'' if ended.exit_status == 0 else f' ({ended.message})'}")
        raise typer.Exit(ended.exit_status or 0)
