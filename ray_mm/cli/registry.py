"""Verbs on a registry of models: what is in it, which version is in use, and changing that by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ray_mm.cli.common import app, guarded, show
from ray_mm.errors import UsageError

if TYPE_CHECKING:
    from ray_mm.registered import Reference
    from ray_mm.retraining.registry import Registry

registry_app = typer.Typer(help="Show a registry of models, and say which version is in use.", rich_markup_mode=None)
app.add_typer(registry_app, name="registry")

Root = Annotated[str, typer.Argument(metavar="REGISTRY", help="A folder, s3://... or gs://...")]
Model = Annotated[str, typer.Argument(metavar="REGISTRY#NAME", help="A model, such as runs/registry#driving.")]
OneVersion = Annotated[
    str, typer.Argument(metavar="REGISTRY#NAME@VERSION", help="A version, such as runs/registry#driving@4.")
]
Mlflow = Annotated[
    str | None,
    typer.Option(metavar="URI", help="Show it in this MLflow. Unset: in mlflow.db in the registry, if that is there."),
]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]


@registry_app.command("list")
@guarded
def list_models(root: Root) -> None:
    """Show the models of a registry."""
    from ray_mm.retraining.listing import models_table
    from ray_mm.summary import titled_table

    show([titled_table(*models_table(root))])


@registry_app.command("show")
@guarded
def show_model(
    model: Annotated[
        str, typer.Argument(metavar="REGISTRY#NAME[@WHICH]", help="A model; or champion, previous or a version of it.")
    ],
    mlflow: Mlflow = None,
) -> None:
    """Show the versions of a model and what was in use when, or one version in full."""
    from ray_mm.registered import parse_reference
    from ray_mm.retraining.listing import model_tables, version_tables
    from ray_mm.summary import titled_table

    reference = parse_reference(model)
    registry = _registry(reference, mlflow)
    whole = "@" not in model.rpartition("#")[2]
    show(
        titled_table(*table)
        for table in (model_tables(registry) if whole else version_tables(registry, reference.which))
    )
    registry.mirror()


@registry_app.command()
@guarded
def promote(
    version: OneVersion,
    expect: Annotated[
        int | None, typer.Option(help="The champion that it was compared with. Unset: whichever is in use now.")
    ] = None,
    mlflow: Mlflow = None,
) -> None:
    """Make a version the champion; the one that was is kept as previous."""
    reference, number = _numbered(version)
    registry = _registry(reference, mlflow)
    registry.promote(number, registry.champion() if expect is None else expect, by=_who())
    _tell(registry)


@registry_app.command()
@guarded
def rollback(model: Model, reason: Reason = "rolled back", mlflow: Mlflow = None) -> None:
    """Make the previous version the champion again, and deny the one that was."""
    from ray_mm.registered import parse_reference

    registry = _registry(parse_reference(model), mlflow)
    registry.rollback(reason, by=_who())
    _tell(registry)


@registry_app.command()
@guarded
def deny(version: OneVersion, reason: Reason = "denied", mlflow: Mlflow = None) -> None:
    """Keep a version from ever being promoted, or rolled back to."""
    reference, number = _numbered(version)
    registry = _registry(reference, mlflow)
    registry.deny(number, reason, by=_who())
    _tell(registry)


def _numbered(text: str) -> tuple[Reference, int]:
    from ray_mm.registered import parse_reference

    reference = parse_reference(text)
    if not isinstance(reference.which, int):
        raise UsageError(f"{text}: names no version; expected its number, such as {text.partition('@')[0]}@4.")
    return reference, reference.which


def _registry(reference: Reference, mlflow: str | None) -> Registry:
    from pathlib import Path

    from ray_mm.retraining.registry import Registry

    if mlflow is None and ("://" in reference.root or not (Path(reference.root) / "mlflow.db").is_file()):
        return Registry(reference.root, reference.name)
    from ray_mm.retraining.mlflow_mirror import mlflow_mirror

    return Registry(reference.root, reference.name, mlflow_mirror(reference.root, mlflow))


def _tell(registry: Registry) -> None:
    champion, previous = registry.champion(), registry.previous()
    said = "no champion" if champion is None else f"version {champion} is the champion"
    print(f"{registry.name}: {said}{'' if previous is None else f', version {previous} the previous one'}")


def _who() -> str:
    import getpass
    import os
    import platform

    return f"{getpass.getuser() if os.environ.get('USER') else os.getuid()} on {platform.node()}"
