"""A node says what is wrong with a folder that all of them should see; what a cluster makes of it: launch/test_security.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.seen_by_all import problem_with


def test_a_folder_that_is_seen_and_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    assert problem_with(str(tmp_path / "mark")) is None
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ("/no/such/folder/mark", "does not see what is written there"),
        ("/proc/version", "can't write there ("),
    ],
)
def test_one_that_is_not_is_told(mark: str, problem: str) -> None:
    found = problem_with(mark)
    assert found is not None and found.startswith(problem)
