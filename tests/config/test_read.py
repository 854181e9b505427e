"""YAML means what YAML 1.2 says, and every value knows its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.read import read_mapping, read_value
from ray_mm.errors import JobFileError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("-2E+4", -2e4),
        (".5", 0.5),
        ("3.", 3.0),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-7", -7),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1:30:00", "1:30:00"),
        ("2026-11-03", "2026-11-03"),
        ("'7'", "7"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("=", "="),
    ],
)
def test_a_plain_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_that_number(number: float) -> None:
    assert read_value(repr(number)) == number


def read(folder: Path, text: str | bytes) -> tuple[dict[str, Any], dict[Any, int]]:
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_mapping(path)


def test_every_key_and_list_item_has_its_line(tmp_path: Path) -> None:
    _, lines = read(tmp_path, "a: 1\nb:\n  c: [x,\n    y]\n  d: {e: 2}\n")
    assert lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 3,
        ("b", "c", 1): 4,
        ("b", "d"): 5,
        ("b", "d", "e"): 5,
    }


def test_anchors_and_merge_keys_work_and_keep_their_lines(tmp_path: Path) -> None:
    content, lines = read(tmp_path, "base: &base\n  x: 1\nother:\n  <<: *base\n  y: 2\n")
    assert content == {"base": {"x": 1}, "other": {"x": 1, "y": 2}}
    assert lines["other", "x"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: not valid YAML: key 'a' stands twice."),
        ("a:\n  b: 1\n  b: 2\n", ":3: not valid YAML: key 'b' stands twice."),
        ("a: [1\nb: 2\n", "not valid YAML: a ']' is missing: what was opened in line 1 is not closed"),
        ("a: 1\n\tb: 2\n", ":2: not valid YAML: a tab can't indent a line; use spaces"),
        ("a: 1\n b: 2\n", ":2: not valid YAML: this line is indented differently from the ones above."),
        ("a:\n  b: 1\n # why\n   c: 2\n", ":4: not valid YAML: this line is indented differently from the ones above."),
        ("a:\n  b: 1\n c: 2\n", ":3: not valid YAML: this line is indented differently from the ones above."),
        ("a: b: c\n", ":1: not valid YAML: a value that holds ': ' must stand in quotes."),
        ("a: 'b\nc: 1\n", "not valid YAML: the quote that was opened in line 1 is not closed."),
        ("a: 1\nb\nc: 2\n", "not valid YAML: expected key: value."),
        ("? [a, b]\n: 1\n", ":1: not valid YAML: a key must be a plain text"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1: not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        ("a: *nowhere\n", ":1: not valid YAML: found undefined alias"),
        ("a: &a [*a]\n", "it is nested too deep, or contains itself."),
        ("a: " + "[" * 5000, "it is nested too deep, or contains itself."),
        ("a: \x00", "not valid YAML"),
        ("", "a job file is a mapping that begins with kind:; found nothing."),
        ("- a\n", "a job file is a mapping that begins with kind:; found a list."),
        ("just words", "found a text."),
        (b"\xff\xfe\xfa", "is not UTF-8 text (invalid start byte at byte 0)."),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_the_reason(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith(str(tmp_path / "job.yaml")) and "\n" not in message


def test_a_missing_file_is_told_as_missing(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"nothing\.yaml: no such job file\."):
        read_mapping(tmp_path / "nothing.yaml")


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="is a folder; expected a job file"):
        read_mapping(tmp_path)
