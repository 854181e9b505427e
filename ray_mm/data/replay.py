"""What was set aside of datasets; checked and decoded once more: as it was kept, and as it lies in its shards now.

After the data was mended, or ray_mm was upgraded, it tells which samples a new run would read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_mm.config.fields import FieldSpec
from ray_mm.data.collate import Collator
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.members import Members, SampleReader
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.quarantine import UNUSABLE, Quarantined, kept_bytes, list_quarantine
from ray_mm.data.stream_parts import field_of, parts_of_field
from ray_mm.errors import DatasetError, RayMMError, SampleError, UsageError
from ray_mm.storage import is_remote, local_path

RUNS = "runs"
"""Folder below the one where a command is given, in which runs are looked for."""

_FOLDER = "quarantine"
_FIELDS: TypeAdapter[dict[str, FieldSpec]] = TypeAdapter(dict[str, FieldSpec])


@dataclass(frozen=True)
class LeftOut:
    """A cell of a table, or a member of a tar in place, that preprocess left absent.

    Attributes:
        key: of the sample.
        field: that is absent in it.
        reason: why the cell or the member can't be used.
        row: of the table, from 1; None: it is a member.
        shard: path or URL of the tar; empty: it is a cell.
    """

    key: str
    field: str
    reason: str
    row: int | None = None
    shard: str = ""


@dataclass(frozen=True)
class Replayed:
    """What became of a quarantined member.

    Attributes:
        member: as it was kept.
        kept: what is wrong with the bytes that were kept; None: they can be read.
        now: what is wrong with the member in its shard; None: it can be read.
    """

    member: Quarantined
    kept: str | None
    now: str | None


def open_quarantine(path: str | Path, runs: str | Path = RUNS) -> list[Quarantined]:
    """What a run set aside, or what all runs set aside of a dataset.

    Args:
        path: of a run, of its quarantine, of a dataset, or of the preprocess run that made datasets.
        runs: folder with the runs that may have read the dataset, at any depth.

    Returns:
        By shard, key and field; of a dataset every member once, as the first run by name kept it.

    Raises:
        UsageError: none of these.
    """
    roots = datasets_at(path)
    if roots:
        found: dict[tuple[str, str], Quarantined] = {}
        for folder in quarantines_in(runs):
            for member in list_quarantine(folder):
                if member.dataset in roots:
                    found.setdefault((member.dataset, member.path.stem), member)
        return sorted(found.values(), key=lambda one: (one.dataset, one.error.shard, one.error.key, one.error.field))
    root = local_path(path)
    folder = root / _FOLDER if (root / "job.json").is_file() else root
    if not folder.is_dir():
        if folder != root:
            return []  # a run in which nothing was bad
        raise UsageError(f"{root}: no such folder; give a run, its quarantine, or a dataset.")
    if folder == root and root.name != _FOLDER:
        raise UsageError(
            f"{root}: is neither a run (it has no job.json), nor a quarantine, nor a dataset (it has no dataset.json); give one "
            "of these."
        )
    return list_quarantine(folder)


def datasets_at(path: str | Path) -> list[str]:
    """The datasets that a path means: the one there, or those that a preprocess run made there; empty: it means something else.

    Raises:
        DatasetError: a URL where no dataset is, for runs are always local.
    """
    if is_remote(path):
        return [open_dataset(path).root]
    root = local_path(path)
    if (root / "dataset.json").is_file():
        return [str(root)]
    return [str(found.parent) for found in sorted(root.glob("*/dataset.json"))] if _kind(root) == "preprocess" else []


def quarantines_in(runs: str | Path) -> list[Path]:
    """The quarantines of all runs below a folder, sorted."""
    return sorted(folder for folder in local_path(runs).rglob(_FOLDER) if folder.is_dir())


def left_out(path: str | Path) -> list[LeftOut]:
    """What the preprocess run that made a dataset left absent of its table or tars, in all splits; empty: nothing, or not known.

    Args:
        path: of the dataset, or of the run.
    """
    roots = [] if is_remote(path) else [local_path(path), local_path(path).parent]
    run = next((root for root in roots if _kind(root) == "preprocess"), None)
    if run is None or not (run / UNUSABLE).is_file():
        return []
    lines = (run / UNUSABLE).read_text(encoding="utf-8").splitlines()
    return [LeftOut(**json.loads(line)) for line in lines]


def replay_quarantine(path: str | Path, runs: str | Path = RUNS) -> list[Replayed]:
    """Decodes what was set aside again, with the fields that the run read. Arguments as for ``open_quarantine``.

    Raises:
        UsageError: no run, no quarantine and no dataset, or a dataset that is gone.
    """

    @cache
    def reader(dataset: str, quarantine: Path) -> _Reader:
        return _Reader(open_dataset(dataset), _overrides(quarantine))

    return [reader(member.dataset, member.path.parent).replay(member) for member in open_quarantine(path, runs)]


class _Reader:
    def __init__(self, dataset: Dataset, overrides: dict[str, FieldSpec]) -> None:
        self._dataset = dataset
        self._overrides = overrides
        self._shards = {shard.path: number for number, shard in enumerate(dataset.shards)}
        self._decode = lru_cache(maxsize=None)(self._collator)

    def replay(self, member: Quarantined) -> Replayed:
        part, field = member.error.field, field_of(member.error.field)
        parts = parts_of_field(field, self._dataset.manifest.fields.get(field))
        if part not in parts:
            gone = f"the field {field} of {self._dataset.root} is not made of {part.removeprefix(field + '.')} any more"
            return Replayed(member, gone, gone)
        kept = self._kept(member, parts)
        try:
            shard, row = self._place(member.error)
        except RayMMError as error:
            return Replayed(member, self._undecodable(part, kept, parts), str(error))
        samples = SampleReader(self._dataset, [field])

        def reason(members: Members) -> str | None:
            # As in a run: bytes that decode may be other bytes all the same.
            damaged = samples.damaged(shard, row, {part: members[part]})
            return damaged.get(part) or self._undecodable(part, members, parts)

        try:
            now = samples.members(shard, row)
        except RayMMError as error:
            return Replayed(member, reason(kept), str(error))
        # What is wrong with one stream may only show beside the others.
        return Replayed(member, reason(now | kept), "is absent" if part not in now else reason(now))

    def _kept(self, member: Quarantined, parts: Iterable[str]) -> Members:
        """The member, and those parts of the same field that were kept with it."""
        found = {member.error.field: memoryview(member.path.read_bytes())}
        for part in parts:
            if part not in found:
                error = SampleError(member.error.shard, member.error.key, part, "")
                payload = kept_bytes(member.path.parent, member.dataset, error)
                if payload is not None:
                    found[part] = memoryview(payload)
        return found

    def _place(self, error: SampleError) -> tuple[int, int]:
        """The shard and the row of a member, in the dataset as it is now."""
        if error.shard not in self._shards:
            raise DatasetError(f"{self._dataset.root} has no shard {error.shard} any more")
        shard = self._shards[error.shard]
        keys = self._dataset.read_index(shard).keys
        if error.key not in keys:
            raise DatasetError(f"{error.shard} has no sample {error.key} any more")
        return shard, keys.index(error.key)

    def _undecodable(self, part: str, members: Members, parts: Mapping[str, str]) -> str | None:
        missing = [member for each, member in parts.items() if each not in members]
        collator = self._decode(field_of(part))
        reason = collator.fill(collator.empty(1), 0, [members]).get(0, {}).get(part)
        return f"can't be told without {', '.join(missing)}" if reason is None and missing else reason

    def _collator(self, field: str) -> Collator:
        known = {name: spec for name, spec in self._overrides.items() if name == field}
        preprocessor: Preprocessor = preprocessor_for(self._dataset, known, [field])
        return Collator(preprocessor)


def _overrides(quarantine: Path) -> dict[str, FieldSpec]:
    """``data.fields`` of a train run; empty for other runs, which read fields as their checkpoint does."""
    try:
        return _FIELDS.validate_python(_job(quarantine.parent)["data"]["fields"])
    except (KeyError, TypeError, ValidationError):
        return {}


def _kind(folder: Path) -> str | None:
    kind = _job(folder).get("kind")
    return kind if isinstance(kind, str) else None


def _job(folder: Path) -> dict[str, Any]:
    """The job of a run's folder; empty where there is none."""
    try:
        content = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
