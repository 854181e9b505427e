"""Quarantined members, checked and decoded once more: as they were kept, and as they lie in their shards now.

After the data was mended, or ray_mm was upgraded, it tells which samples a new run would read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_mm.config.fields import FieldSpec
from ray_mm.data.collate import Collator
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.quarantine import Quarantined, list_quarantine
from ray_mm.errors import DatasetError, RayMMError, SampleError, UsageError
from ray_mm.storage import local_path

_FOLDER = "quarantine"
_FIELDS: TypeAdapter[dict[str, FieldSpec]] = TypeAdapter(dict[str, FieldSpec])


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


def open_quarantine(path: str | Path) -> list[Quarantined]:
    """What a run set aside.

    Args:
        path: of a run, or of its quarantine.

    Raises:
        UsageError: neither.
    """
    root = local_path(path)
    folder = root / _FOLDER if (root / "job.json").is_file() else root
    if not folder.is_dir():
        if folder != root:
            return []  # a run in which nothing was bad
        raise UsageError(f"{root}: no such folder; give a train or evaluate run, or its quarantine.")
    if folder == root and root.name != _FOLDER:
        raise UsageError(f"{root}: is neither a run (it has no job.json) nor a quarantine.")
    return list_quarantine(folder)


def replay_quarantine(path: str | Path) -> list[Replayed]:
    """Decodes what a run set aside again, with the fields that the run read.

    Raises:
        UsageError: no run and no quarantine, or a dataset that is gone.
    """
    overrides = _overrides(local_path(path))

    @cache
    def reader(dataset: str) -> _Reader:
        return _Reader(open_dataset(dataset), overrides)

    return [reader(member.dataset).replay(member) for member in open_quarantine(path)]


class _Reader:
    def __init__(self, dataset: Dataset, overrides: dict[str, FieldSpec]) -> None:
        self._dataset = dataset
        self._overrides = overrides
        self._shards = {shard.path: number for number, shard in enumerate(dataset.shards)}
        self._decode = lru_cache(maxsize=None)(self._collator)

    def replay(self, member: Quarantined) -> Replayed:
        field, kept = member.error.field, memoryview(member.path.read_bytes())
        try:
            shard, row = self._place(member.error)
        except RayMMError as error:
            return Replayed(member, self._undecodable(field, kept), str(error))
        samples = SampleReader(self._dataset, [field])

        def reason(payload: memoryview) -> str | None:
            # As in a run: bytes that decode may be other bytes all the same.
            damaged = samples.damaged(shard, row, {field: payload})
            return damaged.get(field) or self._undecodable(field, payload)

        was = reason(kept)
        try:
            now = samples.members(shard, row).get(field)
        except RayMMError as error:
            return Replayed(member, was, str(error))
        return Replayed(member, was, "is absent" if now is None else reason(now))

    def _place(self, error: SampleError) -> tuple[int, int]:
        """The shard and the row of a member, in the dataset as it is now."""
        if error.shard not in self._shards:
            raise DatasetError(f"{self._dataset.root} has no shard {error.shard} any more")
        shard = self._shards[error.shard]
        keys = self._dataset.read_index(shard).keys
        if error.key not in keys:
            raise DatasetError(f"{error.shard} has no sample {error.key} any more")
        return shard, keys.index(error.key)

    def _undecodable(self, field: str, payload: memoryview) -> str | None:
        collator = self._decode(field)
        return collator.fill(collator.empty(1), 0, [{field: payload}]).get(0, {}).get(field)

    def _collator(self, field: str) -> Collator:
        known = {name: spec for name, spec in self._overrides.items() if name == field}
        preprocessor: Preprocessor = preprocessor_for(self._dataset, known, [field])
        return Collator(preprocessor)


def _overrides(root: Path) -> dict[str, FieldSpec]:
    """``data.fields`` of a train run; empty for other runs, which read fields as their checkpoint does."""
    run = root.parent if root.name == _FOLDER else root
    try:
        content: Any = json.loads((run / "job.json").read_text(encoding="utf-8"))
        return _FIELDS.validate_python(content["data"]["fields"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return {}
