"""What was quarantined is listed, and decoded once more as it was kept and as it is now."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import BatchReader
from ray_mm.data.replay import LeftOut, datasets_at, left_out, open_quarantine, replay_quarantine
from ray_mm.errors import UsageError
from tests.factories import add_checksums, make_dataset

FIELDS = ("image", "vector", "label")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that met two bad members in the six samples of ``<tmp_path>/data``."""
    make_dataset(tmp_path / "data", 6, FIELDS, corrupt={(1, "image"), (4, "vector")})
    dataset = open_dataset(tmp_path / "data")
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.json").write_text(json.dumps({"kind": "train", "data": {"fields": {}}}))
    reader = BatchReader([dataset], preprocessor_for(dataset, {}, FIELDS), run / "quarantine")
    reader.read(sequence(dataset).places(0, 6), 0, 6)
    return run


def test_a_run_and_its_quarantine_list_the_same(run: Path) -> None:
    found = [(one.dataset, one.error.key, one.error.field) for one in open_quarantine(run)]
    dataset = str(run.parent / "data")
    assert found == [(dataset, "sample000001", "image"), (dataset, "sample000004", "vector")]
    within = open_quarantine(run / "quarantine")
    assert [one.path for one in within] == [one.path for one in open_quarantine(run)]


def test_what_is_still_bad_is_told_with_its_reason(run: Path) -> None:
    for one in replay_quarantine(run):
        assert one.kept == one.now == one.member.error.reason


def test_mended_data_is_told_apart_from_what_was_kept(run: Path) -> None:
    make_dataset(run.parent / "data", 6, FIELDS, corrupt={(4, "vector")}, missing={"vector": 0.0})
    first, second = replay_quarantine(run)
    assert first.kept is not None and first.now is None
    assert second.now is not None


def test_a_member_that_decodes_to_other_bytes_than_were_indexed_is_still_bad(run: Path) -> None:
    folder = run.parent / "data"
    make_dataset(folder, 6, FIELDS, missing={"vector": 0.0})
    add_checksums(folder)
    dataset = open_dataset(folder)
    path, whole = dataset.shard_path(1), dataset.shard_path(1).read_bytes()
    flipped = bytearray(whole)
    flipped[dataset.read_index(1).offsets["vector.npy"][1] + 130] ^= 1
    path.write_bytes(flipped)
    shutil.rmtree(run / "quarantine")
    reader = BatchReader([dataset], preprocessor_for(dataset, {}, FIELDS), run / "quarantine")
    reader.read(sequence(dataset).places(0, 6), 0, 6)
    (one,) = replay_quarantine(run)
    assert one.kept == one.now == one.member.error.reason and "CRC32C" in one.member.error.reason
    path.write_bytes(whole)
    (one,) = replay_quarantine(run)
    assert one.kept is not None and one.now is None


def test_samples_and_shards_that_are_gone_are_told(run: Path) -> None:
    make_dataset(run.parent / "data", 2, FIELDS, num_shards=1)
    first, second = replay_quarantine(run)
    assert first.now is None
    assert second.now is not None and "has no shard shards/000001.tar any more" in second.now


def test_a_run_without_bad_samples_and_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    assert open_quarantine(tmp_path) == []
    with pytest.raises(UsageError, match="no such folder"):
        open_quarantine(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="neither a run"):
        open_quarantine(tmp_path / "other")


def test_of_a_dataset_what_all_runs_set_aside_is_found_once(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs" / "deep" / "again")
    shutil.copytree(run, tmp_path / "runs" / "first")
    record = next((tmp_path / "runs" / "first" / "quarantine").glob("*.json"))
    other = json.loads(record.read_text()) | {"dataset": "s3://bucket/other"}
    (record.parent / "other.json").write_text(json.dumps(other))
    found = open_quarantine(tmp_path / "data", tmp_path / "runs")
    assert [one.error.key for one in found] == ["sample000001", "sample000004"]
    assert {one.path.parent for one in found} == {tmp_path / "runs" / "deep" / "again" / "quarantine"}
    make_dataset(tmp_path / "data", 6, FIELDS, corrupt={(4, "vector")}, missing={"vector": 0.0})
    first, second = replay_quarantine(tmp_path / "data", tmp_path / "runs")
    assert first.now is None and second.now is not None
    assert open_quarantine(tmp_path / "data", tmp_path / "none") == []


def test_a_preprocess_run_means_all_its_datasets(run: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    make_dataset(made / "train", 6, FIELDS, corrupt={(1, "image")})
    make_dataset(made / "test", 2, FIELDS)
    (made / "job.json").write_text('{"kind": "preprocess"}')
    cell = {"row": 7, "key": "seven", "field": "image", "reason": "no such file"}
    (made / "unusable.jsonl").write_text(json.dumps(cell) + "\n")
    assert datasets_at(made) == [str(made / "test"), str(made / "train")] and datasets_at(run) == []
    for place in (made, made / "train"):
        assert left_out(place) == [LeftOut(**cell)]
    assert left_out(tmp_path / "data") == left_out(run) == []
    dataset = open_dataset(made / "train")
    reader = BatchReader([dataset], preprocessor_for(dataset, {}, FIELDS), tmp_path / "runs" / "r" / "quarantine")
    reader.read(sequence(dataset).places(0, 6), 0, 6)
    (one,) = open_quarantine(made, tmp_path / "runs")
    assert one.dataset == str(made / "train")
    assert open_quarantine(made / "test", tmp_path / "runs") == []


def test_the_command_takes_a_dataset_and_says_where_it_looked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "preprocess"}')
    cell = {"row": 7, "key": "seven", "field": "image", "reason": "no such file"}
    (tmp_path / "unusable.jsonl").write_text(json.dumps(cell) + "\n")

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "ray_mm", "quarantine", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    listed = told("list", "data", "--runs", ".")
    assert "sample000001" in listed and "seven" in listed
    assert sum(line.rstrip().endswith(" run") for line in listed.splitlines()) == 3
    assert f"looked into 1 quarantine below {tmp_path}; --runs" in listed
    assert f"looked into 0 quarantines below {tmp_path}/runs, which is not there; --runs" in told("list", "data")
    replayed = told("replay", "data", "--runs", ".")
    reason = open_quarantine(run)[0].error.reason
    assert replayed.count("as before") == 4 and replayed.count(" ".join(reason.split()[:2])) == 1


def test_the_command_shows_both(run: Path) -> None:
    for what, text in (("list", "sample000001"), ("replay", "in its shard now")):
        done = subprocess.run(
            [sys.executable, "-m", "ray_mm", "quarantine", what, str(run)], capture_output=True, text=True, check=True
        )
        assert text in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "ray_mm", "quarantine", "burn", str(run)], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2 and "takes list or replay, found 'burn'" in wrong.stderr
