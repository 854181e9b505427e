"""Tables: read as they are written, and refused with the row and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest

from ray_mm.config.fields import LabelField
from ray_mm.data.decode.numeric import class_text
from ray_mm.errors import UsageError
from ray_mm.preprocessing.table import (
    cell_classes,
    label_classes,
    open_source,
    read_table,
    require_numbers,
)
from tests.preprocessing.tables import make_job, write_csv, write_json_lines

_ROWS: list[dict[str, Any]] = [
    {"key": "007", "text": "a, b\nc", "label": "yes", "number": 1.5},
    {"key": "08", "text": None, "label": "no", "number": -2},
]


def _open(table: Path, **more: Any) -> Any:
    return open_source(make_job(table, **({"fields": {"text": {"type": "text"}}} | more)))


def test_a_csv_keeps_every_value_as_it_is_written(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", _ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # what spreadsheets write first
    assert read_table(path).to_pylist() == [
        {"key": "007", "text": "a, b\nc", "label": "yes", "number": "1.5"},
        {"key": "08", "text": None, "label": "no", "number": "-2"},
    ]


def test_json_lines_keep_types_and_lists_and_what_looks_like_a_date(tmp_path: Path) -> None:
    rows = [{"day": "2026-01-01", "series": [[1, 2.5]], "n": 1}, {"series": None, "day": "x"}]
    path = write_json_lines(tmp_path / "t.jsonl", rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    assert read_table(path).to_pylist() == [
        {"day": "2026-01-01", "series": [[1.0, 2.5]], "n": 1},
        {"day": "x", "series": None, "n": None},
    ]


def test_parquet_is_read(tmp_path: Path) -> None:
    pandas.DataFrame(_ROWS).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").to_pylist() == _ROWS


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"a,b\n1,2,3\n", "Expected 2 columns, got 3"),
        ("t.csv", b"a\n\xff\n", "invalid UTF8"),
        ("t.csv", b"", "the table is empty"),
        ("t.csv", b"a,a\n1,2\n", "has the column 'a' twice"),
        ("t.jsonl", b'{"a": 1}\n{"a": ', r"line 2 is not readable JSON \("),
        ("t.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", b'{"a": ' + b"[" * 100_000, "line 1 is not readable JSON"),
        ("t.jsonl", b'{"a": 1}\n{"a": "x"}\n', "column 'a' mixes types"),
        ("t.parquet", b"PAR1 no", "can't be read"),
        ("t.xlsx", b"", r"must end in \.csv, \.jsonl or \.parquet"),
    ],
)
def test_a_table_that_can_not_be_read_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_table(tmp_path / name)


def test_half_a_character_in_json_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"a": "turn \\ud83d left"}\n')
    assert read_table(tmp_path / "t.jsonl").column("a").to_pylist() == ["turn \ufffd left"]


def test_a_table_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"t\.csv: no such file"):
        _open(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("text\n")
    with pytest.raises(UsageError, match="has no rows; expected one per sample"):
        _open(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"columns": {"text": "txt"}}, r"columns\.text: .*t\.csv has no column 'txt'; did you mean 'text'\?"),
        (
            {"fields": {"lable": {"type": "label"}}},
            r"fields\.lable \(label\): .* has no column 'lable'; did you mean 'label'\?",
        ),
        ({"key": "id"}, r"key: .* has no column 'id'; its columns are key, text, label, number\."),
        ({"splits": {"by": "column", "column": "split"}}, r"splits\.column: .* has no column 'split'"),
        ({"splits": {"by": "hash", "group": "keys"}}, r"splits\.group: .* did you mean 'key'"),
        (
            {"splits": {"by": "hash", "group": "lot"}},
            r"has no column 'lot'; its columns are key, text, label, number\.$",
        ),
        ({"root": "/no/such/folder"}, r"root: /no/such/folder is not a folder"),
    ],
)
def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    table = write_csv(tmp_path / "t.csv", _ROWS)
    with pytest.raises(UsageError, match=reason):
        _open(table, **more)


def test_a_table_with_another_separator_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text;label\na;b\n")
    with pytest.raises(UsageError, match=r"its only column is 'text;label'\. Is it separated by \";\"\?"):
        _open(tmp_path / "t.csv")


def test_a_measurement_is_not_taken_for_classes(tmp_path: Path) -> None:
    rows = [{"label": f"{100 + 0.1 * row:.1f}"} for row in range(20)]
    source = open_source(make_job(write_csv(tmp_path / "t.csv", rows), ["label"]))
    with pytest.raises(
        UsageError,
        match=r"20 different ones \(100\.0, .*too many to be classes.*label: \{type: label, target: number\}",
    ):
        label_classes(source, "label", LabelField())
    few = [{"label": f"{row % 3}.5"} for row in range(20)]
    source = open_source(make_job(write_csv(tmp_path / "few.csv", few), ["label"]))
    assert label_classes(source, "label", LabelField()) == ("0.5", "1.5", "2.5")
    whole = [{"label": str(row)} for row in range(20)]
    source = open_source(make_job(write_csv(tmp_path / "whole.csv", whole), ["label"]))
    assert len(label_classes(source, "label", LabelField())) == 20, "as the ids of people are"


def test_keys_are_the_column_or_the_row_numbers_from_one(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", _ROWS)
    assert _open(table, key="key").keys == ["007", "08"]
    assert _open(table).keys == ["000001", "000002"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["a", "b", "a", "a"], "1 key stands more than once, such as 'a' in rows 1 and 3"),
        (["a", None, "b"], "is empty in 1 row: row 2"),
        (
            ["a", "b.jpg", "../c", "/d", "e//f", "g\\h"],
            r"5 rows: row 2 \('b.jpg'\), row 3 \('../c'\), row 4 .* and 2 more",
        ),
    ],
)
def test_keys_that_can_not_name_samples_are_refused(tmp_path: Path, keys: list[str | None], reason: str) -> None:
    table = write_csv(tmp_path / "t.csv", [{"key": key, "text": "x"} for key in keys])
    with pytest.raises(UsageError, match=reason):
        _open(table, key="key")


def test_a_class_has_one_name_in_every_kind_of_table() -> None:
    assert [class_text(value) for value in ("7", 7, 7.0, 7.5, True, "true")] == ["7", "7", "7", "7.5", "true", "true"]


def test_classes_are_all_values_sorted_or_those_given(tmp_path: Path) -> None:
    spec = LabelField()
    rows = [{"text": "x", "digit": digit, "word": word} for digit, word in [(10, "b"), (9, "A"), (0, None), (9, "b")]]
    source = open_source(
        make_job(
            write_json_lines(tmp_path / "t.jsonl", rows),
            fields={name: {"type": "label"} for name in ("digit", "word")},
        )
    )
    assert label_classes(source, "digit", spec) == ("0", "9", "10")
    assert label_classes(source, "word", spec) == ("A", "b")
    assert label_classes(source, "word", LabelField(classes=("b", "c", "A"))) == ("b", "c", "A")
    with pytest.raises(
        UsageError, match=r"fields\.word\.classes: 2 rows: row 1 \('b'\), row 4 \('b'\) in column 'word'"
    ):
        label_classes(source, "word", LabelField(classes=("A",)))


def test_an_empty_label_column_is_refused(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"text": "x", "label": None}])
    source = _open(table, fields={"label": {"type": "label"}})
    with pytest.raises(UsageError, match=r"fields\.label: column 'label' .* is empty"):
        label_classes(source, "label", LabelField())


def test_numbers_are_checked_with_row_and_value(tmp_path: Path) -> None:
    values = ["1", " 2.5e3", None, "high", "nan", "-inf", "4"]
    table = write_csv(tmp_path / "t.csv", [{"key": f"k{i}", "number": value} for i, value in enumerate(values)])
    source = _open(table, fields={"number": {"type": "label", "target": "number"}})
    with pytest.raises(
        UsageError, match=r"fields\.number: 3 rows: row 4 \('high'\), row 5 \('nan'\), row 6 \('-inf'\) in"
    ):
        require_numbers(source, "number")


_SETS = LabelField(target="classes")


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (["b", "a", "b"], ["b", "a"]),
        ([], []),
        ([1, 2.0, True], ["1", "2", "true"]),
        ("b; a;b;", ["b", "a"]),
        ("one class, with a comma", ["one class, with a comma"]),
        ("[]", []),
        (' ["x;y", 3]', ["x;y", "3"]),
    ],
)
def test_a_cell_names_any_number_of_classes(cell: object, names: list[str]) -> None:
    assert cell_classes(cell) == names


def test_classes_of_several_per_row_are_all_that_occur_or_those_given(tmp_path: Path) -> None:
    rows = [{"text": "x", "tags": tags} for tags in (["b", "a"], [], None, ["b", "c"])]
    source = _open(
        write_json_lines(tmp_path / "t.jsonl", rows), fields={"tags": {"type": "label", "target": "classes"}}
    )
    assert label_classes(source, "tags", _SETS) == ("a", "b", "c")
    given = _SETS.model_copy(update={"classes": ("c", "b", "a", "d")})
    assert label_classes(source, "tags", given) == ("c", "b", "a", "d")
    with pytest.raises(
        UsageError, match=r"fields\.tags: 2 rows: row 1 \('b' is none of the 2 classes\), row 4 .*; between them"
    ):
        label_classes(source, "tags", _SETS.model_copy(update={"classes": ("a", "c")}))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ([3, 4], r"row 1 \(has '3', expected a list of classes\)"),
        ([["a", ""], ["b"]], r"row 1 \(has '' in its list, which can't name a class\)"),
        (["[1", "a"], r"1 row: row 1 \(not readable JSON"),
        ([None, []], r"no row of column 'tags' .* names a class; list them in classes"),
    ],
)
def test_a_cell_that_names_no_classes_is_refused(tmp_path: Path, tags: list[object], reason: str) -> None:
    table = write_json_lines(tmp_path / "t.jsonl", [{"text": "x", "tags": each} for each in tags])
    source = _open(table, fields={"tags": {"type": "label", "target": "classes"}})
    with pytest.raises(UsageError, match=rf"fields\.tags: .*{reason}"):
        label_classes(source, "tags", _SETS)
