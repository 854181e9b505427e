"""Which cells name files, and what is known of those files before any is opened: size and time of change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import FieldSpec, has_streams, is_mask
from ray_mm.errors import UsageError
from ray_mm.preprocessing.summary import BadCell
from ray_mm.preprocessing.table import Source, listing

_THREADS = 16
_AT_ONCE = 1024
_SURELY_WRONG = 3  # cells: fewer may all be missing by chance
NO_FILE = -1
"""Size of a cell that names no file: it is empty, or holds the value itself."""
MISSING = -2
"""Size of a file that is not there, or is no file, or is empty."""


@dataclass(frozen=True)
class FileStates:
    """The files that one field's cells name in one column.

    Attributes:
        field: its name.
        number: of the column, among those of the field.
        column: its name.
        sizes: int64 [rows], bytes; ``NO_FILE`` or ``MISSING``.
        times: int64 [rows], time of the last change in ns; 0 where there is no file.
    """

    field: str
    number: int
    column: str
    sizes: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]


def file_named(spec: FieldSpec, cell: Any) -> str | None:
    """The path that a cell holds, or None where it holds a value or nothing."""
    if not isinstance(cell, str) or cell == "":
        return None
    if spec.type in ("image", "audio", "video") or is_mask(spec):
        return cell
    if spec.type in ("series", "points", "vector"):
        text = cell.strip()
        return None if text.startswith("[") or (spec.type == "vector" and _is_number(text)) else cell
    return None


def look_at_files(source: Source, fields: dict[str, FieldSpec], on_missing: str) -> dict[str, FileStates]:
    """Asks the file system about every file that the table names.

    Returns:
        Field, and for a series of streams ``<field>.<column>`` → its files.

    Raises:
        UsageError: a picture's, mask's or recording's cell is no path; or files are missing and ``on_missing`` is ``error``.
    """
    found: dict[str, FileStates] = {}
    missing: list[tuple[int, str]] = []
    num_missing = 0
    known: dict[str, _State] = {}
    for key, field, number in _columns_of_files(source, fields):
        spec, column = fields[field], source.columns[field][number]
        cells = source.values(column)
        names = [file_named(spec, cell) for cell in cells]
        if spec.type in ("image", "audio", "video") or is_mask(spec):
            _require_paths(source, field, column, cells)
        _look(source.root, sorted({name for name in names if name is not None} - known.keys()), known)
        states = [_NOT_NAMED if name is None else known[name] for name in names]
        found[key] = FileStates(
            field,
            number,
            column,
            np.array([state.size for state in states], np.int64),
            np.array([state.time for state in states], np.int64),
        )
        rows = np.flatnonzero(found[key].sizes == MISSING)
        num_filled = sum(cell is not None and cell != "" for cell in cells)
        if on_missing == "absent" and len(rows) == num_filled >= _SURELY_WRONG:
            row = int(rows[0])
            named_by = f"fields.{field}" if key != field or column == field else f"columns.{field}"
            raise UsageError(
                f"{named_by}: none of the {len(rows):,} cells of column {column!r} of {source.path} names a usable file "
                f"(row {row + 1}: {source.root / str(names[row])}: {states[row].problem}); is it the right column? If it is, "
                f"say with root: which folder its paths start from (now {source.root})."
            )
        num_missing += len(rows)
        missing += [
            (int(row), f"row {row + 1} {key} {source.root / str(names[row])} ({states[row].problem})")
            for row in rows[:3]
        ]
    if num_missing and on_missing == "error":
        examples = [text for _, text in sorted(missing)[:3]]
        raise UsageError(
            f"table: {source.path} names files that can't be used in {listing(num_missing, 'cell', examples)}. Correct the "
            f"table, say with root: which folder its paths start from (now {source.root}), or set on_missing: absent."
        )
    return found


def missing_cells(source: Source, files: dict[str, FileStates]) -> list[BadCell]:
    """Every cell whose file is not there, with what is wrong with it."""
    cells = []
    for states in files.values():
        names = source.table.column(states.column)
        for row in np.flatnonzero(states.sizes == MISSING).tolist():
            name = names[row].as_py()
            problem = _state(source.root, name).problem or "was not there when the run began"
            cells.append(BadCell(row=row + 1, field=states.field, reason=f"{source.root / name}: {problem}"))
    return cells


def _columns_of_files(source: Source, fields: Mapping[str, FieldSpec]) -> Iterator[tuple[str, str, int]]:
    """Every column whose cells may name files: its key, its field, and its number among the field's columns."""
    for field, spec in sorted(fields.items()):
        if has_streams(spec):
            for number, column in enumerate(spec.members):
                yield f"{field}.{column}", field, number
        elif (is_mask(spec) or spec.type not in ("text", "label")) and len(source.columns[field]) == 1:
            yield field, field, 0


@dataclass(frozen=True)
class _State:
    size: int
    time: int
    problem: str = ""


_NOT_NAMED = _State(NO_FILE, 0)


def _state(root: Path, name: str) -> _State:
    try:
        found = os.stat(root / name)  # noqa: PTH116 - half the time of Path.stat, and there may be millions
    except (OSError, ValueError) as error:
        return _State(MISSING, 0, "no such file" if isinstance(error, FileNotFoundError) else _reason(error))
    if not stat.S_ISREG(found.st_mode):
        return _State(MISSING, 0, "a folder" if stat.S_ISDIR(found.st_mode) else "not a plain file")
    if found.st_size == 0:
        return _State(MISSING, 0, "an empty file")
    return _State(found.st_size, found.st_mtime_ns)


def _look(root: Path, names: Sequence[str], known: dict[str, _State]) -> None:
    def states(part: Sequence[str]) -> list[tuple[str, _State]]:
        return [(name, _state(root, name)) for name in part]

    # Threads, because on a network disk each question waits for an answer.
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(states, [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]):
            known.update(found)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _require_paths(source: Source, field: str, column: str, cells: list[Any]) -> None:
    wrong = [(row, cell) for row, cell in enumerate(cells, 1) if cell is not None and not isinstance(cell, str)]
    if wrong:
        raise UsageError(
            f"fields.{field}: {listing(len(wrong), 'row', [f'row {row} ({cell!r:.60})' for row, cell in wrong[:3]])} in "
            f"column {column!r} of {source.path}: expected the path of a file, or an empty cell."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
