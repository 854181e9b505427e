"""jobs/: every file is valid, and the tables that the scripts make leak nothing from one split into another."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import TuneJob

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))
Rows = list[dict[str, str]]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_job_file_is_valid_and_says_how_to_run_it(path: Path) -> None:
    load_job(path)
    text = path.read_text()
    assert text.startswith("#")
    assert f"ray-mm run {path.relative_to(ROOT)}" in text


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in (ROOT / "jobs").glob("*/train.yaml")), ids=lambda p: p.name
)
def test_the_jobs_of_a_folder_hand_over_to_each_other(folder: Path) -> None:
    preprocess = load_job(folder / "preprocess.yaml")
    evaluate = load_job(folder / "evaluate.yaml")
    compress = load_job(folder / "compress.yaml")
    assert isinstance(preprocess, PreprocessJob) and isinstance(evaluate, EvaluateJob)
    assert isinstance(compress, CompressJob)
    trainings = {path: load_job(path) for path in [folder / "train.yaml", *folder.glob("baselines/*.yaml")]}
    outputs = [preprocess.output, evaluate.output, compress.output]
    for path, train in trainings.items():
        assert isinstance(train, TrainJob)
        assert train.data.train == f"{preprocess.output}/train"
        assert train.data.validation == f"{preprocess.output}/validation"
        assert set(train.model.fields) | {train.model.task.label} <= set(preprocess.fields), path
        outputs.append(train.output)
    for path in folder.glob("tune.yaml"):
        tune = load_job(path)
        assert isinstance(tune, TuneJob) and tune.train == trainings[folder / "train.yaml"]
        outputs.append(tune.output)
    assert len(set(outputs)) == len(outputs)
    assert evaluate.checkpoint == compress.checkpoint == trainings[folder / "train.yaml"].output
    assert evaluate.data == compress.data == f"{preprocess.output}/test"
    assert compress.calibration_data in (f"{preprocess.output}/train", f"{preprocess.output}/validation")


@pytest.mark.parametrize("folder", ["avdigits", "vqa"])
def test_a_baseline_differs_from_the_job_of_all_fields_only_in_what_one_field_needs(folder: str) -> None:
    fused = load_job(ROOT / "jobs" / folder / "train.yaml")
    assert isinstance(fused, TrainJob)
    for path in sorted((ROOT / "jobs" / folder / "baselines").glob("*.yaml")):
        alone = load_job(path)
        assert isinstance(alone, TrainJob)
        (field,) = alone.model.fields
        assert alone.model.fields[field] == fused.model.fields[field]
        assert (alone.model.fusion, alone.model.task) == (fused.model.fusion, fused.model.task)
        assert alone.data == fused.data
        assert alone.train.optimizer == fused.train.optimizer
        assert alone.train.epochs <= fused.train.epochs


@pytest.fixture(scope="module")
def unpacked(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for name in ("fsdd", "mnist_test", "easy_vqa"):
        with tarfile.open(real_data / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def make_table(job: str, data: Path, output: Path, *options: str) -> Rows:
    script = ROOT / "jobs" / job / "make_table.py"
    command = [sys.executable, str(script), "--data", str(data), "--output", str(output), *options]
    subprocess.run(command, check=True, capture_output=True, cwd=output.parent)
    with (output / "table.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def values_of_splits(rows: Rows, column: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row["split"]].add(row[column])
    return found


def assert_disjoint(rows: Rows, column: str) -> None:
    found = values_of_splits(rows, column)
    assert sum(len(values) for values in found.values()) == len(set.union(*found.values()))


@pytest.mark.real_data
def test_spoken_and_written_digits_are_paired_by_digit_and_no_file_is_in_two_splits(
    unpacked: Path, tmp_path: Path
) -> None:
    output = tmp_path / "table"
    rows = make_table("avdigits", unpacked, output)
    assert Counter(row["split"] for row in rows) == {"train": 8200, "validation": 600, "test": 1200}
    assert len({row["key"] for row in rows}) == len(rows)
    assert len({row["image"] for row in rows}) == len(rows) == 10_000
    assert_disjoint(rows, "image")
    assert_disjoint(rows, "audio")
    for row in rows:
        picture, recording = output / row["image"], output / row["audio"]
        assert picture.is_file() and recording.is_file()
        assert picture.stem.endswith(f"num{row['digit']}")
        digit, speaker, index = recording.stem.split("_")
        assert (digit, speaker) == (row["digit"], row["speaker"])
        assert (int(index) < 5) == (row["split"] == "test")
    recordings = values_of_splits(rows, "audio")
    assert {split: len(found) for split, found in recordings.items()} == {"train": 2400, "validation": 300, "test": 300}


@pytest.mark.real_data
def test_pairs_depend_on_the_seed_alone(unpacked: Path, tmp_path: Path) -> None:
    first = make_table("avdigits", unpacked, tmp_path / "a")
    assert make_table("avdigits", unpacked, tmp_path / "b") == first
    assert make_table("avdigits", unpacked, tmp_path / "c", "--seed", "1") != first


@pytest.mark.real_data
def test_questions_keep_their_own_test_split_and_no_picture_is_in_two_splits(unpacked: Path, tmp_path: Path) -> None:
    output = tmp_path / "table"
    rows = make_table("vqa", unpacked, output)
    counts = Counter(row["split"] for row in rows)
    assert counts["test"] == 9673
    assert counts["train"] + counts["validation"] == 38575
    assert 0.03 < counts["validation"] / 38575 < 0.08
    assert len({row["key"] for row in rows}) == len(rows)
    assert_disjoint(rows, "picture")
    assert_disjoint(rows, "image")
    assert all((output / image).is_file() for image in {row["image"] for row in rows})
    answers = values_of_splits(rows, "answer")
    assert answers["train"] == answers["test"] == answers["validation"]
    assert len(answers["train"]) == 13


@pytest.mark.real_data
@pytest.mark.ray
@pytest.mark.slow
def test_the_jobs_run_one_after_the_other_as_their_files_say(unpacked: Path, tmp_path: Path) -> None:
    job = "avdigits"  # vqa has the same files over four times the samples, which takes CI too long
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / "data" / "tables").mkdir(parents=True)
    (tmp_path / "data" / "raw").symlink_to(unpacked)
    make_table(job, tmp_path / "data" / "raw", tmp_path / "data" / "tables" / job)
    # One epoch shows that all fits together; the figures are in docs/results.md.
    stages: dict[str, list[str]] = {
        "preprocess": [],
        "train": ["--set", "train.epochs=1"],
        "evaluate": [],
        "compress": [],
    }
    for stage, options in stages.items():
        command = [sys.executable, "-m", "ray_mm", "run", f"jobs/{job}/{stage}.yaml", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        # A model of one epoch may be too uncertain for its gate.
        allowed = (0, 3) if stage == "compress" else (0,)
        assert done.returncode in allowed, done.stderr
        result = (
            json.loads((tmp_path / "runs" / job / stage / "result.json").read_text()) if stage != "preprocess" else {}
        )
        assert stage != "evaluate" or result["metrics"]["accuracy"] > 0.3
