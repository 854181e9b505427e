"""A registry → the tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_mm import figures
from ray_mm.errors import RegistryError
from ray_mm.retraining.registry import Registry, Version, model_names

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header, rows."""

_MAX_EVENTS = 20


def models_table(root: str) -> Table:
    """The models of a registry.

    Raises:
        RegistryError: there are none, or one is damaged or newer.
        StorageError: it can't be read.
    """
    names = model_names(root)
    if not names:
        raise RegistryError(f"{root}: holds no models; they come from retraining, or from Registry.register.")
    rows = []
    for name in names:
        registry = Registry(root, name)
        events = registry.history()
        since = next((event.time for event in reversed(events) if event.action != "deny"), None)
        rows.append(
            (
                name,
                str(len(registry.versions())),
                _number(registry.champion()),
                _number(registry.previous()),
                since or "–",
            )
        )
    return ("models", ("name", "versions", "champion", "previous", "since"), rows)


def model_tables(registry: Registry) -> Iterator[Table]:
    """The versions of a model, and what was in use when.

    Raises:
        RegistryError: there is no such model, or it is damaged or newer.
        StorageError: it can't be read.
    """
    versions = _known(registry)
    metrics = list(dict.fromkeys(name for version in versions for name in version.lineage.metrics))
    rows = [
        (
            str(version.number),
            ", ".join(version.aliases) or ("denied" if version.denied is not None else ""),
            version.kind,
            version.registered,
            version.lineage.run,
            _number(version.lineage.parent),
            *(figures.text(name, version.lineage.metrics.get(name)) for name in metrics),
        )
        for version in versions
    ]
    yield ("versions", ("", "", "kind", "registered", "run", "parent", *metrics), rows)
    events = registry.history()[-_MAX_EVENTS:]
    if events:
        changes = [(event.time, event.action, str(event.version), _number(event.before), event.by) for event in events]
        yield ("changes", ("time", "", "version", "before", "by"), changes)


def version_tables(registry: Registry, which: str | int) -> Iterator[Table]:
    """One version in full.

    Raises:
        RegistryError: there is none such, or the registry is damaged or newer.
        StorageError: it can't be read.
    """
    _known(registry)
    version = registry.version(which)
    lineage = version.lineage
    rows = [
        ("kind", version.kind),
        ("in use as", ", ".join(version.aliases) or "–"),
        ("denied", version.denied or "–"),
        ("registered", version.registered),
        ("job", lineage.job),
        ("run", lineage.run),
        ("parent", _number(lineage.parent)),
        ("data", lineage.data_digest),
        ("code", lineage.code),
        *((name, figures.text(name, value)) for name, value in lineage.metrics.items()),
        ("digest", version.digest),
        ("files", version.location),
    ]
    yield (f"version {version.number}", ("", ""), rows)


def _known(registry: Registry) -> list[Version]:
    versions = registry.versions()
    if not versions:
        raise RegistryError(f"{registry.place}: there is no such model, or it has no versions yet.")
    return versions


def _number(version: int | None) -> str:
    return "–" if version is None else str(version)
