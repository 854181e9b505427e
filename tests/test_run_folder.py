"""An output folder belongs to one job, and its result can always be written."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.load import Job, load_job
from ray_mm.errors import OutputFolderError
from ray_mm.run_folder import open_run_folder, versions, wait_until_free
from tests.config.jobs import SMALLEST


def job(folder: Path, kind: str = "train", **overrides: Any) -> Job:
    return load_job(SMALLEST[kind], {"output": folder} | overrides)


def test_opening_a_folder_writes_the_job_with_every_default(tmp_path: Path) -> None:
    opened = open_run_folder(job(tmp_path / "run"))
    assert opened.path == tmp_path / "run"
    content = json.loads((tmp_path / "run" / "job.json").read_text())
    assert content["train"]["optimizer"]["lr"] == 1e-3
    assert load_job(content) == opened.job


def test_the_same_job_opens_its_folder_again(tmp_path: Path) -> None:
    open_run_folder(job(tmp_path / "run"))
    open_run_folder(job(tmp_path / "run", **{"train.epochs": 99}), settled=("model", "seed"))
    assert json.loads((tmp_path / "run" / "job.json").read_text())["train"]["epochs"] == 99


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    open_run_folder(job(tmp_path))
    assert (tmp_path / "job.json").is_file()


@pytest.mark.parametrize("other", [job(Path("x"), "evaluate"), job(Path("x"), name="another")])
def test_the_folder_of_another_job_is_refused(tmp_path: Path, other: Job) -> None:
    open_run_folder(other.model_copy(update={"output": str(tmp_path / "run")}))
    before = (tmp_path / "run" / "job.json").read_text()
    with pytest.raises(
        OutputFolderError, match=f"holds a run of the {other.kind} job '{other.name}', not of the train"
    ):
        open_run_folder(job(tmp_path / "run"))
    assert (tmp_path / "run" / "job.json").read_text() == before


def test_a_changed_setting_that_is_settled_is_refused_with_both_values(tmp_path: Path) -> None:
    open_run_folder(job(tmp_path))
    with pytest.raises(
        OutputFolderError,
        match=r"made with other settings \(seed was 0 and is now 4\); choose another output, .* --resume force",
    ):
        open_run_folder(job(tmp_path, seed=4), settled=("model.fusion", "seed"))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OutputFolderError, match="exists and is not a run's folder"):
        open_run_folder(job(tmp_path))


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputFolderError, match=r"run"):
        open_run_folder(job(tmp_path / "run"))


def test_a_folder_below_a_file_is_refused_as_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFolderError, match="can't be"):
        open_run_folder(job(tmp_path / "file" / "run"))


def test_a_damaged_job_file_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(OutputFolderError, match="can't be read as JSON"):
        open_run_folder(job(tmp_path))


def test_a_result_names_the_job_the_versions_and_the_time(tmp_path: Path) -> None:
    folder = open_run_folder(job(tmp_path))
    assert folder.read_result() is None
    result = folder.write_result("done", {"accuracy": 0.5}, note="first")
    assert (result["kind"], result["name"], result["status"]) == ("train", "fit", "done")
    assert result["metrics"] == {"accuracy": 0.5} and result["note"] == "first"
    assert result["versions"] == versions() and {"ray_mm", "python", "ray", "torch"} <= versions().keys()
    assert 0 <= result["seconds"] < 60
    assert folder.read_result() == result


def test_a_result_that_json_can_not_say_is_written_as_what_it_can(tmp_path: Path) -> None:
    metrics = {
        "loss": float("nan"),
        "best": float("inf"),
        "f1": np.float32(0.5),
        "confusion": np.arange(4).reshape(2, 2),
        "subsets": {"image": {"r2": np.float64("nan"), "count": np.int64(3)}},
    }
    result = open_run_folder(job(tmp_path)).write_result(
        "done", metrics, report=tmp_path / "report.html", sizes=(1, 64)
    )
    assert result["metrics"] == {
        "loss": None,
        "best": None,
        "f1": 0.5,
        "confusion": [[0, 1], [2, 3]],
        "subsets": {"image": {"r2": None, "count": 3}},
    }
    assert (result["report"], result["sizes"]) == (str(tmp_path / "report.html"), [1, 64])
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_folder_that_another_process_works_in_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from ray_mm.config.load import load_job; from ray_mm.run_folder import open_run_folder\n"
        "with open_run_folder(load_job(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "run"
    job_file = tmp_path / "job.yaml"
    job_file.write_text(json.dumps(job(path).model_dump(mode="json")))
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(job_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputFolderError, match=f"another run is at work in .*process {holder.pid} on"),
            open_run_folder(job(path)).locked(),
        ):
            pass
    finally:
        holder.kill()  # a process that is killed lets go
        holder.communicate()
    with open_run_folder(job(path)).locked():
        pass


def test_the_end_of_a_process_that_still_works_on_a_run_is_waited_for(tmp_path: Path) -> None:
    wait_until_free(tmp_path / "absent", 60)
    let_go = threading.Event()
    held = threading.Event()

    def work() -> None:
        with open_run_folder(job(tmp_path)).locked():
            held.set()
            let_go.wait(60)

    working = threading.Thread(target=work)
    working.start()
    assert held.wait(60)
    started = time.monotonic()
    wait_until_free(tmp_path, 0.3)
    assert time.monotonic() - started >= 0.3, "in vain, where it takes too long"
    threading.Timer(0.3, let_go.set).start()
    wait_until_free(tmp_path, 60)
    assert let_go.is_set()
    working.join()
    with open_run_folder(job(tmp_path)).locked():  # who waits does not keep the lock
        pass


def test_a_run_that_goes_on_counts_the_time_of_the_commands_before_it_even_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    monkeypatch.setattr("ray_mm.run_folder._COUNT_EVERY_S", 0.01)
    first = open_run_folder(job(tmp_path))
    written = tmp_path / ".seconds"
    with first.locked(continues=True):
        wait_for(lambda: written.exists() and float(written.read_text()) > 0.1)
        left_by_a_kill = written.read_text()
    written.write_text(left_by_a_kill)
    second = open_run_folder(job(tmp_path))
    with second.locked(continues=True):
        assert second.write_result("done", {})["seconds"] >= float(left_by_a_kill) > 0.1
    anew = open_run_folder(job(tmp_path))
    with anew.locked():
        assert anew.seconds < 0.1
