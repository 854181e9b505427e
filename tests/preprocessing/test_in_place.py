"""Tars in place → datasets that refer to them: whole, split by key, trained on; and everything doubtful refused."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.indexing import index_tars
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.replay import LeftOut, left_out
from ray_mm.errors import DatasetError, JobFileError, OutputFolderError, RayMMError, UsageError
from ray_mm.preprocessing.facts import facts_path, find_facts, read_facts, read_summary
from ray_mm.preprocessing.in_place import plan_in_place
from ray_mm.preprocessing.preprocess import run_preprocess
from ray_mm.storage.remote import put_if_absent
from ray_mm.summary import listed_quarantine
from tests.factories import CLASSES, class_of, member_of, number_of, write_tar

pytestmark = pytest.mark.ray
_NUM_SAMPLES = 48
_FIELDS: dict[str, dict[str, Any]] = {
    "picture": {"type": "image"},
    "words": {"type": "text"},
    "imu": {"type": "series"},
    "kind": {"type": "label", "path": "kind.name"},
    "speed": {"type": "label", "target": "number", "path": "speed"},
}
_MEMBERS = {"picture": ["jpg", ".png"], "words": "txt", "kind": "json", "speed": "json"}


def _sample(i: int) -> dict[str, bytes]:
    extension, picture = member_of("image", i)
    facts = {"kind": {"name": CLASSES[class_of(i)]}, "speed": number_of(i)}
    return {
        extension: picture,
        "txt": member_of("text", i)[1],
        "json": json.dumps(facts).encode(),
        "imu.npy": member_of("series", i)[1],
        "pkl": b"\x80\x04never loaded.",
    }


def _write_tars(folder: Path, num_shards: int = 3) -> list[Path]:
    tars = []
    for shard, rows in enumerate(np.array_split(np.arange(_NUM_SAMPLES), num_shards)):
        members = {f"d/{i:04d}.{suffix}": payload for i in map(int, rows) for suffix, payload in _sample(i).items()}
        tars.append(write_tar(folder / f"t-{shard}.tar", members))
    return tars


def _job(folder: Path, **more: Any) -> PreprocessJob:
    content = {
        "kind": "preprocess",
        "name": "placed",
        "shards": str(folder / "t-{0..2}.tar"),
        "fields": _FIELDS,
        "members": _MEMBERS,
        "splits": {"by": "hash", "fractions": {"train": 0.6, "validation": 0.4}},
        "output": str(folder / "data"),
    }
    job = load_job({key: value for key, value in (content | more).items() if value is not None})
    assert isinstance(job, PreprocessJob)
    return job


def _rows(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Key → shard and row."""
    indexes = [dataset.read_index(shard) for shard in range(len(dataset.shards))]
    return {key: (shard, row) for shard, index in enumerate(indexes) for row, key in enumerate(index.keys)}


def _require_members(dataset: Dataset) -> None:
    reader = SampleReader(dataset, sorted(dataset.manifest.fields))
    for key, (shard, row) in _rows(dataset).items():
        sample = _sample(int(key.removeprefix("d/")))
        for name, payload in reader.members(shard, row).items():
            assert any(bytes(payload) == sample.get(suffix) for suffix in dataset.manifest.members[name])


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed")
    _write_tars(folder)
    assert run_preprocess(_job(folder))["status"] == "done"
    return folder


def test_datasets_refer_to_the_tars_and_divide_them_by_key(made: Path) -> None:
    train, validation = (open_dataset(made / "data" / split) for split in ("train", "validation"))
    keys = [set(_rows(dataset)) for dataset in (train, validation)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == _NUM_SAMPLES
    manifest = train.manifest
    assert train.location(0) == str(made / "t-0.tar") and train.shards[0].version.startswith("mtime:")
    assert manifest.members["picture"] == ("jpg", "png") and manifest.members["imu"] == ("imu.npy",)
    picture, imu = manifest.fields["picture"], manifest.fields["imu"]
    assert (picture.height, picture.width) == (16, 16) and (imu.channels, imu.max_length) == (3, 20)  # type: ignore[union-attr]
    assert manifest.presence == dict.fromkeys(_FIELDS, manifest.num_samples)
    assert len(manifest.statistics["imu"].mean) == 3 and manifest.statistics["speed"].std[0] > 1
    assert sum(manifest.label_counts["kind"].values()) == manifest.num_samples
    assert "left" in train.tokenizer("words")
    assert train.manifest.digest != validation.manifest.digest
    assert train.manifest.fields == validation.manifest.fields
    for dataset in (train, validation):
        _require_members(dataset)
        for key, (shard, row) in _rows(dataset).items():
            labels, i = dataset.read_index(shard).labels, int(key.removeprefix("d/"))
            assert labels["kind"][row] == class_of(i) and labels["speed"][row] == np.float32(number_of(i))
    assert not list((made / "data").rglob("*.tar")) and not (made / "data/.progress").exists()


def test_the_same_tars_are_left_alone_and_changed_ones_refused(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*.*")}
    assert run_preprocess(_job(made))["status"] == "unchanged"
    assert {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*.*")} == before
    shard, seen = made / "t-1.tar", (made / "t-1.tar").stat().st_mtime_ns
    os.utime(shard, ns=(0, 0))
    try:
        with pytest.raises(OutputFolderError, match="was made from another state of its tars"):
            run_preprocess(_job(made))
        with pytest.raises(DatasetError, match="has changed since it was indexed"):
            open_dataset(made / "data/train").read_index(1)
    finally:
        os.utime(shard, ns=(0, seen))
    with pytest.raises(OutputFolderError, match="seed was 0 and is now 1"):
        run_preprocess(_job(made, seed=1))


def test_a_model_trains_on_tars_in_place(made: Path, tmp_path: Path) -> None:
    from ray_mm.running import run_job

    job = {
        "kind": "train",
        "name": "small",
        "data": {
            "train": {"path": str(made / "data/train"), "require": ["picture"]},
            "validation": str(made / "data/validation"),
            "balance": {"label": "kind"},
            "batch_size": 8,
        },
        "model": {
            "fields": {"picture": {}, "words": {}, "imu": {}},
            "fusion": {"method": "gated", "dim": 16},
            "task": {"type": "classify", "label": "kind"},
        },
        "train": {"epochs": 1},
        "output": str(tmp_path / "run"),
    }
    result = run_job(job)
    assert result["status"] == "done" and result["metrics"]["steps"] >= 3
    assert not list((tmp_path / "run").glob("quarantine/*/*"))
    scored = run_job(
        {
            "kind": "evaluate",
            "name": "small",
            "checkpoint": str(tmp_path / "run"),
            "data": str(made / "data/validation"),
            "output": str(tmp_path / "scored"),
        }
    )
    assert scored["metrics"]["num_samples"] == open_dataset(made / "data/validation").manifest.num_samples


def test_shards_of_a_split_and_gzip_files_are_taken_as_they_are(local_ray: None, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path)
    (tmp_path / "t-2.tgz").write_bytes(gzip.compress(tars[2].read_bytes()))
    index_tars([tmp_path / "t-2.tgz"])
    shards = {"train": [str(tars[0]), str(tars[1])], "test": str(tmp_path / "*.tgz")}
    result = run_preprocess(
        _job(
            tmp_path,
            shards=shards,
            splits=None,
            fields={"words": {"type": "text"}, "imu": _FIELDS["imu"]},
            members={"words": "txt"},
        )
    )
    assert result["metrics"]["num_samples"] == {"train": 32, "test": 16}
    for split in shards:
        _require_members(open_dataset(tmp_path / "data" / split))
    packed = open_dataset(tmp_path / "data" / "test")
    assert packed.manifest.size_bytes == (tmp_path / "t-2.tgz").stat().st_size
    assert packed.shards[0].unpacked_bytes == packed.shards[0].tar_bytes == tars[2].stat().st_size
    assert packed.sample_bytes == tars[2].stat().st_size // 16
    assert all(shard.unpacked_bytes is None for shard in open_dataset(tmp_path / "data" / "train").shards)


def test_keys_that_come_again_in_another_shard_are_samples_of_their_own(local_ray: None, tmp_path: Path) -> None:
    for shard in range(2):
        # Members in any order.
        members = [
            (f"{i:04d}.{suffix}", content) for i in range(12) for suffix, content in _sample(12 * shard + i).items()
        ]
        write_tar(tmp_path / f"t-{shard}.tar", dict(sorted(members, key=lambda member: member[0][::-1])))
    result = run_preprocess(_job(tmp_path, shards=str(tmp_path / "t-*.tar")))
    assert sum(result["metrics"]["num_samples"].values()) == 24
    keys: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        dataset = open_dataset(tmp_path / "data" / split)
        keys[split] = {key for number in range(2) for key in dataset.read_index(number).keys}
        reader = SampleReader(dataset, sorted(dataset.manifest.fields))
        for number, info in enumerate(dataset.shards):
            first = 12 * int(Path(info.path).stem.removeprefix("t-"))
            for row, key in enumerate(dataset.read_index(number).keys):
                found = {name: bytes(view) for name, view in reader.members(number, row).items()}
                assert found["imu"] == _sample(first + int(key))["imu.npy"]
                assert found["words"] == _sample(first + int(key))["txt"]
    # Nor is a key of one split met in the other one.
    assert len(keys["train"] | keys["validation"]) == 12 and not keys["train"] & keys["validation"]


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_a_tar_in_a_store_is_looked_into_by_ranges(tmp_path: Path, bucket: str, suffix: str) -> None:
    (tar,) = _write_tars(tmp_path, 1)
    url = f"s3://{bucket}/in/{tar.stem}{suffix}"
    put_if_absent(url, gzip.compress(tar.read_bytes()) if suffix == ".tgz" else tar.read_bytes())
    plan = plan_in_place(_job(tmp_path, shards=f"s3://{bucket}/in/*{suffix}"))
    (shard,) = plan.shards
    assert shard.info.url == url and shard.info.etag
    summary = find_facts(shard, plan.settings)
    assert sum(summary.num_samples.values()) == _NUM_SAMPLES and summary.num_bad == 0
    facts = read_facts(shard, plan.settings)
    assert facts.labels["kind"] == [CLASSES[class_of(i)] for i in range(_NUM_SAMPLES)]
    assert read_summary(shard, plan.settings) == summary
    assert read_summary(replace(shard, split="train"), plan.settings) is None


def test_a_run_goes_on_with_what_an_earlier_one_found(local_ray: None, tmp_path: Path) -> None:
    tars = _write_tars(tmp_path)
    whole_tar = tars[1].read_bytes()
    tars[1].write_bytes(whole_tar[:5000])
    with pytest.raises(DatasetError, match=r"t-1\.tar.*cut short"):
        run_preprocess(_job(tmp_path))
    assert not (tmp_path / "data/train/dataset.json").exists()
    found = sorted((tmp_path / "data/.progress").glob("*.facts.parquet"))
    assert found and tmp_path / "data/.progress/000001.facts.parquet" not in found
    seen = {path: path.stat().st_mtime_ns for path in found}
    tars[1].write_bytes(whole_tar)
    plan = plan_in_place(_job(tmp_path))
    kept = [shard for shard in plan.shards if read_summary(shard, plan.settings) is not None]
    assert [facts_path(plan.settings.output, shard) for shard in kept] == list(seen)
    assert run_preprocess(_job(tmp_path))["metrics"]["num_shards"] == 3


def _broken(sample: dict[str, bytes]) -> None:
    sample["imu.npy"] = b"\x93NUMPY this is no array"


def _damaged(folder: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    members = {}
    for i in range(_NUM_SAMPLES):
        sample = _sample(i)
        if i == 5:
            change(sample)
        members |= {f"d/{i:04d}.{suffix}": payload for suffix, payload in sample.items()}
    write_tar(folder / "t-0.tar", members)


def test_members_that_are_not_what_their_field_says_are_named_or_left_out(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _damaged(tmp_path, _broken)
    shards = str(tmp_path / "t-0.tar")
    with pytest.raises(RayMMError, match=r"1 member: .*t-0\.tar\[d/0005\]\.imu\.npy: .*on_missing: absent"):
        run_preprocess(_job(tmp_path, shards=shards))
    result = run_preprocess(_job(tmp_path, shards=shards, on_missing="absent"))
    assert result["metrics"]["num_unusable"]["imu"] == 1 and result["metrics"]["num_absent"]["imu"] == 1
    for split in ("train", "validation"):
        dataset = open_dataset(tmp_path / "data" / split)
        if "d/0005" in _rows(dataset):
            shard, row = _rows(dataset)["d/0005"]
            assert "imu" not in SampleReader(dataset, ["imu"]).members(shard, row)
    told, tar = capsys.readouterr().err, tmp_path / "t-0.tar"
    assert f"members that can't be used were left absent, 1 member: {tar}[d/0005].imu.npy: " in told
    assert f"All: {tmp_path}/data/unusable.jsonl" in told
    (line,) = map(json.loads, (tmp_path / "data/unusable.jsonl").read_text().splitlines())
    assert line == {"shard": str(tar), "key": "d/0005", "field": "imu", "reason": line["reason"]}
    assert left_out(tmp_path / "data/train") == [LeftOut(**line)]
    listed = _shown(listed_quarantine(str(tmp_path / "data/train"), tmp_path / "runs"))
    assert "members that preprocess left out" in listed and "shard" in listed and "imu.npy: " in listed
    _damaged(tmp_path, lambda sample: None)
    run_preprocess(_job(tmp_path, shards=shards, on_missing="absent", output=str(tmp_path / "again")))
    assert not (tmp_path / "again/unusable.jsonl").exists()


def _shown(parts: Iterable[RenderableType]) -> str:
    console = Console(width=400, file=io.StringIO())
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_members_that_are_left_out_are_listed_by_their_place(tmp_path: Path) -> None:
    samples = {f"{i:02d}": _sample(i) for i in range(12)}
    for key in ("09", "02", "05"):
        samples[key]["imu.npy"] = b"no array"
    samples["05"]["png"] = b"no picture"
    # A JSON that two fields are read from is listed for the first of them.
    samples["07"]["json"] = b"{"
    write_tar(
        tmp_path / "t-0.tar",
        {f"{key}.{suffix}": payload for key, s in samples.items() for suffix, payload in s.items()},
    )
    plan = plan_in_place(_job(tmp_path, shards=str(tmp_path / "t-0.tar"), on_missing="absent"))
    (shard,) = plan.shards
    found = find_facts(shard, plan.settings).left_absent
    assert [(one.key, one.field, one.reason.split(":")[0]) for one in found] == [
        ("02", "imu", "imu.npy"),
        ("05", "imu", "imu.npy"),
        ("05", "picture", "png"),
        ("07", "kind", "json"),
        ("09", "imu", "imu.npy"),
    ]
    assert all(len(one.reason) > len(one.reason.split(":")[0]) + 2 for one in found)
    summary = read_summary(shard, plan.settings)
    assert summary is not None and summary.left_absent == found


_PATH_LABEL = {"type": "label", "path": "kind.name", "classes": ["left", "stop"]}


@pytest.mark.parametrize(
    ("fields", "members", "reason"),
    [
        ({"picture": {"type": "image"}}, {}, r"fields\.picture: no sample has a member picture or picture\.…"),
        ({"x": {"type": "series"}}, {"x": "imu"}, r"no sample has a member imu; the suffixes are .*imu\.npy"),
        (
            {"pkl": {"type": "series"}},
            {},
            r"fields\.pkl: its members \.pkl are pickled; reading one runs the code in it",
        ),
        (
            {"kind": _PATH_LABEL},
            {"kind": "json"},
            r"classes: 16 samples with 'right', none of the 2 classes",
        ),
    ],
)
def test_what_the_tars_do_not_have_is_named(
    local_ray: None, tmp_path: Path, fields: dict[str, Any], members: dict[str, Any], reason: str
) -> None:
    _write_tars(tmp_path)
    with pytest.raises(RayMMError, match=reason):
        run_preprocess(_job(tmp_path, fields=fields, members=members))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"table": "t.csv"}, "either a table or shards"),
        ({"shards": None}, "either a table or shards"),
        ({"columns": {"words": "x"}}, "columns is for a table"),
        ({"members": {"words": "pkl"}}, "pickled; reading one runs the code in it"),
        ({"members": {"nothing": "txt"}}, r"members\.nothing: no such field"),
        ({"splits": {"by": "column", "column": "x"}}, "tars have no columns"),
        ({"shards": {"train": "a.tar"}}, "remove splits"),
    ],
)
def test_jobs_that_contradict_themselves_are_refused(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(JobFileError, match=reason):
        _job(tmp_path, **more)


def test_a_shard_of_two_splits_is_refused(tmp_path: Path) -> None:
    _write_tars(tmp_path)
    shards = {"train": str(tmp_path / "*.tar"), "test": str(tmp_path / "t-1.tar")}
    with pytest.raises(UsageError, match=r"t-1\.tar is of both train and test"):
        run_preprocess(_job(tmp_path, shards=shards, splits=None))
