"""One shard in place → what a dataset must know of it: its index, its labels and texts, and what its members are like.

Members whose values are needed (labels, texts, and what has statistics) are all read; of pictures and recordings some are,
for their shapes. What was found is kept on disk until the datasets are written, so that a run that was killed goes on.

    <output>/.progress/NNNNNN.index.parquet   the index of the whole shard
    <output>/.progress/NNNNNN.facts.parquet   a row per sample: split, labels and texts; written last
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec, LabelField, TextField, has_streams
from ray_mm.config.preprocess import PICKLED
from ray_mm.data.decode.error import DecodeError, StreamError
from ray_mm.data.decode.numeric import class_texts
from ray_mm.data.gzip_bytes import GzipRanges
from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.data.indexing import IndexSettings, current_index, sidecars
from ray_mm.data.sidecar import index_path, read_index, read_points, write_index
from ray_mm.errors import UsageError
from ray_mm.preprocessing.members import Member
from ray_mm.preprocessing.raw import raw_label, raw_member, raw_streams
from ray_mm.preprocessing.splits import split_by_hash
from ray_mm.preprocessing.summary import FieldCollector, FieldSummary, has_same_shape
from ray_mm.storage import is_remote, write_atomic
from ray_mm.storage.ranges import Range, RangeReader
from ray_mm.storage.remote import ObjectInfo

_AT_ONCE = 256
_SHAPES_PER_SHARD = 64
"""Pictures, clips and recordings of a shard that are looked at; an object store would send all of a dataset otherwise."""
_BAD = 3
_SUMMARY_KEY = b"ray_mm.summary"


@dataclass(frozen=True)
class PlaceSettings:
    """What all shards of a job have in common.

    Attributes:
        output: the job's output folder.
        fields: of the job.
        suffixes: field → suffixes of its members, or of all of its streams; None: those that begin with its name.
        on_missing: ``error`` or ``absent``.
        fractions: split → share of the keys; empty where shards belong to splits as a whole.
        seed: of the split.
        digest: of everything that decides what is found.
    """

    output: Path
    fields: dict[str, FieldSpec]
    suffixes: dict[str, tuple[str, ...] | None]
    on_missing: str
    fractions: dict[str, float]
    seed: int
    digest: str


@dataclass(frozen=True)
class PlacedShard:
    """A shard of the job.

    Attributes:
        number: within the job, from 0.
        split: that all of it belongs to; empty where the keys decide.
        info: what it is.
    """

    number: int
    split: str
    info: ObjectInfo


class BadMember(Config):
    """A member that is not what its field says."""

    key: str
    """Of the sample."""
    field: str
    reason: str
    """With the member's suffix."""


class PlaceSummary(Config):
    """What one shard's members are like."""

    digest: str
    """Of the job and the shard."""
    num_samples: dict[str, int]
    """Split → samples with any field."""
    fields: dict[str, dict[str, FieldSummary]]
    """Split → field → summary; ``classes`` as they stand in the members."""
    members: dict[str, tuple[str, ...]]
    """Field → suffixes of its members that occur."""
    suffixes: tuple[str, ...]
    """All that occur in the shard."""
    num_empty: int
    """Samples without any field."""
    unpacked_bytes: int | None
    """Of the tar within a gzip file; None for a plain tar."""
    num_bad: int = 0
    bad: tuple[str, ...] = ()
    """The first of them."""
    left_absent: tuple[BadMember, ...] = ()
    """All members that can't be used, where that is no error; by their place in the shard."""


@dataclass(frozen=True)
class PlaceFacts:
    """All that is known of one shard.

    Attributes:
        index: of the whole shard, bad members taken out.
        splits: of each sample; empty for one without any field.
        labels: label field → the text (class) or number of each sample, None where absent; none of several classes.
        texts: text field → the text of each sample, None where absent.
        summary: see there.
    """

    index: ShardIndex
    splits: list[str]
    labels: dict[str, list[Any]]
    texts: dict[str, list[str | None]]
    summary: PlaceSummary


def shard_digest(settings: PlaceSettings, shard: PlacedShard) -> str:
    """Decides whether what was found of a shard still holds."""
    return f"{settings.digest} {shard.split} {shard.info.size} {shard.info.version}"


def find_facts(shard: PlacedShard, settings: PlaceSettings) -> PlaceSummary:
    """Looks into one shard and keeps what it finds.

    Raises:
        DatasetError: the shard is no whole tar.
        StorageError: the store does not answer, or refuses.
    """
    draft = facts_index_path(settings.output, shard)
    known = None
    if not is_remote(shard.info.url):
        known = current_index(sidecars([shard.info], None)[0], IndexSettings())
    index = known if known is not None else index_shard(shard.info)
    write_index(draft, index)
    finder = _Finder(shard, index, settings, open_ranges(shard.info, index, draft))
    facts = finder.find()
    write_index(draft, facts.index)
    columns: dict[str, pa.Array] = {"split": pa.array(facts.splits, pa.string())}
    for name, values in facts.labels.items():
        columns[f"label:{name}"] = pa.array(values, pa.string() if _is_class(settings.fields[name]) else pa.float64())
    for name, texts in facts.texts.items():
        columns[f"text:{name}"] = pa.array(texts, pa.string())
    table = pa.table(columns).replace_schema_metadata({_SUMMARY_KEY: facts.summary.model_dump_json().encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(facts_path(settings.output, shard), sink.getvalue().to_pybytes())
    return facts.summary


def read_summary(shard: PlacedShard, settings: PlaceSettings) -> PlaceSummary | None:
    """What an earlier run found of the same shard for the same job, or None."""
    try:
        metadata = pq.read_schema(facts_path(settings.output, shard)).metadata
        summary = PlaceSummary.model_validate_json(metadata[_SUMMARY_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValidationError):
        return None
    return summary if summary.digest == shard_digest(settings, shard) else None


def read_facts(shard: PlacedShard, settings: PlaceSettings) -> PlaceFacts:
    """What ``find_facts`` kept."""
    table = pq.read_table(facts_path(settings.output, shard), partitioning=None)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return PlaceFacts(
        index=read_index(facts_index_path(settings.output, shard), shard.info.url),
        splits=columns["split"],
        labels={name[6:]: values for name, values in columns.items() if name.startswith("label:")},
        texts={name[5:]: values for name, values in columns.items() if name.startswith("text:")},
        summary=PlaceSummary.model_validate_json(table.schema.metadata[_SUMMARY_KEY]),
    )


def facts_path(output: Path, shard: PlacedShard) -> Path:
    """Where the facts of a shard are kept."""
    return output / ".progress" / f"{shard.number:06d}.facts.parquet"


def facts_index_path(output: Path, shard: PlacedShard) -> Path:
    """Where the index of a shard is kept."""
    return index_path(output / ".progress" / f"{shard.number:06d}.tar")


def open_ranges(info: ObjectInfo, index: ShardIndex, draft: Path | str) -> RangeReader:
    """What reads members of a shard.

    Args:
        info: the shard.
        index: of it.
        draft: where the index lies; the seek points of a gzip file are beside it.
    """
    if index.unpacked_bytes is not None:
        return GzipRanges(info, read_points(draft, index, info.url), index.unpacked_bytes)
    return RangeReader(info)


def _is_class(spec: FieldSpec) -> bool:
    return isinstance(spec, LabelField) and spec.target == "class"


@dataclass
class _Finder:
    shard: PlacedShard
    index: ShardIndex
    settings: PlaceSettings
    reader: RangeReader
    bad: list[str] = field(default_factory=list)
    num_bad: int = 0
    left_absent: list[tuple[int, BadMember]] = field(default_factory=list)
    """With the row of each."""
    unusable: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Split and field → samples in which its members can't be read."""
    shared: set[str] = field(default_factory=set)
    """Suffixes that several fields are read from."""
    lost: bool = False
    """Whether a member of one of these was taken out."""

    def find(self) -> PlaceFacts:
        members = {name: self._suffixes(name) for name in self.settings.fields}
        users = Counter(suffix for found in members.values() for suffix in found)
        self.shared = {suffix for suffix, count in users.items() if count > 1}
        facts = self._look(members)
        while self.lost:
            # Fields that were looked at before have counted it.
            self.lost = False
            facts = self._look(members)
        return facts

    def _look(self, members: Mapping[str, tuple[str, ...]]) -> PlaceFacts:
        picked = {name: self._picked(name, found) for name, found in members.items()}
        there = np.zeros(len(self.index), np.bool_)
        for suffix_numbers in picked.values():
            there |= suffix_numbers >= 0
        splits = self._splits(there)
        collectors = {
            split: {
                name: FieldCollector(same_shape=has_same_shape(spec)) for name, spec in self.settings.fields.items()
            }
            for split in sorted(set(splits) - {""})
        }
        labels: dict[str, list[Any]] = {}
        texts: dict[str, list[str | None]] = {}
        for name, spec in sorted(self.settings.fields.items()):
            # Picked anew: what an earlier field found unreadable is no longer there.
            values = self._field(name, spec, members[name], self._picked(name, members[name]), splits, collectors)
            if isinstance(spec, LabelField) and spec.is_indexed:
                labels[name] = values
            elif isinstance(spec, TextField):
                texts[name] = values
        for (split, name), count in self.unusable.items():
            if split in collectors:
                collectors[split][name].unusable = count
        summary = PlaceSummary(
            digest=shard_digest(self.settings, self.shard),
            fields={
                split: {name: collector.summary() for name, collector in fields.items()}
                for split, fields in collectors.items()
            },
            members=dict(members),
            suffixes=tuple(self.index.offsets),
            num_samples=dict(Counter(split for split in splits if split)),
            num_empty=int((~there).sum()),
            unpacked_bytes=self.index.unpacked_bytes,
            num_bad=self.num_bad,
            bad=tuple(self.bad),
            left_absent=tuple(one for _, one in sorted(self.left_absent, key=lambda one: (one[0], one[1].field))),
        )
        return PlaceFacts(self.index, splits, labels, texts, summary)

    def _suffixes(self, name: str) -> tuple[str, ...]:
        given = self.settings.suffixes[name]
        if given is None:
            found = tuple(suffix for suffix in self.index.offsets if suffix == name or suffix.startswith(f"{name}."))
            pickled = next((suffix for suffix in found if suffix.rpartition(".")[2].lower() in PICKLED), None)
            if pickled is not None:
                raise UsageError(
                    f"fields.{name}: its members .{pickled} are pickled; reading one runs the code in it, so they are never "
                    f"loaded. Convert them to .npy or .npz, or name others with members.{name}."
                )
            return found
        return tuple(suffix for suffix in given if suffix in self.index.offsets)

    def _picked(self, name: str, suffixes: Sequence[str]) -> npt.NDArray[np.int64]:
        """Which of a field's suffixes each sample has, −1 for none; of a series of streams 0 where it has all of them."""
        found = np.full(len(self.index), -1, np.int64)
        spec = self.settings.fields[name]
        if has_streams(spec):
            if set(suffixes) == set(spec.members):
                found[np.logical_and.reduce([self.index.sizes[suffix] > 0 for suffix in suffixes])] = 0
            return found
        for number, suffix in reversed(list(enumerate(suffixes))):
            found[self.index.sizes[suffix] > 0] = number
        return found

    def _splits(self, there: npt.NDArray[np.bool_]) -> list[str]:
        if not self.settings.fractions:
            return [self.shard.split if filled else "" for filled in there.tolist()]
        names = split_by_hash(self.index.keys, self.settings.fractions, self.settings.seed)
        return [name if filled else "" for name, filled in zip(names, there.tolist(), strict=True)]

    def _field(
        self,
        name: str,
        spec: FieldSpec,
        suffixes: Sequence[str],
        picked: npt.NDArray[np.int64],
        splits: Sequence[str],
        collectors: Mapping[str, Mapping[str, FieldCollector]],
    ) -> list[Any]:
        """Looks at the members of one field; returns the value of each sample where that is a label or a text."""
        values: list[Any] = [None] * len(self.index)
        rows = np.flatnonzero(picked >= 0)
        looked_at = set(self._rows_to_read(spec, rows).tolist())
        for row in rows.tolist():
            if row not in looked_at:
                collectors[splits[row]][name].count(suffixes[picked[row]])
        read = {row: tuple(suffixes) if has_streams(spec) else (suffixes[picked[row]],) for row in sorted(looked_at)}
        for row, payloads in self._payloads(read):
            collector, suffix, payload = collectors[splits[row]][name], read[row][0], payloads[0]
            try:
                if has_streams(spec):
                    found = raw_streams(dict(zip(read[row], payloads, strict=True)), spec)
                elif isinstance(spec, LabelField) and spec.target in ("class", "classes"):
                    values[row] = raw_label(payload, spec) if spec.target == "class" else class_texts(payload, spec)
                    if values[row] is not None:
                        names = (values[row],) if spec.target == "class" else tuple(values[row])
                        collector.add(row + 1, Member(suffix, b"", class_names=names))
                    continue
                else:
                    found = raw_member(payload, spec, suffix)
            except DecodeError as error:
                self.unusable[splits[row], name] += 1
                self._is_bad(row, name, error.members if isinstance(error, StreamError) else (suffix,), error)
                continue
            if found is not None:
                collector.add(row + 1, found[0])
                values[row] = found[1]
        return values

    def _is_bad(self, row: int, name: str, suffixes: Sequence[str], error: DecodeError) -> None:
        reason, key = error.reason if isinstance(error, StreamError) else str(error), self.index.keys[row]
        if self.settings.on_missing == "error":
            self.num_bad += 1
            if len(self.bad) < _BAD:
                self.bad.append(f"{self.shard.info.url}[{key}].{', '.join(suffixes)}: {reason}")
        else:
            self.left_absent.append((row, BadMember(key=key, field=name, reason=f"{', '.join(suffixes)}: {reason}")))
        # Taken out of the index, it is absent for whoever reads the dataset. A series of streams is without any one of them;
        # one that no other field is read from, if there is such a one.
        suffix = next((each for each in suffixes if each not in self.shared), suffixes[0])
        self.lost |= suffix in self.shared
        for places in (self.index.offsets, self.index.sizes):
            places[suffix] = places[suffix].copy()
            places[suffix][row] = -1

    def _rows_to_read(self, spec: FieldSpec, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if spec.type not in ("image", "audio", "video") or len(rows) <= _SHAPES_PER_SHARD:
            return rows
        return rows[np.linspace(0, len(rows) - 1, _SHAPES_PER_SHARD).round().astype(np.int64)]

    def _payloads(self, wanted: Mapping[int, Sequence[str]]) -> Iterator[tuple[int, list[memoryview]]]:
        """Row → the members of some suffixes."""
        rows = list(wanted)
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            ranges: list[Range] = [
                (int(self.index.offsets[suffix][row]), int(self.index.sizes[suffix][row]))
                for row in part
                for suffix in wanted[row]
            ]
            views = iter(self.reader.read(ranges))
            yield from ((row, [next(views) for _ in wanted[row]]) for row in part)
