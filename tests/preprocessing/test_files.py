"""The files that a table names: found, counted, and listed where they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_mm.config.fields import FieldSpec
from ray_mm.errors import UsageError
from ray_mm.preprocessing.files import MISSING, NO_FILE, look_at_files
from ray_mm.preprocessing.table import open_source
from tests.preprocessing.tables import make_job, write_csv, write_file, write_json_lines


def _fields(table: Path, **more: object) -> dict[str, FieldSpec]:
    return dict(make_job(table, ["image", "audio"], **more).fields)


def test_sizes_and_times_are_those_of_the_files(tmp_path: Path) -> None:
    write_file(tmp_path / "data/a.jpg", b"12345")
    os.utime(tmp_path / "data/a.jpg", ns=(1, 1_234_567_890_123_456_789))
    rows = [{"image": "a.jpg", "audio": None}, {"image": str(tmp_path / "data/a.jpg"), "audio": "a.jpg"}]
    job = make_job(write_csv(tmp_path / "t.csv", rows), ["image", "audio"], root=str(tmp_path / "data"))
    states = look_at_files(open_source(job), dict(job.fields), "error")
    assert states["image"].sizes.tolist() == [5, 5]
    assert states["audio"].sizes.tolist() == [NO_FILE, 5]
    assert states["image"].times.tolist() == [1_234_567_890_123_456_789] * 2


def test_missing_files_are_counted_and_the_first_three_are_shown(tmp_path: Path) -> None:
    write_file(tmp_path / "empty.jpg", b"")
    write_file(tmp_path / "good.jpg", b"x")
    names = ["good.jpg", "empty.jpg", "no1.jpg", "", "folder", "no2.jpg", "no3.jpg"]
    (tmp_path / "folder").mkdir()
    rows = [{"image": name, "audio": "no.wav" if i == 1 else None} for i, name in enumerate(names)]
    job = make_job(write_csv(tmp_path / "t.csv", rows), ["image", "audio"])
    with pytest.raises(UsageError) as caught:
        look_at_files(open_source(job), dict(job.fields), "error")
    message = str(caught.value)
    assert "6 cells: " in message and "and 3 more" in message
    assert f"row 2 audio {tmp_path}/no.wav (no such file), row 2 image {tmp_path}/empty.jpg (an empty file)" in message
    assert f"row 3 image {tmp_path}/no1.jpg (no such file)" in message
    assert f"now {tmp_path}" in message and "on_missing: absent" in message
    states = look_at_files(open_source(job), dict(job.fields), "absent")
    assert states["image"].sizes.tolist() == [1, MISSING, MISSING, NO_FILE, MISSING, MISSING, MISSING]


def test_a_picture_that_is_no_path_is_refused(tmp_path: Path) -> None:
    table = write_json_lines(tmp_path / "t.jsonl", [{"image": None}, {"image": [1, 2]}])
    job = make_job(table, ["image"])
    with pytest.raises(
        UsageError, match=r"fields\.image: 1 row: row 2 \(\[1, 2\]\) in column 'image' .*: expected the path"
    ):
        look_at_files(open_source(job), dict(job.fields), "error")


def test_a_path_that_no_file_system_takes_is_a_missing_file(tmp_path: Path) -> None:
    table = write_json_lines(tmp_path / "t.jsonl", [{"image": "a\0b"}, {"image": "x" * 5000}])
    job = make_job(table, ["image"])
    with pytest.raises(UsageError, match="2 cells"):
        look_at_files(open_source(job), dict(job.fields), "error")
