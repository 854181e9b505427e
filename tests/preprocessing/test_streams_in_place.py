"""A series of several streams in tars that stay where they are: indexed, trained on, scored and asked for an answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mm
from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.epochs import sequence
from ray_mm.data.fields import presence_name
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.errors import JobFileError, RayMMError, UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.data.test_stream_parts import APART, DAMAGED, DRIVE, MISSING, sample
from tests.factories import write_tar

_NUM_SAMPLES = 24
_FIELDS: dict[str, Any] = {
    "drive": {"type": "series", "rate_hz": 20, "streams": DRIVE.model_dump(exclude_unset=True, mode="json")["streams"]},
    "gps": {"type": "series", "path": "lat"},
    "kind": {"type": "label"},
}


def _write(folder: Path) -> None:
    for shard in range(2):
        members = {}
        for i in range(shard * _NUM_SAMPLES // 2, (shard + 1) * _NUM_SAMPLES // 2):
            parts = sample(i) | {"kind.cls": str(i % 2).encode()}
            members |= {f"{i:03d}.{suffix}": payload for suffix, payload in parts.items()}
        write_tar(folder / f"t-{shard}.tar", members)


def _job(folder: Path, **more: Any) -> PreprocessJob:
    content = {
        "kind": "preprocess",
        "name": "drives",
        "shards": str(folder / "t-{0..1}.tar"),
        "fields": _FIELDS,
        "members": {"kind": "kind.cls", "gps": "gps.csv"},
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
        "output": str(folder / "data"),
    }
    job = load_job(content | more)
    assert isinstance(job, PreprocessJob)
    return job


@pytest.mark.ray
def test_tars_in_place_are_read_as_one_series_by_every_stage(local_ray: None, tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(RayMMError) as caught:
        run_preprocess(_job(tmp_path))
    assert f"2 members: {tmp_path}/t-0.tar[003].imu.npy: not a readable NPY" in str(caught.value)
    assert f"{tmp_path}/t-0.tar[004].imu.npy, imu_t.npy, gps.csv: has streams that do not overlap" in str(caught.value)
    metrics = run_preprocess(_job(tmp_path, on_missing="absent"))["metrics"]
    assert metrics["num_unusable"] == {"drive": 2, "gps": 0, "kind": 0}
    # The GPS of a sample whose streams do not overlap is whole in itself.
    assert metrics["num_absent"] == {"drive": 3, "gps": 1, "kind": 0}
    dataset = open_dataset(tmp_path / "data/train")
    manifest = dataset.manifest
    assert manifest.fields["drive"] == DRIVE.model_copy(update={"max_length": 35})
    assert manifest.members["drive"] == DRIVE.members and len(manifest.statistics["drive"].mean) == 5
    (batch,) = read_batches(sequence(dataset), preprocessor_for(dataset, {}, ["drive", "gps"]), _NUM_SAMPLES)
    there = [i for i in range(_NUM_SAMPLES) if i not in (MISSING, DAMAGED, APART)]
    assert np.flatnonzero(batch[presence_name("drive")]).tolist() == there
    assert np.flatnonzero(~batch[presence_name("gps")]).tolist() == [MISSING]
    values = np.concatenate([batch["drive"][i, : batch["drive.length"][i]] for i in there])
    assert values.mean(axis=0) == pytest.approx(manifest.statistics["drive"].mean, abs=1e-5)

    inputs = {"drive": {"encoder": "cnn"}}
    task = {"type": "classify", "label": "kind"}
    trained = ray_mm.run(
        {
            "kind": "train",
            "name": "t",
            "data": {
                "train": {"path": str(tmp_path / "data/train"), "require": ["drive"]},
                "batch_size": 8,
                "cache": {"decoded": {"folder": str(tmp_path / "cache"), "size": "10MB"}},
            },
            "model": {"fields": inputs, "fusion": {"method": "concat", "dim": 16}, "task": task},
            "train": {"epochs": 2},
            "output": str(tmp_path / "run"),
        }
    )
    assert trained["status"] == "done"
    scored = ray_mm.run(
        {
            "kind": "evaluate",
            "name": "e",
            "checkpoint": str(tmp_path / "run"),
            "data": str(tmp_path / "data/train"),
            "output": str(tmp_path / "evaluate"),
        }
    )
    assert scored["metrics"]["num_samples"] == _NUM_SAMPLES
    assert "<code>" in (tmp_path / "evaluate/report.html").read_text()
    model = ray_mm.load(tmp_path / "run")
    parts = {suffix: payload for suffix, payload in sample(0).items() if suffix in DRIVE.members}
    answer = model.predict({"drive": parts})
    assert answer.presence == {"drive": True}
    arrays = {"imu.npy": np.load(io.BytesIO(parts["imu.npy"])), "imu_t.npy": np.load(io.BytesIO(parts["imu_t.npy"]))}
    again = model.predict({"drive": {**arrays, "gps.csv": parts["gps.csv"]}})
    assert again.probabilities == pytest.approx(answer.probabilities)
    assert model.predict({"drive": arrays}).presence == {"drive": False}
    for wrong, reason in (
        (
            arrays["imu.npy"],
            "expected a mapping from its members imu.npy, imu_t.npy, gps.csv to their values, found a nd",
        ),
        ({"gps": b""}, "found the keys gps"),
        (parts | {"gps.csv": b"\x93NUMPY"}, "drive: the value can't be read: gps.csv: not a readable"),
    ):
        with pytest.raises(UsageError, match=reason):
            model.predict({"drive": wrong})


@pytest.mark.ray
def test_streams_that_the_tars_do_not_have_are_named(local_ray: None, tmp_path: Path) -> None:
    _write(tmp_path)
    streams = [*_FIELDS["drive"]["streams"], {"member": "can.json", "source_rate_hz": 10}]
    with pytest.raises(
        UsageError, match=r"fields\.drive\.streams: no sample has a member can\.json; the suffixes are gps"
    ):
        run_preprocess(
            _job(tmp_path, fields=_FIELDS | {"drive": {"type": "series", "rate_hz": 20, "streams": streams}})
        )
    lone = write_tar(
        tmp_path / "u.tar", {f"{i}.{suffix}": npy for i, suffix in enumerate(DRIVE.members) for npy in (b"x",)}
    )
    with pytest.raises(UsageError, match=r"no sample has all of imu\.npy, imu_t\.npy, gps\.csv"):
        run_preprocess(_job(tmp_path, shards=str(lone), fields={"drive": _FIELDS["drive"]}, members={}))


@pytest.mark.ray
def test_a_member_that_several_fields_can_not_read_is_counted_for_the_first_and_absent_for_all(
    local_ray: None, tmp_path: Path
) -> None:
    members = {}
    for i in range(6):
        members |= {
            f"{i}.json": b'{"a": 1, "b": [1, 2]}' if i != 3 else b'{"a": 1, "b": "no number"}',
            f"{i}.cls": b"0",
        }
    write_tar(tmp_path / "t.tar", members)
    vectors = {name: {"type": "vector", "path": name} for name in ("a", "b")}
    fields = {**vectors, "c": {"type": "label", "target": "number", "path": "a"}, "k": {"type": "label"}}
    job = _job(
        tmp_path,
        shards=str(tmp_path / "t.tar"),
        fields=fields,
        members={"a": "json", "b": "json", "c": "json", "k": "cls"},
        on_missing="absent",
    )
    metrics = run_preprocess(job)["metrics"]
    assert metrics["num_absent"] == {"a": 1, "b": 1, "c": 1, "k": 0}
    assert metrics["num_unusable"] == {"a": 0, "b": 1, "c": 0, "k": 0}


def test_settings_beside_streams_and_pickled_streams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"members\.drive: fields\.drive\.streams says .* remove members\.drive"):
        _job(tmp_path, members={"drive": "imu.npy"})
    for stream in ({"member": "imu.pkl", "source_rate_hz": 1}, {"member": "imu.npy", "time_member": "t.pt"}):
        with pytest.raises(JobFileError, match=r"fields\.drive\.streams: \.(imu\.pkl|t\.pt) members are pickled"):
            _job(tmp_path, fields={"drive": {"type": "series", "rate_hz": 1, "streams": [stream]}}, members={})
