"""What writing a shard tells of its samples; merged over all shards it gives counts, shapes and statistics.

Merging is done in the order of the shards' numbers, so that the sums do not depend on which shard was written first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec, is_mask
from ray_mm.preprocessing.members import Member
from ray_mm.preprocessing.statistics import Moments, RunningMoments

_EXAMPLES = 3


class FieldSummary(Config):
    """What one field's members are like."""

    present: int = 0
    """Samples that have it."""
    unusable: int = 0
    """Cells that name a file or a value that can't be used."""
    first_unusable: tuple[int, str] | None = None
    """The row of the first of them and what is wrong with it, where its file is there."""
    extensions: tuple[str, ...] = ()
    """Of the members, sorted."""
    shapes: dict[str, int] = Field(default={})
    """Shape, such as ``480x640``, → number of members. See ``members.Member.shape``."""
    first_rows: dict[str, int] = Field(default={})
    """Shape → the first row that has it, where all should be the same."""
    longest: float = 0.0
    """See ``members.Member.longest``."""
    classes: dict[str, int] = Field(default={})
    """Class → number of samples."""
    moments: Moments | None = None
    """Of the values; only where all have one shape."""


class BadCell(Config):
    """A cell whose file or value is not what its field says."""

    row: int
    """From 1."""
    field: str
    reason: str


class ShardSummary(Config):
    """What one shard holds. ``bad`` is empty in a shard that was written."""

    num_samples: int
    num_empty: int
    """Rows without any field, which leave no sample."""
    size_bytes: int
    version: str
    """``sha256:`` and the hash of the shard's bytes, in hex."""
    fields: dict[str, FieldSummary]
    num_bad: int = 0
    bad: tuple[BadCell, ...] = ()
    """The first of them."""
    left_absent: tuple[BadCell, ...] = ()
    """All cells whose file is there and can't be used, where that is no error."""


def has_same_shape(spec: FieldSpec) -> bool:
    """Whether the members of a field have one shape: what would not fit is told with its row."""
    return spec.type in ("series", "points", "vector") or (is_mask(spec) and spec.like is None)


class FieldCollector:
    """Collects one field's summary, member by member."""

    def __init__(self, same_shape: bool) -> None:
        self.present = 0
        self.unusable = 0
        self._first_unusable: tuple[int, str] | None = None
        self._same_shape = same_shape
        self._extensions: set[str] = set()
        self._shapes: Counter[str] = Counter()
        self._first_rows: dict[str, int] = {}
        self._longest = 0.0
        self._classes: Counter[str] = Counter()
        self._moments = RunningMoments()

    def add(self, row: int, member: Member) -> None:
        """Takes the member of a row (from 1)."""
        self.count(member.extension)
        self._longest = max(self._longest, member.longest)
        if member.shape:
            shape = "x".join(map(str, member.shape))
            self._shapes[shape] += 1
            if self._same_shape:
                self._first_rows[shape] = min(row, self._first_rows.get(shape, row))
        self._classes.update(member.class_names)
        # Several shapes where all should be one are an error that the driver reports.
        if member.values is not None and len(self._shapes) <= 1:
            self._moments.add(member.values)

    def count(self, extension: str) -> None:
        """Takes a member that was not looked at."""
        self.present += 1
        self._extensions.add(extension)

    def add_unusable(self, row: int, reason: str | None) -> None:
        """Counts a cell (row from 1) that can't be used; without a reason where its file is not there."""
        self.unusable += 1
        if reason is not None:
            self._first_unusable = _first(self._first_unusable, (row, reason))

    def summary(self) -> FieldSummary:
        """What was collected."""
        return FieldSummary(
            present=self.present,
            unusable=self.unusable,
            first_unusable=self._first_unusable,
            extensions=tuple(sorted(self._extensions)),
            shapes=dict(sorted(self._shapes.items())),
            first_rows=dict(sorted(self._first_rows.items())),
            longest=self._longest,
            classes=dict(sorted(self._classes.items())),
            moments=self._moments.moments(),
        )


def merge_fields(shards: Iterable[ShardSummary]) -> dict[str, FieldSummary]:
    """Field → the summary over several shards, given in their order."""
    return merge_summaries(shard.fields for shard in shards)


def merge_summaries(shards: Iterable[Mapping[str, FieldSummary]]) -> dict[str, FieldSummary]:
    """``merge_fields`` of the summaries alone."""
    parts: dict[str, list[FieldSummary]] = {}
    for shard in shards:
        for field, summary in shard.items():
            parts.setdefault(field, []).append(summary)
    return {field: _merge(summaries) for field, summaries in sorted(parts.items())}


def first_bad(shards: Iterable[ShardSummary]) -> tuple[int, list[BadCell]]:
    """Number of bad cells, and the first few by row."""
    found = list(shards)
    cells = sorted((cell for shard in found for cell in shard.bad), key=lambda cell: (cell.row, cell.field))
    return sum(shard.num_bad for shard in found), cells[:_EXAMPLES]


def keep_first(cells: list[BadCell]) -> tuple[BadCell, ...]:
    """As many as an error will show."""
    return tuple(sorted(cells, key=lambda cell: (cell.row, cell.field))[:_EXAMPLES])


def _merge(parts: list[FieldSummary]) -> FieldSummary:
    moments = RunningMoments()
    shapes = _add(part.shapes for part in parts)
    first_rows: dict[str, int] = {}
    for part in parts:
        for shape, row in part.first_rows.items():
            first_rows[shape] = min(row, first_rows.get(shape, row))
        if part.moments is not None and len(first_rows) <= 1:
            moments.merge(part.moments)
    return FieldSummary(
        present=sum(part.present for part in parts),
        unusable=sum(part.unusable for part in parts),
        first_unusable=_first(*(part.first_unusable for part in parts)),
        extensions=tuple(sorted({extension for part in parts for extension in part.extensions})),
        shapes=shapes,
        first_rows=first_rows,
        longest=max(part.longest for part in parts),
        classes=_add(part.classes for part in parts),
        moments=moments.moments(),
    )


def _first(*rows: tuple[int, str] | None) -> tuple[int, str] | None:
    return min((row for row in rows if row is not None), default=None)


def _add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
