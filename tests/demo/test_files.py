from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from ray_mm.demo.files import write_files
from ray_mm.demo.scenes import ACTIONS, draw_scene

NUM_SAMPLES = 80


def read_table(table: Path) -> list[dict[str, str | None]]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_the_table_names_files_that_are_there_and_leaves_gaps_where_a_field_is_missing(tmp_path: Path) -> None:
    rows = read_table(write_files(tmp_path, NUM_SAMPLES))
    assert len({row["key"] for row in rows}) == len(rows) == NUM_SAMPLES
    for number, row in enumerate(rows):
        scene = draw_scene(0, number)
        assert row["action"] == scene.action in ACTIONS
        gaps = {field for field in ("camera", "radar", "imu", "instruction") if row[field] is None}
        assert gaps == scene.absent
        for field in {"camera", "radar", "imu"} - gaps:
            assert (tmp_path / str(row[field])).is_file()
    assert any(draw_scene(0, number).absent for number in range(NUM_SAMPLES))
    picture = cv2.imread(str(tmp_path / str(rows[0]["camera"])))
    assert picture is not None and picture.shape == (128, 192, 3)
    assert np.load(tmp_path / str(rows[0]["imu"])).shape[1] == 6


def test_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    table = write_files(tmp_path, 5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write_files(tmp_path, 5) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_was_cut_short_or_made_with_other_settings_is_made_again(tmp_path: Path) -> None:
    table = write_files(tmp_path / "whole", 5)
    (tmp_path / "whole" / "world.json").unlink()
    table.write_text("")
    assert len(read_table(write_files(tmp_path / "whole", 5))) == 5
    assert len(read_table(write_files(tmp_path / "whole", 6))) == 6
    first = table.read_bytes()
    write_files(tmp_path / "whole", 6, seed=1)
    assert table.read_bytes() != first


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_files(tmp_path / name, 4, seed=9)
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
