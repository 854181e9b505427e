"""Bad samples are kept aside once, with their bytes, and stop a run only over its limits."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.base import BadSamples
from ray_mm.data.quarantine import check_budget, list_quarantine, quarantine
from ray_mm.errors import QuarantineBudgetError, RayMMError, SampleError

DATASET = "/data/train"


def _error(key: str = "a", field: str = "image", shard: str = "shards/000000.tar") -> SampleError:
    return SampleError(shard, key, field, "damaged")


def test_a_bad_member_is_kept_with_its_reason_and_its_bytes(tmp_path: Path) -> None:
    quarantine(tmp_path / "quarantine", DATASET, _error(), memoryview(b"\xff\xd8"))
    (record,) = (tmp_path / "quarantine").glob("*.json")
    assert json.loads(record.read_text()) == {
        "dataset": "/data/train",
        "shard": "shards/000000.tar",
        "key": "a",
        "field": "image",
        "reason": "damaged",
    }
    assert record.with_suffix(".bin").read_bytes() == b"\xff\xd8"
    assert len(list((tmp_path / "quarantine").iterdir())) == 2, "nothing temporary is left"


def test_a_member_that_is_met_again_is_not_written_again(tmp_path: Path) -> None:
    quarantine(tmp_path, DATASET, _error(), b"first")
    quarantine(tmp_path, DATASET, _error(), b"second")
    (content,) = tmp_path.glob("*.bin")
    assert content.read_bytes() == b"first"


def test_members_that_differ_in_anything_are_kept_apart(tmp_path: Path) -> None:
    for error in (_error(), _error(key="b"), _error(field="audio"), _error(shard="shards/000001.tar")):
        quarantine(tmp_path, DATASET, error, b"")
    quarantine(tmp_path, "/data/validation", _error(), b"")
    assert [str(one.error) for one in list_quarantine(tmp_path)] == [
        "shards/000000.tar[a].audio: damaged",
        "shards/000000.tar[a].image: damaged",
        "shards/000000.tar[a].image: damaged",
        "shards/000000.tar[b].image: damaged",
        "shards/000001.tar[a].image: damaged",
    ]


def test_a_quarantine_that_was_never_needed_is_empty(tmp_path: Path) -> None:
    assert list_quarantine(tmp_path / "none") == []


def test_the_error_names_the_limit_the_first_sample_and_the_folder(tmp_path: Path) -> None:
    quarantine(tmp_path, DATASET, _error(key="b"), b"")
    quarantine(tmp_path, DATASET, _error(key="a"), b"")
    with pytest.raises(QuarantineBudgetError) as raised:
        check_budget(BadSamples(max_count=1, max_rate=1.0), 2, 10, tmp_path)
    for part in ("2 of 10 samples", "bad_samples.max_count 1", "shards/000000.tar[a].image: damaged", str(tmp_path)):
        assert part in str(raised.value)
    with pytest.raises(QuarantineBudgetError, match=r"bad_samples\.max_rate 0\.05"):
        check_budget(BadSamples(), 6, 100, tmp_path)


@given(quarantined=st.integers(0, 300), good=st.integers(0, 300), max_count=st.integers(0, 200), rate=st.floats(0, 1))
def test_the_stricter_limit_holds_and_the_rate_is_judged_from_a_hundred_samples(
    quarantined: int, good: int, max_count: int, rate: float
) -> None:
    seen = quarantined + good
    allowed = quarantined <= max_count and (seen < 100 or quarantined <= rate * seen)
    try:
        check_budget(BadSamples(max_count=max_count, max_rate=rate), quarantined, seen, Path("/nowhere"))
    except QuarantineBudgetError:
        assert not allowed
    else:
        assert allowed


def test_a_full_disk_stops_the_run_with_shard_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ray_mm.data.quarantine.write_atomic", full)
    with pytest.raises(
        RayMMError, match=r"shards/000000\.tar\[a\]\.image: damaged; and it can't be kept .*No space left"
    ):
        quarantine(tmp_path, DATASET, _error(), b"x")
