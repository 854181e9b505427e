"""A table on disk → its rows, checked: one row per sample, a column per field.

Rows are counted from 1, without a CSV's header, in keys and in errors alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ray_mm.config.explain import no_column
from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.preprocess import PreprocessJob, SplitByColumn
from ray_mm.data.decode.arrays import parse_json
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import class_text, listed_classes
from ray_mm.errors import UsageError
from ray_mm.storage import local_path, sha256_file

_LINES_AT_ONCE = 65536
_MANY_CLASSES = 10
_WHOLE = re.compile(r"-?\d{1,18}")
_KEY = re.compile(r"[^./\\\x00-\x1f]+(/[^./\\\x00-\x1f]+)*")


@dataclass(frozen=True)
class Source:
    """A job's table, read and checked.

    Attributes:
        path: of the table.
        root: folder that paths in the table are relative to.
        digest: hex SHA-256 of the table's bytes.
        table: all rows, all columns.
        columns: field → its columns: one, or several for a vector or a series of streams.
        keys: a unique name per row.
    """

    path: Path
    root: Path
    digest: str
    table: pa.Table
    columns: dict[str, tuple[str, ...]]
    keys: list[str]

    def values(self, column: str) -> list[Any]:
        """A column as Python values; None where the cell is empty."""
        values: list[Any] = self.table.column(column).to_pylist()
        return values


def open_source(job: PreprocessJob) -> Source:
    """Reads the job's table and checks what can be checked without looking at a file that it names.

    Raises:
        UsageError: the table can't be read, is empty, lacks a column that the job names, or its keys are not unique.
    """
    assert job.table is not None, "a job of a table"
    path = local_path(job.table)
    table = read_table(path)
    if table.num_rows == 0:
        raise UsageError(f"table: {path} has no rows; expected one per sample.")
    columns = {field: job.columns_of(field) for field in job.fields}
    for column, what in _named_columns(job, columns):
        if column not in table.column_names:
            raise UsageError(f"{what}: {path} {no_column(column, table.column_names)}")
    root = local_path(job.root) if job.root is not None else path.parent
    if not root.is_dir():
        raise UsageError(f"root: {root} is not a folder; paths in the table are relative to it.")
    return Source(path, root, sha256_file(path), table, columns, _keys(table, job.key))


def read_table(path: Path) -> pa.Table:
    """Reads a CSV, JSON lines or Parquet file. In a CSV every value is a text and an empty cell is None.

    Raises:
        UsageError: no such file, another format, or damaged.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": pq.read_table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"table: {path} must end in .csv, .jsonl or .parquet.")
    if not path.is_file():
        raise UsageError(f"table: {path}: no such file.")
    if path.stat().st_size == 0:
        raise UsageError(f"table: {path}: the table is empty; expected a row per sample.")
    try:
        table = reader(path)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UsageError(f"table: {path} can't be read: {str(error).splitlines()[0]}.") from None
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise UsageError(f"table: {path} has the column {twice[0]!r} twice; rename one.")
    return table


def label_classes(source: Source, field: str, spec: LabelField) -> tuple[str, ...]:
    """The classes of a label: those given, or all that occur, in order.

    Raises:
        UsageError: a value is none of the given classes, or the column is empty.
    """
    (column,) = source.columns[field]
    if spec.target == "classes":
        return _several_classes(source, field, column, spec)
    texts = [None if value is None else class_text(value) for value in source.values(column)]
    if spec.classes is None:
        found = {text for text in texts if text is not None}
        if not found:
            raise UsageError(f"fields.{field}: column {column!r} of {source.path} is empty, so there are no classes.")
        _require_no_number(field, column, found, sum(text is not None for text in texts))
        return in_order(found)
    known = set(spec.classes)
    wrong = [(row, text) for row, text in enumerate(texts, 1) if text is not None and text not in known]
    if wrong:
        raise UsageError(
            f"fields.{field}.classes: {listing(len(wrong), 'row', [f'row {row} ({text!r})' for row, text in wrong[:3]])} "
            f"in column {column!r} of {source.path} {'has' if len(wrong) == 1 else 'have'} a value that is none of the "
            f"{len(known)} classes; add it to classes or correct the table."
        )
    return spec.classes


def cell_classes(cell: Any) -> list[str]:
    """The classes that a cell names, each once: a list, or a text with ``;`` between them, or one that is a JSON list.

    Raises:
        DecodeError: it is neither.
    """
    if not isinstance(cell, str):
        return listed_classes(cell)
    if cell.lstrip().startswith("["):
        return listed_classes(parse_json(cell.encode()))
    return listed_classes([part for part in map(str.strip, cell.split(";")) if part])


def _several_classes(source: Source, field: str, column: str, spec: LabelField) -> tuple[str, ...]:
    """``label_classes`` where each row may have any number of them."""
    found: Counter[str] = Counter()
    wrong: list[str] = []
    known = None if spec.classes is None else set(spec.classes)
    for row, value in enumerate(source.values(column), 1):
        if value is None or value == "":
            continue
        try:
            names = cell_classes(value)
        except DecodeError as error:
            wrong.append(f"row {row} ({error})")
            continue
        found.update(names)
        unknown = [] if known is None else [name for name in names if name not in known]
        if unknown:
            wrong.append(f"row {row} ({unknown[0]!r} is none of the {len(known or ())} classes)")
    if wrong:
        raise UsageError(
            f"fields.{field}: {listing(len(wrong), 'row', wrong[:3])} in column {column!r} of {source.path}; expected a list of "
            "classes, or a text with ; between them. Add to classes, or correct the table."
        )
    if not found and spec.classes is None:
        raise UsageError(
            f"fields.{field}: no row of column {column!r} of {source.path} names a class; list them in classes."
        )
    return in_order(found) if spec.classes is None else spec.classes


def in_order(classes: Iterable[str]) -> tuple[str, ...]:
    """Classes sorted; as numbers if they all are whole numbers."""
    found = set(classes)
    whole = all(_WHOLE.fullmatch(text) for text in found)
    return tuple(sorted(found, key=lambda text: (int(text), text) if whole else (0, text)))


def _require_no_number(field: str, column: str, found: set[str], num_filled: int) -> None:
    """Refuses to make a class of every value of a measurement."""
    if len(found) < _MANY_CLASSES or 2 * len(found) <= num_filled:
        return
    if all(_is_number(text) for text in found) and not all(_WHOLE.fullmatch(text) for text in found):
        examples = ", ".join(sorted(found)[:3])
        raise UsageError(
            f"fields.{field}: the {num_filled:,} values of column {column!r} are numbers, {len(found):,} different ones "
            f"({examples}, …), too many to be classes. To predict the number itself, write "
            f"{field}: {{type: label, target: number}}; if they are classes, list them under classes."
        )


def require_numbers(source: Source, field: str) -> None:
    """Checks the cells of a number label, or of a vector made of several columns.

    Raises:
        UsageError: a cell is not a finite number.
    """
    for column in source.columns[field]:
        values = source.table.column(column)
        wrong: list[tuple[int, Any]] = []
        try:
            numbers = pc.cast(values, pa.float64())
            if not pc.all(pc.is_finite(numbers)).as_py():
                raise pa.ArrowInvalid("not finite")
        except pa.ArrowException:
            wrong = [(row, value) for row, value in enumerate(values.to_pylist(), 1) if not _is_number(value)]
        if wrong:
            raise UsageError(
                f"fields.{field}: {listing(len(wrong), 'row', [f'row {row} ({value!r})' for row, value in wrong[:3]])} in "
                f"column {column!r} of {source.path} {'is' if len(wrong) == 1 else 'are'} not a finite number; correct the "
                "table, or leave the cell empty where there is no value."
            )


def listing(count: int, unit: str, examples: Sequence[str]) -> str:
    """Such as ``5 rows: row 2 (x.png), row 7 (y.png), row 9 (z.png) and 2 more``."""
    more = f" and {count - len(examples):,} more" if count > len(examples) else ""
    return f"{count:,} {unit}{'' if count == 1 else 's'}: {', '.join(examples)}{more}"


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    try:
        return abs(float(value)) < float("inf")
    except (TypeError, ValueError):
        return False


def _read_csv(path: Path) -> pa.Table:
    with pyarrow.csv.open_csv(path) as reader:
        names: Iterable[str] = reader.schema.names
    # As texts: guessed types would turn a key 007 into 7 and a class "true" into a bool.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(path, convert_options=convert, parse_options=parse)


def _read_json_lines(path: Path) -> pa.Table:
    # pyarrow.json would take texts that look like dates for dates.
    parts: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.encode())
            except DecodeError as error:
                raise ValueError(f"line {number} is {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object with a value per column")
            rows.append(row)
            if len(rows) == _LINES_AT_ONCE:
                parts.append(_columns_of(rows))
                rows = []
    parts.append(_columns_of(rows))
    return pa.concat_tables(parts, promote_options="permissive")


def _columns_of(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"column {name!r} mixes types ({error})") from None
    return pa.table(columns)


def _named_columns(job: PreprocessJob, columns: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Every column that the job names, and where it does so."""
    named = [
        (column, f"columns.{field}" if field in job.columns else _field_place(field, job.fields[field]))
        for field in job.fields
        for column in columns[field]
    ]
    if job.key is not None:
        named.append((job.key, "key"))
    if isinstance(job.splits, SplitByColumn):
        named.append((job.splits.column, "splits.column"))
    elif job.splits.group is not None:
        named.append((job.splits.group, "splits.group"))
    return named


def _field_place(field: str, spec: FieldSpec) -> str:
    return f"fields.{field} ({spec.type})"


def _keys(table: pa.Table, column: str | None) -> list[str]:
    if column is None:
        width = max(6, len(str(table.num_rows)))
        return [f"{row:0{width}d}" for row in range(1, table.num_rows + 1)]
    values = table.column(column).to_pylist()
    empty = [f"row {row}" for row, value in enumerate(values, 1) if value is None]
    if empty:
        raise UsageError(
            f"key: column {column!r} is empty in {listing(len(empty), 'row', empty[:3])}; every row needs one."
        )
    keys = [class_text(value) for value in values]
    bad = [f"row {row} ({key!r})" for row, key in enumerate(keys, 1) if not _KEY.fullmatch(key)]
    if bad:
        raise UsageError(
            f"key: column {column!r} can't name samples in {listing(len(bad), 'row', bad[:3])}: WebDataset ends a key at the "
            "first dot, so keys hold no dots, and no control characters, backslashes or empty parts either."
        )
    if len(set(keys)) < len(keys):
        counts = Counter(keys)
        twice = [key for key in dict.fromkeys(keys) if counts[key] > 1]
        rows = [row for row, key in enumerate(keys, 1) if key == twice[0]]
        raise UsageError(
            f"key: column {column!r} is not unique: {len(twice):,} key{' stands' if len(twice) == 1 else 's stand'} more than "
            f"once, such as {twice[0]!r} in rows {rows[0]} and {rows[1]}; choose another column, or none to count the rows."
        )
    return keys
