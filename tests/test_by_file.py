"""Tests in several processes: what one process leaves undone when it dies, another does, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_all_tests_are_run_once_though_a_process_dies(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.by_file import ByFile\n"
        "def pytest_xdist_make_scheduler(config, log):\n"
        "    return ByFile(config, log)\n"
    )
    for file in range(6):
        lines = ["import os", "from pathlib import Path"]
        for test in range(4):
            name = f"{file}-{test}"
            lines += [f"def test_{test}():", f"    open(Path(__file__).with_name('ran'), 'a').write('{name}\\n')"]
            lines += ["    os._exit(1)"] * (name in ("2-1", "5-3"))
        (tmp_path / f"test_{file}.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert "2 failed, 22 passed" in run.stdout
    assert "crashed while running 'test_2.py::test_1'" in run.stdout
    assert sorted((tmp_path / "ran").read_text().split()) == [f"{f}-{t}" for f in range(6) for t in range(4)]
