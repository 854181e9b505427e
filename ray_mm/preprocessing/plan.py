"""A job → what will be written where: every check that needs only the table and the file system, before Ray starts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.config.fields import FieldSpec, LabelField, is_mask
from ray_mm.config.preprocess import PreprocessJob, SplitByColumn
from ray_mm.data.decode.numeric import class_text
from ray_mm.errors import UsageError
from ray_mm.preprocessing.files import MISSING, FileStates, look_at_files
from ray_mm.preprocessing.shards import ShardPlan, cut_into_shards, shuffle_rows
from ray_mm.preprocessing.splits import require_no_empty_split, split_by_hash
from ray_mm.preprocessing.table import (
    Source,
    label_classes,
    listing,
    open_source,
    require_numbers,
)
from ray_mm.preprocessing.writer import WriteSettings, cell_column, size_column
from ray_mm.storage import local_path
from ray_mm.version import DATASET_FORMAT

SETTLED = ("fields", "columns", "key", "splits", "shard_size", "on_missing", "seed")
"""Keys of a job that decide what is in its datasets."""

_WRITER = 1
"""Counts up whenever the same job gives other bytes than before."""
_BLOCK = 512
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Plan:
    """What a job will write.

    Attributes:
        source: the table.
        files: the files that the cells of each column name, see ``files.look_at_files``.
        settings: for every shard; its class labels have their classes.
        splits: in the order of the job, or sorted where a column names them.
        rows: split → its rows, from 0.
        shards: of all splits.
        num_empty: rows without any field, which are left out.
        digest: of everything that decides what is written.
    """

    source: Source
    files: dict[str, FileStates]
    settings: WriteSettings
    splits: tuple[str, ...]
    rows: dict[str, list[int]]
    shards: tuple[ShardPlan, ...]
    num_empty: int
    digest: str

    @property
    def what(self) -> str:
        """What the datasets are made from, for errors."""
        return f"{self.source.path} or of the files that it names"

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The job's fields; class labels have their classes."""
        return self.settings.fields

    @property
    def train_split(self) -> str:
        """The split that statistics and vocabulary come from."""
        return "train" if "train" in self.splits else self.splits[0]

    def shard_rows(self, shard: ShardPlan) -> pa.Table:
        """The rows of a shard, as ``writer.write_shard`` takes them."""
        rows = np.asarray(shard.rows, np.int64)
        columns: dict[str, Any] = {
            "key": pa.array([self.source.keys[row] for row in shard.rows], pa.string()),
            "row": pa.array(rows + 1),
        }
        for field, names in self.source.columns.items():
            for number, name in enumerate(names):
                columns[cell_column(field, number)] = (
                    self.source.table.column(name).take(pa.array(rows)).combine_chunks()
                )
        for states in self.files.values():
            columns[size_column(states.field, states.number)] = pa.array(states.sizes[rows])
        return pa.table(columns)

    def texts(self, field: str, split: str) -> list[str]:
        """The texts of a field in a split."""
        values = self.source.values(self.source.columns[field][0])
        return [class_text(values[row]) for row in self.rows[split] if values[row] not in (None, "")]


def plan_job(job: PreprocessJob) -> Plan:
    """Reads the table, looks at every file that it names, and decides which row goes where.

    Raises:
        UsageError: the table, or what it names, is wrong.
    """
    source = open_source(job)
    fields = dict(job.fields)
    for field, spec in fields.items():
        if is_mask(spec):
            continue  # its classes are given, and its cells name files
        if isinstance(spec, LabelField) and spec.target != "number":
            fields[field] = spec.model_copy(update={"classes": label_classes(source, field, spec)})
        elif spec.type == "label" or (spec.type == "vector" and len(source.columns[field]) > 1):
            require_numbers(source, field)
    files = look_at_files(source, fields, job.on_missing)
    filled = [row for row, any_field in enumerate(_filled(source, files)) if any_field]
    if not filled:
        raise UsageError(f"table: {source.path} has no row with any of the fields {', '.join(sorted(fields))}.")
    rows = _split_rows(job, source, filled)
    settings = {key: value for key, value in job.model_dump(mode="json").items() if key in SETTLED}
    base = json.dumps([DATASET_FORMAT, _WRITER, settings, source.digest], sort_keys=True)
    sizes = _sample_sizes(source, fields, files)
    shards = []
    for split in rows:
        ordered = shuffle_rows(rows[split], source.keys, job.seed)
        for number, part in enumerate(cut_into_shards(ordered, sizes, job.shard_size)):
            digest = _digest(f"{base}\0{split}\0{number}", files, np.asarray(part, np.int64))
            shards.append(ShardPlan(split, number, part, digest))
    output = local_path(job.output)
    num_columns = {field: len(names) for field, names in source.columns.items()}
    plan = Plan(
        source=source,
        files=files,
        settings=WriteSettings(output, source.root, fields, num_columns, job.on_missing),
        splits=tuple(rows),
        rows=rows,
        shards=tuple(shards),
        num_empty=source.table.num_rows - len(filled),
        digest=_digest(base, files, np.arange(source.table.num_rows)),
    )
    for field, spec in fields.items():
        if spec.type == "text" and not plan.texts(field, plan.train_split):
            raise UsageError(
                f"fields.{field}: no row of split {plan.train_split!r} has a text, so there is nothing to train its "
                "tokenizer on; correct the table, or remove the field."
            )
    return plan


def _filled(source: Source, files: Mapping[str, FileStates]) -> npt.NDArray[np.bool_]:
    """Which rows have a field at all, bool [rows]."""
    filled: npt.NDArray[np.bool_] = np.zeros(source.table.num_rows, np.bool_)
    for field, names in source.columns.items():
        there = np.ones(source.table.num_rows, np.bool_)
        for name in names:
            there &= np.array([value is not None and value != "" for value in source.values(name)], np.bool_)
        for states in files.values():
            if states.field == field:
                there &= states.sizes != MISSING
        filled |= there
    return filled


def _split_rows(job: PreprocessJob, source: Source, filled: Sequence[int]) -> dict[str, list[int]]:
    if isinstance(job.splits, SplitByColumn):
        names = _texts(source, job.splits.column, "splits.column")
        order = tuple(sorted(set(names)))
        wrong = [name for name in order if not _SPLIT.fullmatch(name)]
        if wrong:
            raise UsageError(
                f"splits.column: column {job.splits.column!r} has the value {wrong[0]!r}, which can't name a dataset: expected "
                "letters, digits, _ and -, first a letter, such as train."
            )
    else:
        order = tuple(split for split, fraction in job.splits.fractions.items() if fraction > 0)
        if job.splits.group is not None:
            what, groups = f"column {job.splits.group!r}", _texts(source, job.splits.group, "splits.group")
        elif job.key is not None:
            what, groups = "the key", source.keys
        else:
            # Not the row's number: a row must stay in its split when rows are added before it.
            what, groups = "one row each", _contents(source)
        names = split_by_hash(groups, job.splits.fractions, job.seed)
        require_no_empty_split(
            [names[row] for row in filled], job.splits.fractions, len({groups[row] for row in filled}), what
        )
    rows: dict[str, list[int]] = {split: [] for split in order}
    for row in filled:
        rows[names[row]].append(row)
    return {split: members for split, members in rows.items() if members}


def _texts(source: Source, column: str, key: str) -> list[str]:
    values = source.values(column)
    empty = [f"row {row}" for row, value in enumerate(values, 1) if value is None or value == ""]
    if empty:
        raise UsageError(
            f"{key}: column {column!r} of {source.path} is empty in {listing(len(empty), 'row', empty[:3])}; every row needs "
            "a value."
        )
    return [class_text(value) for value in values]


def _contents(source: Source) -> list[str]:
    names = sorted({name for names in source.columns.values() for name in names})
    return [json.dumps(row, default=str) for row in zip(*(source.values(name) for name in names), strict=True)]


def _sample_sizes(
    source: Source, fields: Mapping[str, FieldSpec], files: Mapping[str, FileStates]
) -> npt.NDArray[np.int64]:
    """Bytes of each row's sample in a tar, int64 [rows]; estimated where the cell holds an array."""
    total = np.zeros(source.table.num_rows, np.int64)
    of_files: dict[str, npt.NDArray[np.int64]] = {}
    for states in files.values():
        # A cell that holds an array itself is taken to be as large as its column's average.
        average = source.table.column(states.column).nbytes // len(total)
        payload = np.where(states.sizes >= 0, states.sizes, average)
        of_files[states.field] = of_files.get(states.field, 0) + payload
    for field, spec in fields.items():
        names = source.columns[field]
        if spec.type == "text":
            payload = np.array([len(class_text(value).encode()) for value in source.values(names[0])], np.int64)
        elif field in of_files:
            payload = of_files[field]
        else:
            payload = np.full(len(total), 128 + 4 * len(names), np.int64)
        total += _BLOCK + -(-payload // _BLOCK) * _BLOCK
    return total


def _digest(base: str, files: Mapping[str, FileStates], rows: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(base.encode())
    digest.update(rows.astype("<i8").tobytes())
    for field in sorted(files):
        digest.update(f"\0{field}\0".encode())
        digest.update(files[field].sizes[rows].astype("<i8").tobytes())
        digest.update(files[field].times[rows].astype("<i8").tobytes())
    return digest.hexdigest()
