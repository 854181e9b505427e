"""A series of several streams: from the columns of a table to a dataset."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.fields import SeriesField
from ray_mm.config.load import load_job
from ray_mm.data.decode.arrays import read_npy
from ray_mm.data.decode.streams import read_streams
from ray_mm.data.manifest import open_dataset
from ray_mm.errors import JobFileError, RayMMError, UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.preprocessing.tables import make_job, members_by_key, write_csv, write_file, write_json_lines

DRIVE: dict[str, Any] = {
    "type": "series",
    "rate_hz": 20,
    "streams": [
        {"member": "imu", "time_member": "imu_t"},
        {"member": "gps", "path": ["lat", "lon"], "time_path": "t"},
    ],
}


def npy(values: Any) -> bytes:
    """An array as a file."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def payloads(i: int, shift: float = 0.0) -> dict[str, bytes]:
    """What the sensors of a drive wrote: 2 s of an IMU at 100 Hz, and a GPS at 10 Hz that starts a little later."""
    rng = np.random.default_rng(i)
    imu_t = 1000.0 * i + np.arange(200) / 100
    gps_t = 1000.0 * i + 0.25 + shift + np.arange(18) / 10
    fixes = zip(gps_t.tolist(), *rng.normal(size=(2, 18)).tolist(), strict=True)
    return {
        "imu": npy(rng.normal(size=(200, 3))),
        "imu_t": npy(imu_t),
        "gps": "\n".join(["t,lat,lon", *(",".join(map(repr, fix)) for fix in fixes)]).encode(),
    }


def _write(folder: Path, num_rows: int = 6) -> list[dict[str, Any]]:
    rows = []
    for i in range(num_rows):
        for name, payload in payloads(i).items():
            write_file(folder / f"{name}{i}.bin", payload)
        rows.append(
            {"key": f"k{i}", "note": f"row {i}", **{name: f"{name}{i}.bin" for name in ("imu", "imu_t", "gps")}}
        )
    return rows


def _run(folder: Path, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    table = write_csv(folder / "t.csv", rows)
    return run_preprocess(make_job(table, {"drive": DRIVE, "note": {"type": "text"}}, key="key", **more))


@pytest.mark.ray
def test_the_columns_of_a_table_become_one_series(local_ray: None, tmp_path: Path) -> None:
    assert _run(tmp_path, _write(tmp_path))["status"] == "done"
    dataset = open_dataset(tmp_path / "out/train")
    spec = dataset.manifest.fields["drive"]
    assert spec == SeriesField(channels=5, max_length=35, rate_hz=20, source_rate_hz=20)
    assert dataset.manifest.members["drive"] == ("drive.npy",)
    for key, members in members_by_key(dataset).items():
        expected = read_streams(payloads(int(key[1:])), SeriesField.model_validate(DRIVE))
        assert expected is not None and len(expected) == 35
        assert np.array_equal(read_npy(members["drive"]), expected)


@pytest.mark.ray
def test_a_changed_file_of_any_stream_is_seen(local_ray: None, tmp_path: Path) -> None:
    rows = _write(tmp_path)
    assert _run(tmp_path, rows)["status"] == "done"
    assert _run(tmp_path, rows)["status"] == "unchanged"
    write_file(tmp_path / "gps3.bin", payloads(3)["gps"] + b"\n")
    with pytest.raises(RayMMError, match="was made from another state"):
        _run(tmp_path, rows)


@pytest.mark.ray
def test_streams_that_are_missing_damaged_or_apart_are_told_or_left_absent(local_ray: None, tmp_path: Path) -> None:
    rows = _write(tmp_path)
    rows[0]["gps"] = None
    write_file(tmp_path / "imu2.bin", b"no array")
    write_file(tmp_path / "gps4.bin", payloads(4, shift=60)["gps"])
    with pytest.raises(RayMMError) as caught:
        _run(tmp_path, rows)
    assert f"2 cells: row 3 drive (imu ({tmp_path}/imu2.bin), imu_t (" not in str(caught.value)
    assert f"row 3 drive (imu ({tmp_path}/imu2.bin): " in str(caught.value)
    assert (
        f"row 5 drive (imu ({tmp_path}/imu4.bin), imu_t ({tmp_path}/imu_t4.bin), gps ({tmp_path}/gps4.bin): has streams"
        in (str(caught.value))
    )
    (tmp_path / "imu_t5.bin").unlink()
    with pytest.raises(UsageError, match=r"1 cell: row 6 drive\.imu_t .*imu_t5\.bin \(no such file\)"):
        _run(tmp_path, rows)
    metrics = _run(tmp_path, rows, on_missing="absent")["metrics"]
    assert metrics["num_absent"]["drive"] == 4 and metrics["num_unusable"]["drive"] == 3
    listed = [json.loads(line) for line in (tmp_path / "out/unusable.jsonl").read_text().splitlines()]
    assert [(cell["row"], cell["field"]) for cell in listed] == [(3, "drive"), (5, "drive"), (6, "drive")]
    found = members_by_key(open_dataset(tmp_path / "out/train"))
    assert {key for key, members in found.items() if "drive" in members} == {"k1", "k3"}


@pytest.mark.ray
def test_cells_may_hold_the_values_themselves(local_ray: None, tmp_path: Path) -> None:
    rows = [{"v": [[i, 2], [i + 1, 4]], "t": [0.0, 1.0], "w": "[7, 9]"} for i in range(3)] + [
        {"v": [], "t": [], "w": "[1]"}
    ]
    spec = {
        "type": "series",
        "rate_hz": 2,
        "streams": [{"member": "v", "time_member": "t"}, {"member": "w", "source_rate_hz": 1}],
    }
    job = make_job(
        write_json_lines(tmp_path / "t.jsonl", rows), {"s": spec, "n": {"type": "vector"}}, columns={"n": "t"}
    )
    metrics = run_preprocess(job)["metrics"]
    assert metrics["num_empty"] == 1 and metrics["num_absent"] == {"n": 0, "s": 0}
    found = members_by_key(open_dataset(tmp_path / "out/train"))
    assert read_npy(found["000002"]["s"]).tolist() == [[1, 2, 7], [1.5, 3, 8], [2, 4, 9]]


def test_columns_that_are_not_there_and_settings_beside_streams_are_refused(tmp_path: Path) -> None:
    rows = _write(tmp_path, 1)
    del rows[0]["imu_t"]
    with pytest.raises(UsageError, match=r"fields\.drive \(series\): .* has no column 'imu_t'"):
        _run(tmp_path, rows)
    content = {"kind": "preprocess", "name": "x", "table": "t.csv", "fields": {"drive": DRIVE}, "output": "o"}
    with pytest.raises(JobFileError, match=r"columns\.drive: fields\.drive\.streams says .* remove columns\.drive"):
        load_job(content | {"columns": {"drive": "imu"}})
