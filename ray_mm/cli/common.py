"""What all verbs share: the app, options of the same name, errors and how results are shown."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_mm.errors import JobFileError, RayMMError, StopRequested, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

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
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        envvar=["RAY_MM_CLUSTER", "RAY_API_SERVER_ADDRESS"],
        metavar="NAME|URL",
        help="A cluster's profile, or the address of its dashboard; unset: http://127.0.0.1:8265.",
    ),
]
Unauthenticated = Annotated[
    bool,
    typer.Option("--allow-unauthenticated", help="On a cluster elsewhere that asks nobody for a token, too."),
]
debugging = False
"""Whether tracebacks are shown; set by ``--debug``."""


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a function a verb of its name (see ``guarded``)."""
    # A verb may be called as something of Python's own: list_.
    return app.command(function.__name__.rstrip("_"))(guarded(function))


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The same function; whatever it raises becomes one paragraph on stderr and an exit status."""

    @functools.wraps(function)
    def protected(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            fail("interrupted; running the same command again goes on from what is there.", 130)
        except SystemExit as ended:
            if ended.code != signal.SIGTERM:  # by which Ray ends the process that has joined it
                raise
            fail("asked to end; running the same command again goes on from what is there.", StopRequested.exit_status)
        except RayMMError as error:
            fail(_placed(error, kwargs), error.exit_status)
        except Exception as error:
            from ray_mm.session import cause_of

            cause = cause_of(error)
            if isinstance(cause, RayMMError):
                fail(_placed(cause, kwargs), cause.exit_status)
            text = " ".join(line.strip() for line in str(cause).strip().splitlines()[:3])
            fail(f"{type(cause).__name__}: {text or 'no message'} (for the traceback, run again with --debug)", 1)

    return protected


def _placed(error: RayMMError, arguments: Mapping[str, Any]) -> str:
    """An error's text, after the file and the line of the key that it is about, where it is about one."""
    job = arguments.get("job")
    if error.exit_status != UsageError.exit_status or isinstance(error, JobFileError) or not isinstance(job, str):
        return str(error)
    from ray_mm.config.load import parse_overrides, placed

    return placed(str(error), job, parse_overrides(arguments.get("overrides") or []))


def fail(message: str, status: int) -> None:
    """Ends with a paragraph on stderr."""
    if debugging:
        traceback.print_exc()
    print(f"ray-mm: {message}", file=sys.stderr)
    raise typer.Exit(status)


def show(parts: Iterable[RenderableType]) -> None:
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
