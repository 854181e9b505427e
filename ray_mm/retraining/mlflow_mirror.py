"""A registry, shown in MLflow's: the same versions with their lineage as tags, the same aliases. Needs ``ray_mm[mlflow]``.

MLflow can't move an alias on a condition: of two writers the later one wins, whoever is right. So nothing is ever decided by
what MLflow says. What it shows is made to follow ``registry.json``, after each change and whenever a verb of ``ray-mm
registry`` is given; a server that is away is told of, and set right the next time. Its version numbers are its own; the tag
``ray_mm.version`` has ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ray_mm.auth import redacted
from ray_mm.config.tracking import MlflowConfig
from ray_mm.errors import UsageError
from ray_mm.progress import notice
from ray_mm.registered import CHAMPION, PREVIOUS
from ray_mm.retraining.registry import Registry, Version
from ray_mm.storage import is_remote, local_path
from ray_mm.training.mlflow_store import database, open_client, safe_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_NUMBER = "ray_mm.version"
_ATTEMPTS = 5


def mlflow_mirror(root: str, uri: str | None = None) -> Callable[[Registry], None]:
    """What a ``Registry`` calls after each change.

    Args:
        root: of the registry.
        uri: of MLflow: a server, or ``sqlite:///PATH``. None: the file ``mlflow.db`` in the registry's folder.

    Raises:
        UsageError: MLflow is not installed, the address is none or holds a password, or a registry in a store has no server's
            address.
    """
    if uri is None:
        if is_remote(root):
            raise UsageError(f"{root}: MLflow can't keep a file there; name a server, or leave MLflow out.")
        uri = f"sqlite:///{local_path(root) / 'mlflow.db'}"
    try:
        MlflowConfig(uri=uri)
    except ValidationError as error:
        raise UsageError(f"MLflow: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
    needed = ("mlflow", "sqlalchemy", "alembic") if uri.startswith("sqlite:") else ("mlflow",)
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise UsageError("showing a registry in MLflow needs MLflow; install it with pip install 'ray_mm[mlflow]'.")
    store = f"sqlite:///{database(uri)}" if uri.startswith("sqlite:") else uri.rstrip("/")

    def mirror(registry: Registry) -> None:
        try:
            client = open_client(store)
            for _ in range(_ATTEMPTS):
                before = registry.read().revision
                _show(client, registry.name, registry.versions())
                if registry.read().revision == before:  # else another writer may have shown less than there is
                    return
        except Exception as error:  # of MLflow, of its database, of its HTTP client
            words = " ".join(str(error).partition("[SQL:")[0].split())[:200] or type(error).__name__
            notice(
                f"MLflow ({redacted(store)}) does not show the registry as it is ({words}). {registry.place} is what "
                "counts; MLflow is set right by the next ray-mm registry command."
            )

    return mirror


def _show(client: MlflowClient, name: str, versions: list[Version]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="The versions of a registry of ray_mm, which is what counts.")
    known = {
        found.tags[_NUMBER]: found for found in client.search_model_versions(f"name='{name}'") if _NUMBER in found.tags
    }
    shown: dict[str, Any] = {}
    for version in versions:
        number = str(version.number)
        tags = _tags(version)
        if number not in known:
            source = Path(version.location).as_uri() if "://" not in version.location else version.location
            made = client.create_model_version(name, source, tags=tags)
            shown[number] = made.version
            continue
        shown[number] = known[number].version
        for key, value in tags.items():
            if known[number].tags.get(key) != value:
                client.set_model_version_tag(name, shown[number], key, value)
    wanted = {alias: shown[str(version.number)] for version in versions for alias in version.aliases}
    now = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    for alias in (CHAMPION, PREVIOUS):
        if alias in wanted and now.get(alias) != str(wanted[alias]):
            client.set_registered_model_alias(name, alias, wanted[alias])
        elif alias not in wanted and alias in now:
            client.delete_registered_model_alias(name, alias)


def _tags(version: Version) -> dict[str, str]:
    lineage = version.lineage
    texts = {
        _NUMBER: str(version.number),
        "kind": version.kind,
        "digest": version.digest,
        "run": lineage.run,
        "job": lineage.job,
        "data_digest": lineage.data_digest,
        "code": lineage.code,
        "parent": "" if lineage.parent is None else str(lineage.parent),
        "denied": version.denied or "",
        **{f"metric.{name}": f"{value:.6g}" for name, value in lineage.metrics.items()},
    }
    return {key: safe_text(value) for key, value in texts.items() if value or key == "denied"}
