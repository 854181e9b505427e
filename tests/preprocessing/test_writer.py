"""Tars: what WebDataset and tarfile read, the same bytes every time, and an index that needs no second look."""

from __future__ import annotations

import gc
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_mm.data.index import index_shard
from ray_mm.data.sidecar import index_path, read_index
from ray_mm.errors import RayMMError
from ray_mm.preprocessing.plan import Plan, plan_job
from ray_mm.preprocessing.writer import read_receipt, receipt_path, tar_header, write_shard, write_tar
from ray_mm.storage import sha256_file
from tests.preprocessing.tables import make_job, make_rows, write_csv, write_file

_KEYS = st.from_regex(r"\A[^./\\\x00-\x1f\ud800-\udfff]{1,60}(/[^./\\\x00-\x1f\ud800-\udfff]{1,60})?\Z")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        _KEYS,
        st.dictionaries(st.sampled_from(["image.jpg", "label.cls", "a-b_c.npy"]), st.binary(max_size=1100)),
        max_size=6,
    )
)
def test_what_is_written_is_what_tarfile_and_our_index_read(
    tmp_path: Path, samples: dict[str, dict[str, bytes]]
) -> None:
    shard = tmp_path / "0.tar"
    index = write_tar(shard, samples.items())
    assert index.version == f"sha256:{sha256_file(shard)}"
    with tarfile.open(shard) as tar:
        found = {info.name: _read(tar, info) for info in tar}
        assert all((info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "") for info in tar.getmembers())
    assert found == {f"{key}.{suffix}": data for key, members in samples.items() for suffix, data in members.items()}
    walked = index_shard(shard, with_checksums=True)
    assert index.keys == walked.keys and index.shard_bytes == walked.shard_bytes == shard.stat().st_size
    assert index.offsets.keys() == walked.offsets.keys()
    for suffix in index.offsets:
        assert (index.offsets[suffix] == walked.offsets[suffix]).all()
        assert (index.sizes[suffix] == walked.sizes[suffix]).all()
        assert (index.checksums[suffix] == walked.checksums[suffix]).all()
    again = tmp_path / "1.tar"
    write_tar(again, [(key, dict(reversed(members.items()))) for key, members in samples.items()])
    assert again.read_bytes() == shard.read_bytes()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.integers(0, 2**40))
def test_a_header_is_byte_for_byte_what_tarfile_writes(name: str, size: int) -> None:
    for padded in (name, name.rjust(100, "x"), name.rjust(101, "x")):
        info = tarfile.TarInfo(padded)
        info.size = size
        assert tar_header(padded, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(info)
    assert stream is not None
    return stream.read()


# WebDataset leaves the closing of its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    samples: dict[str, Mapping[str, bytes]] = {
        "000001": {"image.jpg": b"\xff\xd8", "label.cls": b"3", "text.txt": "grüße".encode()},
        "day 1/" + "x" * 150: {"label.cls": b"0"},
        "日本": {"image.png": b"png", "label.cls": b"1"},
    }
    write_tar(tmp_path / "0.tar", samples.items())
    found = list(webdataset.WebDataset([str(tmp_path / "0.tar")], shardshuffle=False))
    assert {sample["__key__"]: {k: v for k, v in sample.items() if k[0] != "_"} for sample in found} == samples
    gc.collect()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_job(make_job(write_csv(tmp_path / "t.csv", make_rows(tmp_path, 6)), key="key"))


def test_a_shard_comes_with_its_index_and_a_receipt_that_is_good_for_the_same_plan_only(plan: Plan) -> None:
    (shard,) = plan.shards
    assert read_receipt(plan.settings.output, shard) is None
    summary = write_shard(plan.shard_rows(shard), shard, plan.settings)
    path = plan.settings.output / "train/shards/000000.tar"
    assert (
        len(read_index(index_path(path), str(path))) == summary.num_samples == 6
        and summary.size_bytes == path.stat().st_size
    )
    assert summary.fields["image"].extensions == ("jpg", "png") and summary.fields["image"].shapes == {"16x16": 6}
    assert sum(summary.fields["label"].classes.values()) == 6
    assert summary.fields["points"].longest == 11 and summary.fields["audio"].longest == 0.2
    assert read_receipt(plan.settings.output, shard) == summary
    assert read_receipt(plan.settings.output, replace(shard, digest="other")) is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["000000.index.parquet", "000000.tar"]


@pytest.mark.parametrize("damage", ["tar", "index", "receipt"])
def test_a_receipt_for_something_damaged_is_not_taken(plan: Plan, damage: str) -> None:
    (shard,) = plan.shards
    write_shard(plan.shard_rows(shard), shard, plan.settings)
    path = plan.settings.output / "train/shards/000000.tar"
    file = {
        "tar": path,
        "index": path.with_suffix(".index.parquet"),
        "receipt": receipt_path(plan.settings.output, shard),
    }
    file[damage].write_bytes(file[damage].read_bytes()[:-10])
    assert read_receipt(plan.settings.output, shard) is None


def test_bad_cells_are_counted_and_nothing_is_written(tmp_path: Path, plan: Plan) -> None:
    for row in (1, 3, 4, 5):
        size = (tmp_path / f"files/image{row}.bin").stat().st_size
        write_file(tmp_path / f"files/image{row}.bin", b"x" * size)
    (shard,) = plan.shards
    summary = write_shard(plan.shard_rows(shard), shard, plan.settings)
    assert summary.num_bad == 4 and [cell.row for cell in summary.bad] == [2, 4, 5]
    assert (
        summary.bad[0].field == "image"
        and summary.bad[0].reason == f"{tmp_path}/files/image1.bin: is not JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
    )
    assert list((plan.settings.output / "train/shards").iterdir()) == []
    assert read_receipt(plan.settings.output, shard) is None
    lenient = replace(plan.settings, on_missing="absent")
    summary = write_shard(plan.shard_rows(shard), shard, lenient)
    assert summary.num_bad == 0 and summary.num_samples == 6
    assert summary.fields["image"].present == 2 and summary.fields["image"].unusable == 4


def test_a_file_that_changes_in_between_stops_the_run(tmp_path: Path, plan: Plan) -> None:
    (shard,) = plan.shards
    rows = plan.shard_rows(shard)
    write_file(tmp_path / "files/series2.npy", b"another size")
    with pytest.raises(
        RayMMError, match=r"series2\.npy: changed while the dataset was being made: it had \d+ bytes and has 12"
    ):
        write_shard(rows, shard, plan.settings)
    (tmp_path / "files/series2.npy").unlink()
    with pytest.raises(RayMMError, match="changed while the dataset was being made"):
        write_shard(rows, shard, plan.settings)


def test_a_shard_that_can_not_be_written_is_an_error_that_names_it(plan: Plan) -> None:
    (shard,) = plan.shards
    plan.settings.output.mkdir()
    (plan.settings.output / "train").write_text("in the way")
    with pytest.raises(RayMMError, match=r"train/shards/000000\.tar: can't be written"):
        write_shard(plan.shard_rows(shard), shard, plan.settings)


def test_rows_that_turn_out_to_be_empty_are_counted_and_leave_no_sample(tmp_path: Path) -> None:
    rows = [{"series": "[]"}, {"series": "[1]"}, {"series": "[]"}]
    plan = plan_job(make_job(write_csv(tmp_path / "t.csv", rows), ["series"]))
    (shard,) = plan.shards
    summary = write_shard(plan.shard_rows(shard), shard, plan.settings)
    assert (summary.num_samples, summary.num_empty) == (1, 2)
    only_empty = replace(shard, rows=(0, 2))
    summary = write_shard(plan.shard_rows(only_empty), only_empty, plan.settings)
    assert (summary.num_samples, summary.num_empty) == (0, 2)
    assert list((plan.settings.output / "train/shards").iterdir()) == []
    assert read_receipt(plan.settings.output, only_empty) == summary


def test_moments_in_a_summary_are_those_of_its_values(plan: Plan) -> None:
    (shard,) = plan.shards
    summary = write_shard(plan.shard_rows(shard), shard, plan.settings)
    numbers = [float(value) for value in plan.source.values("number")]
    moments = summary.fields["number"].moments
    assert moments is not None and moments.count == 6
    assert moments.mean[0] == pytest.approx(np.mean(numbers), rel=1e-6)
