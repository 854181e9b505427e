"""What ``ray-mm run`` shows of a stage's result, and how it ends: with the right status, and one paragraph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.calling import ray_mm, write_job


def stage(code: str) -> str:
    """Code that puts a stage of ours in the place of the real ones."""
    return f"""
import ray_mm.running
from ray_mm.errors import *
def run_stage(job, address, resume):
    {code}
ray_mm.running.run_loaded = run_stage
"""


RESULT: Mapping[str, Any] = {
    "kind": "evaluate",
    "name": "score",
    "status": "done",
    "seconds": 3.25,
    "metrics": {
        "accuracy": 0.98765,
        "interval": {"accuracy": [0.97, 0.992]},
        "num_samples": 12345,
        "ece": None,
        "confusion": [[1, 2], [3, 4]],
        "subsets": {"image": {"accuracy": 0.9, "num_samples": 12345}, "audio+image": {"accuracy": 0.98765}},
    },
}


def test_run_shows_the_metrics_and_where_the_outputs_are(tmp_path: Path) -> None:
    write_job(tmp_path, "evaluate", output="out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").touch()
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"return {dict(RESULT)!r}"))
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert lines[0] == "evaluate score: done in 3.2 s"
    assert {"accuracy 98.8% 95% interval 97.0% to 99.2%", "samples scored 12,345", "calibration error (ECE) –"} <= set(
        lines
    )
    assert {"with only these fields accuracy samples scored", "image 90.0% 12,345", "audio+image 98.8% –"} <= set(lines)
    assert lines[-2:] == [f"output: {tmp_path / 'out'}", f"{tmp_path / 'out' / 'report.html'}"]
    assert "confusion" not in ran.stdout


def test_a_gate_that_refuses_ends_with_status_3_after_the_metrics(tmp_path: Path) -> None:
    write_job(tmp_path, "compress", output="out")
    (tmp_path / "out").mkdir()
    result = {"kind": "compress", "name": "shrink", "status": "refused", "seconds": 1, "metrics": {"size_ratio": 0.9}}
    (tmp_path / "out" / "result.json").write_text(json.dumps(result))
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage("raise GateRefused('size_ratio 0.9 is over 0.35.')"))
    assert (ran.returncode, ran.stderr) == (3, "ray-mm: size_ratio 0.9 is over 0.35.\n")
    assert "compress shrink: refused" in ran.stdout and "size, relative to the original  90.0%" in ran.stdout


def test_a_preprocess_run_shows_every_split_and_what_is_absent(tmp_path: Path) -> None:
    write_job(tmp_path, "preprocess", output="out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unusable.jsonl").touch()
    metrics = {
        "num_samples": {"train": 1200, "test": 30},
        "num_shards": 2,
        "size_bytes": 1_300_000,
        "num_absent": {"image": 6, "text": 0},
        "num_unusable": {"image": 5, "text": 0},
    }
    result = {"kind": "preprocess", "name": "p", "status": "unchanged", "seconds": 48.04, "metrics": metrics}
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"return {result!r}"))
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert lines[0] == "preprocess p: finished already (it took 48.0 s); nothing was done"
    assert {"size 1.3 MB", "train 1,200", "test 30", "image 6 5", "text 0 0"} <= set(lines)
    assert f"{tmp_path / 'out' / 'unusable.jsonl'}: cells that can't be used, and why" in lines


def test_a_prediction_shows_how_often_each_class_was_predicted(tmp_path: Path) -> None:
    write_job(tmp_path, "predict", output="out")
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    metrics = {"num_rows": 1200, "num_predicted": 1199, "num_quarantined": 1, "num_without_fields": 0, "num_files": 3}
    result = {"kind": "predict", "name": "p", "status": "done", "seconds": 2, "metrics": metrics}
    result["classes"] = {"left": 99, "right": 1100} | {f"rare{number}": 0 for number in range(19)}
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"return {result!r}"))
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert {"samples 1,200", "samples predicted 1,199", "unreadable samples 1", "files 3"} <= set(lines)
    at = lines.index("the 20 of 21 classes predicted most")
    assert lines[at + 1 : at + 4] == ["class samples share", "right 1,100 91.7%", "left 99 8.3%"]
    assert "rare17" in ran.stdout and "rare18" not in ran.stdout
    assert lines[-1] == str(tmp_path / "out" / "predictions")


def test_a_compression_that_passed_shows_the_limits_beside_the_figures(tmp_path: Path) -> None:
    write_job(tmp_path, "compress", output="out")
    (tmp_path / "out" / "quarantine").mkdir(parents=True)
    metrics = {
        "checks": [{"criterion": "size_ratio", "measured": 0.31, "limit": 0.35, "at_most": True, "passed": True}],
        "speedups_p50": {"1": 2.5},
        "latency": {"1": {"original_p50_ms": 5.0, "artifact_p50_ms": 2.0}},
    }
    result = {"kind": "compress", "name": "c", "status": "done", "seconds": 1, "metrics": metrics}
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"return {result!r}"))
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert {"size_ratio 0.31 ≤ 0.35 met", "1 5.00 ms 2.00 ms 2.50×"} <= set(lines)
    assert "quarantine" not in ran.stdout, "nothing lies in it"
    (tmp_path / "out" / "quarantine" / "a.json").touch()
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"return {result!r}"))
    assert f"{tmp_path / 'out' / 'quarantine'}: samples that can't be read, and why" in ran.stdout


@pytest.mark.parametrize(
    ("code", "status", "message"),
    # Ray ends the process that has joined it, and gets SIGTERM, with the signal's number.
    [("raise KeyboardInterrupt", 130, "interrupted"), ("sys.exit(15)", 143, "asked to end")],
)
def test_an_interrupted_run_says_how_it_goes_on(tmp_path: Path, code: str, status: int, message: str) -> None:
    write_job(tmp_path)
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(f"import sys; {code}"))
    assert ran.returncode == status
    assert ran.stderr == f"ray-mm: {message}; running the same command again goes on from what is there.\n"


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("raise UsageError('the call is wrong.')", 2, "the call is wrong."),
        ("raise SampleError('0.tar', 'k', 'image', 'damaged')", 1, "0.tar[k].image: damaged"),
        ("raise ValueError('one\\ntwo')", 1, "ValueError: one two (for the traceback, run again with --debug)"),
        ("raise ValueError", 1, "ValueError: no message (for the traceback, run again with --debug)"),
        ("raise RuntimeError('wrapped') from DatasetError('no dataset.')", 2, "no dataset."),
    ],
)
def test_what_goes_wrong_is_told_in_one_paragraph(tmp_path: Path, code: str, status: int, message: str) -> None:
    write_job(tmp_path)
    ran = ray_mm(tmp_path, "run", "job.yaml", before=stage(code))
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "", f"ray-mm: {message}\n")


@pytest.mark.parametrize("arguments", [("--debug", "run", "job.yaml"), ("run", "job.yaml", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_job(tmp_path)
    ran = ray_mm(tmp_path, *arguments, before=stage("raise ValueError('here')"))
    assert ran.returncode == 1
    assert "Traceback (most recent call last)" in ran.stderr and "ValueError: here" in ran.stderr
