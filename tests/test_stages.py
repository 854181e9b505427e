"""Every kind of job reaches its stage, and nothing is started for one that can't run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ray_mm
from ray_mm.config.load import JOB_KINDS
from ray_mm.errors import JobFileError, UsageError
from ray_mm.running import run_job
from tests.config.jobs import SMALLEST
from tests.preprocessing.tables import make_rows, write_csv


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_whose_input_is_missing_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import ray

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(UsageError) as caught:
        run_job(SMALLEST[kind])
    assert str(tmp_path) in str(caught.value), "the message names what is missing"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / SMALLEST[kind]["output"]).exists(), "nothing was written"


def test_a_wrong_job_is_refused_from_python_as_well() -> None:
    with pytest.raises(JobFileError, match=r"train\.epoch: unknown key 'epoch'; did you mean 'epochs'\?"):
        ray_mm.run(SMALLEST["train"], overrides={"train.epoch": 3})


@pytest.mark.ray
def test_a_job_runs_from_python_and_returns_its_result(local_ray: None, tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", make_rows(tmp_path, num_rows=6))
    job = {
        "kind": "preprocess",
        "name": "tiny",
        "table": str(tmp_path / "table.csv"),
        "fields": {"vector": {"type": "vector"}, "label": {"type": "label"}},
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
        "output": "overridden",
    }
    result = ray_mm.run(job, overrides={"output": tmp_path / "out"})
    assert (result["kind"], result["status"]) == ("preprocess", "done")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
