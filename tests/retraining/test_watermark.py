"""The watermark: every shard counts once, whatever arrives when, and whoever is killed where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mm.errors import LeaseLost, RegistryError, WriteConflictError
from ray_mm.retraining.watermark import Arrival, Watermark
from ray_mm.storage.conditional import Documents

HOUR = 3600.0


def shard(number: int, version: str = "", hour: float | None = None) -> Arrival:
    """A shard of 10 samples, an hour after the one before."""
    return Arrival(
        f"/data/{number}.tar",
        version or f"sha256:{number:064d}",
        10,
        HOUR * (number if hour is None else hour),
    )


@pytest.fixture
def watermark(tmp_path: Path) -> Watermark:
    return Watermark(Documents(tmp_path))


def test_what_was_consumed_is_not_new_again(watermark: Watermark) -> None:
    assert watermark.read().event_time is None and watermark.read().num_samples == 0
    first = watermark.sort([shard(1), shard(2)])
    assert first.new == (shard(1), shard(2))
    mark = watermark.commit("night-1", first.new, fence=1)
    assert (mark.event_time, mark.runs, mark.num_shards, mark.num_samples) == (2 * HOUR, ("night-1",), 2, 20)
    second = watermark.sort([shard(1), shard(2), shard(3)])
    assert second.done == (shard(1), shard(2)) and second.new == (shard(3),)
    watermark.commit("night-2", second.new, fence=2)
    assert watermark.consumed() == {found.path: found.version for found in (shard(1), shard(2), shard(3))}
    assert Watermark(Documents(watermark._documents.root)).read().num_samples == 30


def test_what_is_written_anew_or_copied_is_told_and_not_consumed_again(watermark: Watermark) -> None:
    watermark.commit("night-1", [shard(1), replace(shard(2), version="mtime:7")], fence=1)
    anew, copy = replace(shard(1), version="sha256:other"), replace(shard(1), path="/elsewhere/1.tar")
    twin, same_time = replace(shard(3), path="/elsewhere/3.tar"), Arrival("/data/4.tar", "mtime:7", 10, 4 * HOUR)
    found = watermark.sort([anew, copy, shard(3), twin, same_time])
    assert (found.changed, found.copies, found.new) == ((anew,), (copy, twin), (shard(3), same_time))
    for wrong in ([anew], [copy], [shard(3), shard(3)], [shard(3), twin]):
        with pytest.raises(WriteConflictError, match=r"was consumed already.*would count twice"):
            watermark.commit("night-2", wrong, fence=1)
    assert watermark.read().runs == ("night-1",)


def test_late_data_counts_within_its_window(watermark: Watermark) -> None:
    watermark.commit("night-1", [shard(10)], fence=1)
    late, later = shard(11, hour=8), shard(12, hour=6)
    found = watermark.sort([late, later], late_window_s=3 * HOUR)
    assert (found.new, found.too_late) == ((late,), (later,))
    # Late data does not turn the watermark back.
    assert watermark.commit("night-2", found.new, fence=1).event_time == 10 * HOUR


def test_a_night_without_shards_moves_it_up_to_its_end(watermark: Watermark) -> None:
    assert watermark.commit("night-1", [], fence=1, until=24 * HOUR).event_time == 24 * HOUR
    assert watermark.commit("night-2", [shard(30)], fence=1, until=29 * HOUR).event_time == 29 * HOUR
    assert watermark.commit("night-3", [], fence=1).event_time == 29 * HOUR


def test_a_bad_shard_is_set_aside_until_it_is_written_anew(watermark: Watermark) -> None:
    mark = watermark.commit("night-1", [shard(1)], fence=1, set_aside=[shard(2)])
    assert mark.num_samples == 10
    mended = replace(shard(2), version="sha256:mended")
    found = watermark.sort([shard(2), shard(1)])
    assert found.set_aside == (shard(2),) and found.new == ()
    assert watermark.sort([mended], late_window_s=HOUR).new == (mended,)
    watermark.commit("night-2", [mended], fence=1)
    assert watermark.sort([mended]).done == (mended,)


def test_committing_again_changes_nothing_and_a_run_commits_once(watermark: Watermark) -> None:
    mark = watermark.commit("night-1", [shard(1)], fence=1)
    assert mark.runs == ("night-1",)
    assert watermark.commit("night-1", [shard(1)], fence=1) == mark
    with pytest.raises(RegistryError, match="'night-1' has moved the watermark already, over other shards"):
        watermark.commit("night-1", [shard(2)], fence=1)
    assert watermark.read() == mark


def test_an_older_lease_does_not_move_it(watermark: Watermark) -> None:
    watermark.admit(2)
    with pytest.raises(LeaseLost):
        watermark.commit("night-1", [shard(1)], fence=1)
    assert watermark.read().num_samples == 0 and watermark.sort([shard(1)]).new == (shard(1),)


def test_a_run_that_is_killed_before_it_moves_it_does_the_same_again(
    watermark: Watermark, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(watermark._shared, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            watermark.commit("night-1", [shard(1)], fence=1)
    assert watermark.sort([shard(1)]).new == (shard(1),)
    assert watermark.commit("night-1", [shard(1)], fence=2).num_samples == 10


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_part_is_named_before_anything_counts_twice(tmp_path: Path, damage: str) -> None:
    Watermark(Documents(tmp_path)).commit("night-1", [shard(1)], fence=1)
    (part,) = (tmp_path / "watermark" / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-2]) if damage == "cut" else part.unlink()
    with pytest.raises(RegistryError, match=rf"{part.name}: is (missing|damaged); .*count twice"):
        Watermark(Documents(tmp_path)).sort([shard(1)])


def test_one_that_a_newer_version_wrote_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "watermark" / "watermark.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"format": "ray_mm.watermark", "version": 2, "revision": 1, "fence": 1}))
    before = file.read_bytes()
    with pytest.raises(RegistryError, match="newer version of ray_mm"):
        Watermark(Documents(tmp_path)).commit("night-1", [shard(1)], fence=1)
    assert file.read_bytes() == before


@settings(max_examples=30)
@given(nights=st.lists(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=6), max_size=6))
def test_no_sample_counts_twice_whatever_arrives(
    tmp_path_factory: pytest.TempPathFactory, nights: list[list[tuple[int, int]]]
) -> None:
    # A listing every night: paths come, go, and are written anew with bytes that are another's.
    watermark, counted = Watermark(Documents(tmp_path_factory.mktemp("watermark"))), []
    for number, night in enumerate(nights):
        arrivals = [shard(path, f"sha256:{path // 2}-{version}") for path, version in dict(night).items()]
        found = watermark.sort(arrivals, late_window_s=1e9)
        assert sum(len(part) for part in vars(found).values()) == len(arrivals)
        watermark.commit(f"night-{number}", found.new, fence=number + 1)
        counted += found.new
    assert len({arrival.path for arrival in counted}) == len({arrival.version for arrival in counted}) == len(counted)
    assert watermark.read().num_samples == 10 * len(counted)
