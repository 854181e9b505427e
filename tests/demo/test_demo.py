from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from ray_mm.config.load import load_job
from ray_mm.demo import run_demo
from ray_mm.demo.jobs import write_jobs
from ray_mm.demo.scenes import ACTIONS, FIELDS


def test_the_jobs_of_the_demo_are_valid_wherever_its_folder_is(tmp_path: Path) -> None:
    folder = tmp_path / 'with "quotes", spaces\\ and $dollars'
    folder.mkdir()
    jobs = write_jobs(folder)
    assert list(jobs) == ["preprocess", "train", "evaluate", "compress"]
    for stage, path in jobs.items():
        job = load_job(path)
        assert job.kind == stage
        assert Path(job.output).parent == folder
        assert f"ray-mm run {shlex.quote(str(path))}\n" in path.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_goes_from_raw_files_to_a_compressed_model_and_all_fields_beat_each_alone(tmp_path: Path) -> None:
    said = io.StringIO()
    # A third of the samples, and so of the time.
    results = run_demo(tmp_path / "demo", Console(file=said, width=120), num_samples=1000)

    assert sum(results["preprocess"]["metrics"]["num_samples"].values()) == 1000
    evaluate = results["evaluate"]["metrics"]
    assert len(evaluate["subsets"]) == 2 ** len(FIELDS) - 1
    for field in FIELDS:
        assert evaluate["accuracy"] >= evaluate["subsets"][field]["accuracy"] + 0.05, field
    assert set(results["evaluate"]["classes"]) == set(ACTIONS)
    assert results["compress"]["metrics"]["gate"] in ("passed", "refused")
    assert Path(results["report"]).stat().st_size > 50_000
    for text in ("generate:", "preprocess:", "train:", "evaluate:", "compress:", "with all fields", results["report"]):
        assert text in said.getvalue()

    # Again: nothing is left to be done, and nothing is.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("result.json")}
    again = io.StringIO()
    assert run_demo(tmp_path / "demo", Console(file=again, width=120), num_samples=1000) == results
    assert again.getvalue().count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("result.json")} == before

    # What is missing is done again, and nothing that came before it.
    (tmp_path / "demo" / "compress" / "result.json").unlink()
    once_more = io.StringIO()
    run_demo(tmp_path / "demo", Console(file=once_more, width=120), num_samples=1000)
    assert once_more.getvalue().count("done before") == 3
    assert json.loads((tmp_path / "demo" / "compress" / "result.json").read_text())["kind"] == "compress"
