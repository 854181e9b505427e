"""Models by their name in a registry, instead of by the folder of the run that made them.

    registry:<root>#<name>@champion    the model that is in use; also @previous, or @4 for a version
    registry:<root>#<name>             the same as @champion

    <root>/<name>/registry.json        {"format": "ray_mm.registry", "version": 1, "revision", "fence",
                                        "versions": {"1": {...}}, "champions": [1, 3], "history": [...]}
    <root>/<name>/versions/<digest>/   the files of a version: a checkpoint or an artifact, as it was registered

``<root>`` is a path, ``s3://…`` or ``gs://…``. This is what every stage needs that reads a model; ``retraining/registry.py``
writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mm.errors import RegistryError
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.conditional import Documents
from ray_mm.storage.folders import damaged_file, digest_of, fetch_folder
from ray_mm.storage.remote import join
from ray_mm.storage.shared import Content, SharedState

REGISTRY_FORMAT = 1
REGISTRY_KIND = "ray_mm.registry"
PREFIX = "registry:"
CHAMPION, PREVIOUS = "champion", "previous"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_CACHE = "RAY_MM_REGISTRY_CACHE"


@dataclass(frozen=True)
class Reference:
    """A model in a registry.

    Attributes:
        root: of the registry: an absolute path or a URL.
        name: of the model.
        which: ``champion``, ``previous``, or the number of a version.
    """

    root: str
    name: str
    which: str | int = CHAMPION

    def __str__(self) -> str:
        return f"{PREFIX}{self.root}#{self.name}@{self.which}"


def is_registered(location: str | Path) -> bool:
    """Whether a location is a model's name in a registry, rather than a folder."""
    return str(location).startswith(PREFIX)


def parse_reference(text: str) -> Reference:
    """Reads ``registry:<root>#<name>@<which>``; ``registry:`` and ``@<which>`` may be left out.

    Raises:
        RegistryError: it is none.
    """
    root, separator, rest = text.removeprefix(PREFIX).rpartition("#")
    name, _, which = rest.partition("@")
    which = which or CHAMPION
    if not (
        root
        and separator
        and _NAME.fullmatch(name)
        and (which in (CHAMPION, PREVIOUS) or re.fullmatch(r"[1-9]\d*", which))
    ):
        raise RegistryError(
            f"{text}: is no model of a registry; expected registry:<root>#<name>@champion, @previous or @<version>, such as "
            "registry:runs/registry#driving@champion."
        )
    return Reference(located_root(root), name, int(which) if which.isdigit() else which)


def located_root(root: str | Path) -> str:
    """A registry's root, made absolute where it is a path."""
    return str(root).rstrip("/") if is_remote(root) else str(local_path(root))


def shared_state(root: str, name: str) -> SharedState:
    """The document of a model in a registry."""
    return SharedState(Documents(join(root, name)), "registry.json", REGISTRY_KIND, REGISTRY_FORMAT)


def sound(content: Content, place: str) -> Content:
    """The content of a registry's document, if it is one.

    Raises:
        RegistryError: it is damaged, or names files that lie elsewhere.
    """
    try:
        versions = content.get("versions", {})
        whole = all(
            re.fullmatch(r"[1-9]\d*", number)
            and {"kind", "lineage", "registered", "denied"} <= entry.keys()
            and all(_is_inside(name) and isinstance(file["size"], int) for name, file in entry["files"].items())
            and digest_of(entry["files"]) == entry["digest"]
            for number, entry in versions.items()
        )
        whole = whole and all(str(number) in versions for number in content.get("champions", []))
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RegistryError(f"{place}: is damaged: what it says of its versions can't be; put a copy of it back.")
    return content


def _is_inside(name: str) -> bool:
    return bool(re.fullmatch(r"[^/\\\0]+(/[^/\\\0]+)*", name)) and ".." not in name.split("/")


def number_of(content: Content, which: str | int, place: str) -> int:
    """The number of a version.

    Args:
        content: of the document.
        which: see ``Reference``.
        place: where it lies, for the error.

    Raises:
        RegistryError: there is none such.
    """
    champions: list[int] = content.get("champions", [])
    if which in (CHAMPION, PREVIOUS):
        back = 1 if which == CHAMPION else 2
        if len(champions) < back:
            raise RegistryError(f"{place}: there is no {which} yet; promote a version.")
        return champions[-back]
    if str(which) not in content.get("versions", {}):
        known = ", ".join(content.get("versions", {})) or "none"
        raise RegistryError(f"{place}: there is no version {which}; its versions are: {known}.")
    return int(which)


def registered_folder(location: str) -> Path:
    """The folder of a registered model on this machine, its files verified; from a store it is fetched once.

    Args:
        location: ``registry:<root>#<name>@<which>``.

    Raises:
        RegistryError: there is no such model, or it is damaged.
        StorageError: the store does not answer.
    """
    reference = parse_reference(location)
    content, place = _content(reference)
    entry = content["versions"][str(number_of(content, reference.which, place))]
    target = files_of(reference.root, reference.name, entry)
    if is_remote(target):
        folder = _cache() / str(entry["digest"])
        damaged = fetch_folder(target, entry["files"], folder)
    else:
        folder, damaged = Path(target), damaged_file(target, entry["files"])
    if damaged is not None:
        raise RegistryError(damage(target, damaged))
    return folder


def _content(reference: Reference) -> tuple[Content, str]:
    """What the document of a model says, and where it lies."""
    shared = shared_state(reference.root, reference.name)
    content = sound(shared.read().content, shared.place)
    if not content:
        raise RegistryError(
            f"{shared.place}: there is no such model; it comes from retraining, or from Registry.register."
        )
    return content, shared.place


def on_this_machine(location: str | Path) -> str | Path:
    """The folder of a model that is named by its registry (see ``registered_folder``); any other location as it is."""
    return registered_folder(str(location)) if is_registered(location) else location


def absolute(location: str) -> str:
    """A location that means the same wherever the next command is given: a path made absolute, also that of a registry.

    Raises:
        RegistryError: a name of a model that can't be read.
    """
    if is_registered(location):
        return str(parse_reference(location))
    return location if "://" in location else str(local_path(location))


def pinned(location: str) -> str:
    """A location that means the same model whatever is promoted meanwhile: the number of the version in the place of an alias.

    Raises:
        RegistryError: there is no such model, or its registry is damaged or newer.
        StorageError: the store does not answer.
    """
    if not is_registered(location):
        return location
    reference = parse_reference(location)
    content, place = _content(reference)
    return str(Reference(reference.root, reference.name, number_of(content, reference.which, place)))


def files_of(root: str, name: str, entry: Mapping[str, Any]) -> str:
    """Where the files of a version lie."""
    return join(root, name, "versions", str(entry["digest"]))


def damage(target: str, file: str) -> str:
    """What is said of a version whose files are not what they were."""
    return (
        f"{join(target, file)}: is missing or was changed after it was registered (its SHA-256 digest is another one); "
        "register the run's folder again, or roll back."
    )


def _cache() -> Path:
    if folder := os.environ.get(_CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_mm" / "registry"
