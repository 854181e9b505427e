"""The entry point, and what may stand before a verb."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ray_mm.cli import common
from ray_mm.cli.common import app

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
        verbs = _verbs(app)
        for group in app.registered_groups:
            if group.typer_instance is not None and command == f"ray-mm {group.name}":
                verbs = _verbs(group.typer_instance)
        print(f"ray-mm: {wrong_call(command, error.format_message(), arguments, verbs)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if arguments else 2)


def _verbs(of: typer.Typer) -> list[str]:
    names = [verb.name or verb.callback.__name__ for verb in of.registered_commands if verb.callback is not None]
    return names + [str(group.name) for group in of.registered_groups]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything logged.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from ray_mm.logs import configure_logging

    common.debugging = debug
    configure_logging(debug)
