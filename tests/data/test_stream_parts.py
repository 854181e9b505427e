"""Series of several streams in a tar: every member is read, checked and set aside by itself, and together they are the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_mm.config.cache import DecodedCache
from ray_mm.config.fields import SeriesField, SeriesStream, VectorField
from ray_mm.config.source import Source
from ray_mm.data.decode.streams import read_streams
from ray_mm.data.epochs import sequence
from ray_mm.data.fields import WEIGHT, length_name, presence_name
from ray_mm.data.fit import require_fit
from ray_mm.data.index import index_shard
from ray_mm.data.manifest import Dataset, ShardInfo, open_dataset, write_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import BatchReader
from ray_mm.data.replay import replay_quarantine
from ray_mm.data.row_cache import RowCache
from ray_mm.data.selection import select
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.errors import DatasetError
from ray_mm.storage import sha256_file
from tests.factories import write_tar
from tests.preprocessing.test_streams import npy, payloads

DRIVE = SeriesField(
    channels=5,
    max_length=40,
    rate_hz=20,
    streams=(
        SeriesStream(member="imu.npy", time_member="imu_t.npy"),
        SeriesStream(member="gps.csv", path=("lat", "lon"), time_path="t"),
    ),
)
MISSING, DAMAGED, APART = 2, 3, 4


def sample(i: int) -> dict[str, bytes]:
    """Suffix → payload: the second sample lacks its GPS, the third has a damaged IMU, the fourth a GPS of another minute."""
    found = payloads(i, shift=60 if i == APART else 0)
    members = {
        "imu.npy": found["imu"],
        "imu_t.npy": found["imu_t"],
        "gps.csv": found["gps"],
        "state.npy": npy([float(i)]),
    }
    if i == MISSING:
        del members["gps.csv"]
    if i == DAMAGED:
        members["imu.npy"] = b"\x93NUMPY this is no array"
    return members


def make(folder: Path, samples: dict[int, dict[str, bytes]]) -> Dataset:
    """A dataset of one shard with checksums."""
    tar = folder / "shards/000000.tar"
    write_tar(
        tar, {f"{i:03d}.{suffix}": payload for i, members in samples.items() for suffix, payload in members.items()}
    )
    index = index_shard(tar, with_checksums=True)
    write_index(index_path(tar), replace(index, labels={}))
    shard = ShardInfo(
        "shards/000000.tar", "shards/000000.index.parquet", len(index), tar.stat().st_size, f"sha256:{sha256_file(tar)}"
    )
    write_dataset(
        folder,
        name="streams",
        shards=[shard],
        fields={"drive": DRIVE, "state": VectorField(size=1)},
        members={"drive": DRIVE.members, "state": ("state.npy",)},
        presence={"drive": sum(len(members) == 4 for members in samples.values()), "state": len(samples)},
        label_counts={},
        statistics={},
    )
    return open_dataset(folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make(tmp_path / "data", {i: sample(i) for i in range(6)})


def _read(dataset: Dataset, quarantine: Path | None = None, cache: DecodedCache | None = None) -> dict[str, np.ndarray]:
    preprocessor = preprocessor_for(dataset, {}, ["drive", "state"])
    rows = None if cache is None else RowCache(cache, [dataset], preprocessor)
    reader = BatchReader([dataset], preprocessor, quarantine, None, rows)
    return dict(reader.read(sequence(dataset).places(0, 6), 0, 6)[0])


def test_a_batch_has_the_aligned_values_of_all_members(dataset: Dataset) -> None:
    arrays = _read(dataset)
    assert arrays[presence_name("drive")].tolist() == [True, True, False, False, False, True]
    assert arrays[WEIGHT].tolist() == [1, 1, 1, 0, 0, 1]
    for i in (0, 1, 5):
        parts = {suffix: payload for suffix, payload in sample(i).items() if suffix != "state.npy"}
        expected = read_streams(parts, DRIVE)
        assert expected is not None
        length = int(arrays[length_name("drive")][i])
        assert length == len(expected) == 35
        assert np.array_equal(arrays["drive"][i, :length], expected) and not arrays["drive"][i, length:].any()
    assert not arrays["drive"][MISSING].any() and arrays["state"][MISSING] == MISSING


def test_a_series_that_was_kept_is_there(dataset: Dataset, tmp_path: Path) -> None:
    expected = _read(dataset)
    for _ in range(2):
        found = _read(dataset, cache=DecodedCache(folder=str(tmp_path / "cache"), size=10**7))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].tobytes() == array.tobytes(), name


def test_only_samples_with_all_streams_have_the_field(dataset: Dataset) -> None:
    selection = select(Source(path=str(dataset.root), require=("drive",)), dataset, "data")
    assert selection.rows(dataset, 0, dataset.read_index(0)).tolist() == [0, 1, 3, 4, 5]


def _run(dataset: Dataset) -> Path:
    run = Path(dataset.root).parent / "run"
    run.mkdir()
    (run / "job.json").write_text(json.dumps({"kind": "train", "data": {"fields": {}}}))
    _read(dataset, run / "quarantine")
    return run


def test_members_at_fault_are_set_aside_with_their_names_first_and_replayed(dataset: Dataset) -> None:
    found = {(one.member.error.key, one.member.error.field): one for one in replay_quarantine(_run(dataset))}
    apart = [f"drive.{member}" for member in DRIVE.members]
    assert sorted(found) == [("003", "drive.imu.npy"), *(("004", part) for part in sorted(apart))]
    damaged = found["003", "drive.imu.npy"]
    assert damaged.member.error.reason.startswith("imu.npy: not a readable NPY")
    assert damaged.member.path.read_bytes() == sample(DAMAGED)["imu.npy"]
    for part in apart:
        error = found["004", part].member.error
        assert error.reason.startswith("imu.npy, imu_t.npy, gps.csv: has streams that do not overlap in time")
    for one in found.values():
        assert one.kept == one.now == one.member.error.reason


def test_mended_data_is_told_apart_from_what_was_kept(dataset: Dataset) -> None:
    run, root = _run(dataset), Path(dataset.root)
    whole = {i: sample(i) for i in range(6)}
    whole[DAMAGED]["imu.npy"] = npy(np.ones((200, 3)))
    whole[APART]["gps.csv"] = payloads(APART)["gps"]
    make(root, whole)
    for one in replay_quarantine(run):
        assert one.kept is not None and one.now is None
    # Without the sample, what was kept together tells; one part alone does not.
    make(root, {i: whole[i] for i in range(3)})
    reasons = {one.member.error.field: one.kept for one in replay_quarantine(run) if one.member.error.key == "004"}
    assert len(reasons) == 3 and all("do not overlap" in str(reason) for reason in reasons.values())


def test_a_member_with_other_bytes_than_were_indexed_is_set_aside_alone(dataset: Dataset) -> None:
    tar = dataset.shard_path(0)
    index = dataset.read_index(0)
    content = bytearray(tar.read_bytes())
    place = int(index.offsets["gps.csv"][1]) + int(index.sizes["gps.csv"][1]) - 1
    content[place] = ord("1") if content[place] != ord("1") else ord("2")
    tar.write_bytes(content)
    samples = SampleReader(dataset, ["drive"])
    assert sorted(samples.damaged(0, 1, samples.members(0, 1))) == ["drive.gps.csv"]
    run = _run(dataset)
    assert ("001", "drive.gps.csv") in {
        (one.member.error.key, one.member.error.field) for one in replay_quarantine(run)
    }


def test_a_model_of_one_member_does_not_fit_streams_nor_the_other_way_round() -> None:
    one = SeriesField(channels=5, max_length=40, rate_hz=20, source_rate_hz=20)
    with pytest.raises(
        DatasetError, match=r"drive\.streams: it is read from members imu\.npy, .* for the model from one member"
    ):
        require_fit("d", {"drive": DRIVE}, {"drive": one})
    with pytest.raises(DatasetError, match=r"it is read from one member, for the model from members imu\.npy"):
        require_fit("d", {"drive": one}, {"drive": DRIVE})
    assert DRIVE.streams is not None
    turned = DRIVE.streams[1].model_copy(update={"path": ("lon", "lat")})
    other = DRIVE.model_copy(update={"streams": (DRIVE.streams[0], turned)})
    with pytest.raises(DatasetError, match="names other parts or times of members imu"):
        require_fit("d", {"drive": DRIVE}, {"drive": other})
    assert require_fit("d", {"drive": DRIVE}, {"drive": DRIVE.model_copy(update={"rate_hz": 10.0})}) == []


def test_a_job_may_ask_for_another_rate_and_not_for_other_streams(dataset: Dataset) -> None:
    found = preprocessor_for(dataset, {"drive": SeriesField(rate_hz=10, max_length=20)}, ["drive"]).fields["drive"]
    assert found == DRIVE.model_copy(update={"rate_hz": 10.0, "max_length": 20})
    with pytest.raises(DatasetError, match=r"drive\.streams is fixed when a dataset is made"):
        preprocessor_for(dataset, {"drive": SeriesField(rate_hz=10, streams=DRIVE.streams)}, ["drive"])
