"""The whole stage on a real Ray: table → datasets, again, interrupted, and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.collate import Collator
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.errors import DatasetError, OutputFolderError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.factories import CLASSES, SPECS, audio_bytes, class_of, image_bytes, member_of, number_of
from tests.preprocessing.tables import make_job, make_rows, members_by_key, write_csv, write_file

ray_test = pytest.mark.ray
_SPLITS = {"by": "hash", "group": "speaker", "fractions": {"train": 0.6, "test": 0.4}}
_NUM_ROWS = 30


def _made_job(folder: Path, **more: Any) -> PreprocessJob:
    return make_job(folder / "t.csv", key="key", splits=_SPLITS, shard_size=60_000, **more)


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a table of all field types, preprocessed once, and the result."""
    folder = tmp_path_factory.mktemp("made")
    write_csv(folder / "t.csv", make_rows(folder, _NUM_ROWS))
    return folder, run_preprocess(_made_job(folder))


def _tree(folder: Path) -> dict[str, bytes]:
    """Every file of the datasets; what says how a run went is not part of them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("job.json", "result.json")
    }


@ray_test
def test_every_field_comes_back_as_it_went_in(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    seen: dict[str, str] = {}
    for split in ("train", "test"):
        dataset = open_dataset(folder / "out" / split)
        assert dataset.manifest.name == f"made/{split}"
        samples = members_by_key(dataset)
        arrays, bad = Collator(preprocessor_for(dataset, {}, SPECS)).collate(samples.values())
        assert bad == {} and all(arrays[f"{field}.presence"].all() for field in SPECS)
        for row, (key, members) in enumerate(samples.items()):
            i = int(key[1:])
            seen[key] = split
            assert members["image"] == image_bytes(i) and members["audio"] == audio_bytes(i)
            for field in ("series", "points", "vector"):
                assert members[field] == member_of(field, i)[1]
            assert CLASSES[arrays["label"][row]] == CLASSES[class_of(i)]
            assert arrays["number"][row] == pytest.approx(number_of(i))
            assert arrays["text"][row, 0] > 1
    assert sorted(seen) == [f"k{i:03d}" for i in range(_NUM_ROWS)]
    # Speakers are i % 5.
    assert all(seen[f"k{i:03d}"] == seen[f"k{i % 5:03d}"] for i in range(_NUM_ROWS))


@ray_test
def test_shapes_statistics_and_counts_are_those_of_the_data(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    train, test = (open_dataset(folder / "out" / split).manifest for split in ("train", "test"))
    assert train.fields == test.fields and train.statistics == test.statistics
    fields = {name: spec.model_dump() for name, spec in train.fields.items()}
    assert (fields["image"]["height"], fields["image"]["width"]) == (16, 16)
    assert (fields["audio"]["rate_hz"], fields["audio"]["max_seconds"]) == (8000, 0.2)
    assert (fields["series"]["channels"], fields["series"]["max_length"]) == (3, 20)
    assert (fields["points"]["channels"], fields["points"]["max_points"]) == (4, 12)
    assert fields["vector"]["size"] == 5 and fields["text"]["max_tokens"] == 5
    assert fields["label"]["classes"] == tuple(sorted(CLASSES))
    assert (folder / "out/train/tokenizer.text.json").read_bytes() == (
        folder / "out/test/tokenizer.text.json"
    ).read_bytes()
    keys = [int(key[1:]) for key in members_by_key(open_dataset(folder / "out/train"))]
    series = np.concatenate([np.load(folder / f"files/series{i}.npy") for i in keys]).astype(np.float64)
    assert train.statistics["series"].mean == pytest.approx(series.mean(axis=0), rel=1e-6)
    assert train.statistics["series"].std == pytest.approx(series.std(axis=0), rel=1e-6)
    assert train.statistics["number"].mean == pytest.approx([np.mean([number_of(i) for i in keys])], rel=1e-6)
    assert set(train.statistics) == {"series", "points", "vector", "number"}
    assert train.label_counts["label"] == {
        name: sum(CLASSES[class_of(i)] == name for i in keys) for name in sorted(CLASSES)
    }
    metrics = result["metrics"]
    assert result["status"] == "done" and result == json.loads((folder / "out/result.json").read_text())
    assert metrics["num_samples"] == {"train": train.num_samples, "test": test.num_samples}
    assert metrics["num_shards"] == train.num_shards + test.num_shards > 2
    assert metrics["size_bytes"] == train.size_bytes + test.size_bytes
    assert metrics["num_absent"] == dict.fromkeys(sorted(SPECS), 0) and metrics["num_empty"] == 0
    assert metrics["samples_per_second"] > 0


@ray_test
def test_running_it_again_touches_no_file(made: tuple[Path, dict[str, Any]]) -> None:
    folder, first = made
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder / "out").rglob("*")}
    again = run_preprocess(_made_job(folder))
    assert again["status"] == "unchanged" and again["metrics"] == first["metrics"]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder / "out").rglob("*")} == before


@ray_test
def test_the_bytes_do_not_depend_on_how_many_tasks_write_them(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    one = str(folder / "one")
    run_preprocess(_made_job(folder, output=one, resources={"workers": 1, "cpus_per_worker": 0.5}))
    assert _tree(folder / "one") == _tree(folder / "out")


@ray_test
def test_what_a_dataset_is_does_not_depend_on_the_times_of_the_files(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made[0], tmp_path / "copy", ignore=shutil.ignore_patterns("out")))
    for file in (copy / "files").iterdir():
        os.utime(file, (1e9, 1e9))
    run_preprocess(_made_job(copy))
    first, second = (open_dataset(folder / "out/train").manifest for folder in (made[0], copy))
    assert first.source != second.source and first.digest == second.digest


@ray_test
def test_a_dataset_that_lost_a_shard_is_made_again(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out/test/shards/000001.tar").unlink()
    assert run_preprocess(_made_job(folder, output=str(tmp_path / "out")))["status"] == "done"
    assert _tree(tmp_path / "out") == _tree(folder / "out")


@ray_test
def test_other_settings_another_job_or_changed_files_do_not_overwrite_a_dataset(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = made
    before = _tree(folder / "out")
    with pytest.raises(
        OutputFolderError,
        match=r"was made with other settings \(seed was 0 and is now 1\); choose another output, .* remove that folder",
    ):
        run_preprocess(_made_job(folder, seed=1))
    with pytest.raises(
        OutputFolderError, match="holds a run of the preprocess job 'made', not of the preprocess job 'other'"
    ):
        run_preprocess(_made_job(folder, name="other"))
    image = folder / "files/image3.bin"
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    os.utime(image, ns=(1, 1))
    try:
        with pytest.raises(
            OutputFolderError, match=r"was made from another state of .*t\.csv or of the files that it names"
        ):
            run_preprocess(_made_job(folder))
    finally:
        os.utime(image, ns=times)
    write_file(tmp_path / "precious.txt", b"mine")
    with pytest.raises(OutputFolderError, match="exists and is not a run's folder"):
        run_preprocess(_made_job(folder, output=str(tmp_path)))
    assert _tree(folder / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from ray_mm.config.load import load_job
from ray_mm.preprocessing import preprocess

run_tasks = preprocess._run_tasks

def run_some(job, plan, missing):
    for number, each in enumerate(run_tasks(job, plan, missing)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield each

preprocess._run_tasks = run_some
preprocess.run_preprocess(load_job(json.loads(Path(sys.argv[1]).read_text())))
"""


@ray_test
def test_killed_in_the_middle_it_never_looks_whole_and_ends_with_the_same_bytes(
    local_ray: None, tmp_path: Path
) -> None:
    write_csv(tmp_path / "t.csv", make_rows(tmp_path, 60))
    splits = {"by": "hash", "group": "speaker", "fractions": {"train": 0.6, "test": 0.4}}
    job = make_job(tmp_path / "t.csv", key="key", shard_size=1, splits=splits)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "job.json")], env=environment)
    assert driver.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*/dataset.json"))
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match=r"not a|no such"):
            open_dataset(tmp_path / "out" / split)
    time.sleep(1)  # the tasks end with their driver
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/shards/*.tar")}
    assert 5 <= len(done) < 60
    resumed = run_preprocess(job)
    assert resumed["status"] == "done" and sum(resumed["metrics"]["num_samples"].values()) == 60
    kept = [path for path, mtime in done.items() if path.stat().st_mtime_ns == mtime]
    assert len(kept) >= 5
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    run_preprocess(whole)
    assert _tree(tmp_path / "out") == _tree(tmp_path / "whole")
