"""A submitted job is started again where it failed, ended when its time is over, and left alone where its end was meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_mm.errors import UsageError
from ray_mm.launch.attempts import MODULE, Attempts, require_version
from ray_mm.version import __version__
from tests.launch.cluster import REPOSITORY

_WRAPPED = """
import sys
from ray_mm.launch.attempts import Attempts
command, retries, limit, grace = eval(sys.argv[1])
sys.exit(Attempts(command, retries, limit, grace, first_pause_s=0.01).run())
"""


def script(folder: Path, code: str) -> list[str]:
    """A command that writes down each of its starts, and goes on with this code; ``starts`` is how many there were."""
    (folder / "run.py").write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        f"seen = Path({str(folder / 'starts')!r})\nseen.open('a').write('.')\nstarts = len(seen.read_text())\n{code}\n"
    )
    return [sys.executable, str(folder / "run.py")]


def start(
    command: list[str], retries: int = 0, limit: float | None = None, grace: float = 30.0
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRAPPED, repr((command, retries, limit, grace))],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    told = process.communicate(timeout=60)[1]
    return process.returncode, told


def num_starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


@pytest.mark.parametrize(
    ("fails", "retries", "status", "starts"),
    [
        ("sys.exit(0)", 3, 0, 1),
        ("sys.exit(1 if starts < 3 else 0)", 3, 0, 3),
        ("os.kill(os.getpid(), signal.SIGKILL if starts < 2 else 0)", 1, 0, 2),
        ("sys.exit(1)", 2, 1, 3),
        ("sys.exit(1)", 0, 1, 1),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, 1, 2),
        ("sys.exit(2)", 3, 2, 1),
        ("sys.exit(3)", 3, 3, 1),
        ("sys.exit(130)", 3, 130, 1),
        ("sys.exit(143)", 3, 143, 1),
    ],
)
def test_what_failed_is_started_again_and_what_was_decided_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: str, retries: int, status: int, starts: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        found = Attempts(script(tmp_path, fails), retries, first_pause_s=0.01).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (found, num_starts(tmp_path)) == (status, starts)
    assert capsys.readouterr().err.count("follows in") == starts - 1


def test_a_run_is_asked_to_save_when_its_time_is_over(tmp_path: Path) -> None:
    saves = f"""
def save(*_):
    Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""
    status, told = ended(start(script(tmp_path, saves), retries=3, limit=3))
    assert status == 143
    assert (tmp_path / "saved").exists() and num_starts(tmp_path) == 1
    assert "ended by its time limit of 3 s; what it saved is kept" in told


def test_a_run_that_does_not_end_in_its_time_is_killed(tmp_path: Path) -> None:
    status, _ = ended(
        start(script(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"), 3, 1.5, 0.5)
    )
    assert (status, num_starts(tmp_path)) == (143, 1)


def test_a_gate_that_refuses_while_time_runs_out_has_refused(tmp_path: Path) -> None:
    refuses = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); time.sleep(60)"
    assert ended(start(script(tmp_path, refuses), 3, 3))[0] == 3


def test_the_time_limit_is_over_all_starts(tmp_path: Path) -> None:
    status, _ = ended(start(script(tmp_path, "time.sleep(0.5); sys.exit(1)"), retries=100, limit=2.5))
    assert status == 143
    assert 2 <= num_starts(tmp_path) < 10


def test_a_stop_is_told_to_the_run_once_and_starts_nothing_more(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    """As Ray does it: every process gets the signal. A second one would end a training before it has saved."""
    counts = f"""
def save(*_):
    Path({str(tmp_path / "told")!r}).open('a').write('.')
signal.signal(signal.SIGTERM, save)
Path({str(tmp_path / "ready")!r}).touch()
while not Path({str(tmp_path / "told")!r}).exists():
    time.sleep(0.02)
time.sleep(1)  # in which a second one would come
sys.exit(1)
"""
    process = start(script(tmp_path, counts), retries=3)
    wait_for((tmp_path / "ready").exists)
    child = next(int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGTERM)
    assert ended(process)[0] == 143
    assert (num_starts(tmp_path), (tmp_path / "told").read_text()) == (1, ".")


def test_an_image_of_another_version_is_refused_with_both() -> None:
    require_version(__version__)
    with pytest.raises(UsageError, match=rf"the nodes have ray_mm {__version__}, and the job was submitted by 9\.9\.9"):
        require_version("9.9.9")


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (["--submitted-by", "9.9.9"], {}, "install the same on both sides"),
        (
            ["--submitted-by", __version__],
            {"RAY_MM_REFERENCES": json.dumps({"KEY": {"file": "/no/such/file"}})},
            "runtime.env.KEY: the node",
        ),
    ],
)
def test_what_is_wrong_on_the_cluster_ends_with_status_2(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], told: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", MODULE, "job.json", "--retries", "5", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("ray-mm: ") and told in ran.stderr and "Traceback" not in ran.stderr
