"""The model registry: versions of a model, and which of them is in use.

    registry = Registry("runs/registry", "driving")
    version = registry.register(run / "compress" / "artifact", Lineage(run="nightly-2026-11-29", ...))
    registry.promote(version, expected=registry.champion(), fence=lease.fence)

The truth is one document per model, ``registry.json``, that is written by compare-and-swap only. MLflow's registry shows the
same versions and aliases to people (``mlflow_mirror.py``); its aliases can't be moved on a condition, so they follow, and are
set right whenever they lag. A version is a copy of a checkpoint's or an artifact's folder, kept by its digest below the
registry: the run that made it may be removed. It is verified when it is registered and again before it is promoted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_mm.errors import RegistryError, WriteConflictError
from ray_mm.registered import (
    CHAMPION,
    PREVIOUS,
    damage,
    files_of,
    located_root,
    number_of,
    parse_reference,
    shared_state,
    sound,
)
from ray_mm.retraining.clock import SYSTEM_CLOCK, Clock, written
from ray_mm.storage.conditional import Documents
from ray_mm.storage.folders import damaged_file, describe_files, digest_of, keep_folder
from ray_mm.storage.shared import Content, State


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    Attributes:
        run: id of the run that made it; registering the same folder for the same run again gives the same version.
        job: name of the job.
        data_digest: of what it was trained on.
        code: commit or version of the code.
        metrics: finite figures to keep with it.
        parent: the version that its training began with; None: none.
    """

    run: str
    job: str
    data_digest: str
    code: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent: int | None = None


@dataclass(frozen=True)
class Version:
    """A version of a model.

    Attributes:
        number: from 1.
        kind: ``checkpoint`` or ``artifact``.
        digest: of its files.
        location: where they lie: a path or a URL.
        lineage: where it comes from.
        registered: when, UTC.
        denied: why nobody may promote it; None: it may be.
        aliases: ``champion``, ``previous``, or none.
    """

    number: int
    kind: str
    digest: str
    location: str
    lineage: Lineage
    registered: str
    denied: str | None
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """A change of what is in use.

    Attributes:
        time: UTC.
        action: ``promote``, ``rollback`` or ``deny``.
        version: that is the champion now; of ``deny`` the one denied.
        before: that was the champion before; None: there was none.
        by: who did it.
        fence: the fencing token under which it was done; None: by a person.
    """

    time: str
    action: str
    version: int
    before: int | None
    by: str
    fence: int | None


class Registry:
    """One model's registry.

    Args:
        root: of the registry: a path, ``s3://…`` or ``gs://…``.
        name: of the model: letters, digits, ``_`` and ``-``, beginning with a letter.
        mirror: called after every change with what is so now, to show it elsewhere (see ``mlflow_mirror``). None: not shown.
        clock: for the times that are written down.

    Raises:
        RegistryError: a name that is none.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        mirror: Callable[[Registry], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        parse_reference(f"{root}#{name}")
        self.root, self.name = located_root(root), name
        self._mirror, self._clock = mirror, clock
        self._shared = shared_state(self.root, name)

    @property
    def place(self) -> str:
        """Where its document lies."""
        return self._shared.place

    def versions(self) -> list[Version]:
        """All versions, the oldest first.

        Raises:
            RegistryError: damaged, or written by a newer version of ray_mm.
            StorageError: it can't be read.
        """
        return self._versions(self._content())

    def version(self, which: str | int) -> Version:
        """One of them: ``champion``, ``previous`` or a number. Raises as ``versions``; RegistryError also for want of it."""
        content = self._content()
        number = number_of(content, which, self.place)
        return next(version for version in self._versions(content) if version.number == number)

    def champion(self) -> int | None:
        """The version in use; None: none yet. Raises as ``versions``."""
        champions = self._content().get("champions", [])
        return champions[-1] if champions else None

    def previous(self) -> int | None:
        """The version to which ``rollback`` would go; None: there is none. Raises as ``versions``."""
        champions = self._content().get("champions", [])
        return champions[-2] if len(champions) > 1 else None

    def history(self) -> list[Event]:
        """All promotions, rollbacks and denials, the oldest first. Raises as ``versions``."""
        return [Event(**event) for event in self._content().get("history", [])]

    def read(self) -> State:
        """The document itself, with its revision and the largest fencing token that it has seen. Raises as ``versions``."""
        return self._shared.read()

    def admit(self, fence: int) -> None:
        """Shows a new holder's fencing token: older ones are refused from now on. Raises as ``promote``."""
        self._shared.admit(fence)

    def register(self, folder: str | Path, lineage: Lineage, fence: int | None = None) -> int:
        """Makes a version of a checkpoint or an artifact: verifies it, copies it, and writes it down. It is not in use by that.

        Args:
            folder: of a checkpoint or an artifact, or of the run that made it.
            lineage: where it comes from.
            fence: the fencing token of the run's lease. None: done by a person.

        Returns:
            Its number; that of before, if this run registered the same files before.

        Raises:
            CheckpointError: the folder holds no whole checkpoint or artifact.
            LeaseLost: a later holder of the lease has been here.
            RegistryError: the registry is damaged, or written by a newer version of ray_mm.
            StorageError: it can't be written.
        """
        # Imports what models are read with; moving aliases needs nothing of it.
        from ray_mm.predictor import ARTIFACT_FILE, verified_model_folder

        self._content()  # a registry that can't be used is known before files are copied
        found = verified_model_folder(folder)
        files = describe_files(found)
        digest = digest_of(files)
        entry: dict[str, Any] = {
            "kind": "artifact" if (found / ARTIFACT_FILE).is_file() else "checkpoint",
            "digest": digest,
            "files": files,
            "lineage": {**asdict(lineage), "metrics": dict(lineage.metrics)},
            "registered": written(self._clock.time()),
            "denied": None,
        }
        keep_folder(found, files, files_of(self.root, self.name, entry))
        numbers: list[int] = []

        def change(content: Content) -> Content | None:
            versions: dict[str, Any] = content.setdefault("versions", {})
            for number, known in versions.items():
                if known["digest"] == digest and known["lineage"]["run"] == lineage.run:
                    numbers[:] = [int(number)]
                    return None
            numbers[:] = [len(versions) + 1]
            versions[str(numbers[0])] = entry
            return content

        self._update(change, fence)
        return numbers[0]

    def promote(self, version: int, expected: int | None, fence: int | None = None, by: str = "") -> None:
        """Makes a version the champion, if the champion is still the one that it was compared with; that one is ``previous``
        then.

        Doing it again changes nothing.

        Args:
            version: its number.
            expected: the champion that it was compared with; None: there was none.
            fence: the fencing token of the run's lease. None: done by a person.
            by: who does it, for the history.

        Raises:
            WriteConflictError: the champion is another one by now. Nothing was changed.
            LeaseLost: a later holder of the lease has been here. Nothing was changed.
            RegistryError: no such version, denied, or damaged; or the registry is damaged or newer.
            StorageError: it can't be read or written.
        """
        self.verify(version)

        def change(content: Content) -> Content | None:
            number_of(content, version, self.place)
            champions: list[int] = content.setdefault("champions", [])
            champion = champions[-1] if champions else None
            if champion == version:
                return None
            if champion != expected:
                raise WriteConflictError(
                    f"{self.place}: version {version} was not promoted. It was compared with {_called(expected)}, and the "
                    f"champion is {_called(champion)} by now; compare it with that one."
                )
            denied = content["versions"][str(version)]["denied"]
            if denied is not None:
                raise RegistryError(f"{self.place}: version {version} is denied ({denied}); promote another one.")
            content["champions"] = [*(number for number in champions if number != version), version]
            return self._noted(content, Event("", "promote", version, champion, by, fence))

        self._update(change, fence)

    def rollback(self, reason: str = "rolled back", fence: int | None = None, by: str = "") -> int:
        """Makes the champion's predecessor the champion again, and denies the one that it was.

        Args:
            reason: why, for people.
            fence: as for ``promote``.
            by: as for ``promote``.

        Returns:
            The version that is the champion now.

        Raises:
            LeaseLost: a later holder of the lease has been here.
            RegistryError: there is no predecessor, or it is damaged; or the registry is damaged or newer.
            StorageError: it can't be read or written.
        """
        seen = self._content()
        target = number_of(seen, PREVIOUS, self.place)
        self.verify(target)

        def change(content: Content) -> Content | None:
            champions: list[int] = content["champions"]
            if champions[-2:] != seen["champions"][-2:]:
                raise WriteConflictError(
                    f"{self.place}: was not rolled back; another one has changed it meanwhile, and the champion is "
                    f"{_called(champions[-1])} by now."
                )
            gone = champions.pop()
            content["versions"][str(gone)]["denied"] = reason
            return self._noted(content, Event("", "rollback", champions[-1], gone, by, fence))

        return int(self._update(change, fence).content["champions"][-1])

    def deny(self, version: int, reason: str = "denied", fence: int | None = None, by: str = "") -> None:
        """Keeps a version from ever being promoted, or rolled back to.

        Args:
            version: its number.
            reason: why, for people.
            fence: as for ``promote``.
            by: as for ``promote``.

        Raises:
            LeaseLost: a later holder of the lease has been here.
            RegistryError: no such version, or it is in use; or the registry is damaged or newer.
            StorageError: it can't be read or written.
        """

        def change(content: Content) -> Content | None:
            number_of(content, version, self.place)
            champions: list[int] = content.setdefault("champions", [])
            champion = champions[-1] if champions else None
            if champion == version:
                raise RegistryError(
                    f"{self.place}: version {version} is the champion; roll back, which denies it, too."
                )
            if content["versions"][str(version)]["denied"] is not None:
                return None
            content["versions"][str(version)]["denied"] = reason
            content["champions"] = [number for number in champions if number != version]
            return self._noted(content, Event("", "deny", version, champion, by, fence))

        self._update(change, fence)

    def verify(self, which: str | int) -> Version:
        """Reads all files of a version, and compares them with what was registered.

        Args:
            which: ``champion``, ``previous`` or a number.

        Raises:
            RegistryError: no such version, or a file of it is missing or changed.
            StorageError: they can't be read.
        """
        content = self._content()
        number = number_of(content, which, self.place)
        files = content["versions"][str(number)]["files"]
        version = next(version for version in self._versions(content) if version.number == number)
        damaged = damaged_file(version.location, files)
        if damaged is not None:
            raise RegistryError(damage(version.location, damaged))
        return version

    def mirror(self) -> None:
        """Shows elsewhere what is so now: a mirror that was away when something changed is set right by it."""
        if self._mirror is not None:
            self._mirror(self)

    def _update(self, change: Callable[[Content], Content | None], fence: int | None) -> State:
        state = self._shared.update(lambda content: change(sound(content, self.place)), fence)
        self.mirror()
        return state

    def _content(self) -> Content:
        return sound(self._shared.read().content, self.place)

    def _noted(self, content: Content, event: Event) -> Content:
        now = {"time": written(self._clock.time())}
        content.setdefault("history", []).append({**asdict(event), **now})
        return content

    def _versions(self, content: Content) -> list[Version]:
        champions: list[int] = content.get("champions", [])
        alias = dict(zip(reversed(champions), (CHAMPION, PREVIOUS), strict=False))
        return [
            Version(
                number=int(number),
                kind=entry["kind"],
                digest=entry["digest"],
                location=files_of(self.root, self.name, entry),
                lineage=Lineage(**entry["lineage"]),
                registered=entry["registered"],
                denied=entry["denied"],
                aliases=(alias[int(number)],) if int(number) in alias else (),
            )
            for number, entry in content.get("versions", {}).items()
        ]


def model_names(root: str | Path) -> list[str]:
    """The models of a registry, sorted.

    Raises:
        StorageError: it can't be listed.
    """
    names = Documents(root).list()
    return sorted(
        {name.partition("/")[0] for name in names if name.endswith("/registry.json") and name.count("/") == 1}
    )


def _called(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
