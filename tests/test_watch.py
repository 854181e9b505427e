"""A run of tests that is cut short has told what failed, and what it was at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TESTS = """
import time
from tests import watch

watch._LONG_S = 0.2

def test_right():
    time.sleep(1.0)

def test_wrong():
    assert 6 * 7 == 43
"""


def test_failures_and_the_standing_are_told_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "from tests.watch import Watch\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(Watch(config.pluginmanager.get_plugin('terminalreporter'), 0.5))\n"
    )
    (tmp_path / "test_some.py").write_text(_TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert run.returncode == 1
    before, _, _ = run.stdout.partition("= FAILURES =")
    assert "[0:00] 0 tests done; running: test_some.py::test_right for 0 s" in before
    assert "[0:01] FAILED in call: test_some.py::test_wrong" in before
    assert "assert (6 * 7) == 43" in before
