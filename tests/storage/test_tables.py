"""A Parquet file that is written bit by bit is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mm.storage.tables import table_file

ROWS = pa.table({"number": pa.array(range(10_000), pa.int64())})


def test_rows_are_collected_into_row_groups(tmp_path: Path) -> None:
    with table_file(tmp_path / "a.parquet", ROWS.schema) as file:
        for _ in range(5):
            file.add(ROWS)
        assert not (tmp_path / "a.parquet").exists()
    assert pq.read_table(tmp_path / "a.parquet").equals(pa.concat_tables([ROWS] * 5))
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
    assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o644


def test_nothing_is_left_where_something_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), table_file(tmp_path / "a.parquet", ROWS.schema) as file:
        file.add(ROWS)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
