"""The index on disk: whole, of the shard as it is now, and the same bytes for the same shard."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mm.data.index import Labels, ShardState, index_shard, require_current, shard_state
from ray_mm.data.sidecar import index_path, read_index, write_index
from ray_mm.errors import DatasetError
from ray_mm.storage import sha256_file
from tests.factories import write_tar


def test_an_index_that_is_missing_or_damaged_is_refused_with_the_remedy(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    path = index_path(shard)
    assert path == tmp_path / "0.index.parquet"
    with pytest.raises(DatasetError, match=f"index is missing; make it with: ray-mm index {shard}"):
        read_index(path, str(shard))
    write_index(path, index_shard(shard))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DatasetError, match=f"index is damaged .*; make it with: ray-mm index {shard}"):
        read_index(path, str(shard))
    with pytest.raises(DatasetError, match=r"index is damaged .*; begin anew"):
        read_index(path, str(shard), remedy="begin anew")


def test_a_shard_is_current_until_its_size_or_its_time_changes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    known = shard_state(str(shard))
    assert known.version == f"mtime:{shard.stat().st_mtime_ns}"
    require_current(str(shard), known, "")
    hashed = ShardState(known.size_bytes, f"sha256:{sha256_file(shard)}")
    os.utime(shard, ns=(0, 0))
    require_current(str(shard), hashed, "")
    with pytest.raises(DatasetError, match=r"has changed since .*\(now mtime:0, then mtime:\d+\).*, do this"):
        require_current(str(shard), known, "do this")
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(DatasetError, match="has 10752 bytes and had 10240 when it was indexed"):
        require_current(str(shard), hashed, "")
    shard.unlink()
    with pytest.raises(DatasetError, match="the shard is missing"):
        require_current(str(shard), hashed, "")


def test_labels_go_through_the_index_and_may_not_clash_with_a_suffix(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.label": b"x", "b.label": b"y"})
    labels: dict[str, Labels] = {"kind": np.array([1, -1], np.int32), "speed": np.array([0.5, np.nan], np.float32)}
    index = replace(index_shard(shard), labels=labels)
    write_index(index_path(shard), index)
    again = read_index(index_path(shard), str(shard))
    assert list(again.labels) == ["kind", "speed"] and list(again.offsets) == ["label"]
    for name, values in labels.items():
        np.testing.assert_array_equal(again.labels[name], values)
        assert again.labels[name].dtype == values.dtype
    with pytest.raises(DatasetError, match="label field 'size' clash; rename the field"):
        write_index(index_path(shard), replace(index, labels={"size": labels["kind"]}))


@pytest.mark.parametrize(("offset", "size"), [(10_000, 241), (-1, 5), (5, -1), (-7, -7), (None, 3)], ids=str)
def test_an_index_that_points_outside_its_shard_is_refused(tmp_path: Path, offset: int | None, size: int) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    path = index_path(shard)
    write_index(path, index_shard(shard))
    table = pq.read_table(path)
    columns = {"key": table["key"], "txt:offset": pa.array([offset], pa.int64()), "txt:size": pa.array([size])}
    pq.write_table(pa.table(columns).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DatasetError, match="index is damaged"):
        read_index(path, str(shard))


def test_the_same_shard_gives_the_same_index_bytes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x", "b.txt": b"y"})
    path = index_path(shard)
    write_index(path, index_shard(shard))
    first = path.read_bytes()
    write_index(path, index_shard(shard))
    assert path.read_bytes() == first
