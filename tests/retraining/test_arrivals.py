"""Which shards are new: by a listing, by their names, by a manifest."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ray_mm.config.retrain import Arrivals
from ray_mm.errors import DatasetError, UsageError
from ray_mm.retraining.arrivals import Found, find_arrivals, oldest_hours
from ray_mm.retraining.watermark import Watermark
from ray_mm.storage.conditional import Documents
from ray_mm.storage.remote import put_if_absent

NOW = datetime(2026, 11, 3, 12, tzinfo=timezone.utc).timestamp()


class Place:
    """A folder in which shards come in, and a watermark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "in"
        self.folder.mkdir()
        self.watermark = Watermark(Documents(folder / "state"))

    def put(self, name: str, content: bytes = b"x" * 512, age_s: float = 3600) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        os.utime(path, (NOW - age_s, NOW - age_s))
        return path

    def find(self, now: float = NOW, **settings: Any) -> Found:
        return find_arrivals(Arrivals(**{"shards": str(self.folder), **settings}), self.watermark, now)

    def take(self, found: Found, until: float = NOW) -> None:
        self.watermark.commit(f"run-{until}", [each.as_arrival(1, until) for each in found.new], 1, (), until)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def names(found: Found) -> list[str]:
    return [Path(each.url).name for each in found.new]


def test_nothing_has_come_yet_is_no_mistake_but_a_folder_that_is_not_there_is(place: Place) -> None:
    assert place.find() == Found(())
    assert place.find(shards=f"{place.folder}/*.tar") == Found(())
    with pytest.raises(DatasetError, match="no such file or folder"):
        place.find(shards=f"{place.folder}/elsewhere")


def test_a_shard_is_new_once_and_one_that_is_still_written_waits(place: Place) -> None:
    place.put("a.tar")
    place.put("b.tar", age_s=20)
    found = place.find()
    assert names(found) == ["a.tar"] and found.num_settling == 1
    place.take(found)
    later = place.find(NOW + 3600)
    assert names(later) == ["b.tar"]
    assert oldest_hours(later.new, NOW + 3600) == pytest.approx(1 + 20 / 3600)


def test_one_that_was_taken_and_has_changed_is_refused(place: Place) -> None:
    place.put("a.tar")
    place.take(place.find())
    place.put("a.tar", b"y" * 1024, age_s=600)
    found = place.find()
    assert found.new == () and "has changed since a night took it" in found.refused[0].reason


def test_an_old_file_that_comes_late_is_not_late_where_nothing_tells_its_time(place: Place) -> None:
    place.put("a.tar")
    place.take(place.find())
    place.put("old.tar", age_s=3600 * 24 * 100)
    assert names(place.find(NOW + 3600)) == ["old.tar"]


def test_names_tell_the_time_in_a_zone_with_summer_time(place: Place) -> None:
    for name in (
        "cam-2026-10-25T01-30.tar",
        "cam-2026-10-25_023015.tar",
        "cam-2026-10-26.tar",
        "cam-2026-10-25T04.tar",
    ):
        place.put(name)
    found = place.find(by="event_time", time_zone="Europe/Berlin")
    assert names(found) == [
        "cam-2026-10-25T01-30.tar",
        "cam-2026-10-25_023015.tar",
        "cam-2026-10-25T04.tar",
        "cam-2026-10-26.tar",
    ]
    times = [datetime.fromtimestamp(each.event_time or 0, timezone.utc).strftime("%d %H:%M:%S") for each in found.new]
    # In summer two hours before UTC, after three o'clock of that day one; the hour that comes twice is taken for the first.
    assert times == ["24 23:30:00", "25 00:30:15", "25 03:00:00", "25 23:00:00"]


def test_a_shard_of_the_future_waits_and_a_late_one_is_refused(place: Place) -> None:
    place.put("2026-11-03T13.tar")
    place.put("2026-11-03T11.tar")
    found = place.find(by="event_time")
    assert names(found) == ["2026-11-03T11.tar"]
    place.take(found)
    place.put("2026-11-01T11.tar")
    place.put("2026-11-02T11.tar")
    later = place.find(NOW + 7200, by="event_time", late_hours=36)
    assert names(later) == ["2026-11-02T11.tar", "2026-11-03T13.tar"]
    assert [(Path(each.shard.url).name, each.reason) for each in later.refused] == [
        ("2026-11-01T11.tar", "came later than arrivals.late_hours allows")
    ]


def test_a_name_without_a_time_is_told(place: Place) -> None:
    place.put("a.tar")
    with pytest.raises(UsageError, match=r"arrivals\.time_pattern: .* finds no time such as 2026-11-03 .* in 'a\.tar'"):
        place.find(by="event_time")


def test_a_manifest_says_what_counts_and_what_it_is(place: Place) -> None:
    for name in ("a.tar", "b.tar", "c.tar"):
        place.put(name)
    manifest = place.folder / "list.jsonl"
    settings = {"by": "manifest", "manifest": str(manifest)}
    assert place.find(**settings) == Found(())
    rows: list[dict[str, Any]] = [
        {"path": "a.tar", "size_bytes": 512, "sha256": "0" * 64, "event_time": "2026-11-02T12:00:00+02:00"},
        {"path": str(place.folder / "b.tar"), "size_bytes": 5},
        {"path": "comes-later.tar"},
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = place.find(**settings)
    assert names(found) == ["a.tar"] and found.new[0].sha256 == "0" * 64
    assert found.new[0].event_time == datetime(2026, 11, 2, 10, tzinfo=timezone.utc).timestamp()
    assert [each.reason for each in found.refused] == ["has 512 bytes, the manifest says 5"]


def test_shards_in_a_store_are_known_by_their_etag_and_the_time_they_were_written(place: Place, bucket: str) -> None:
    for name in ("a.tar", "b.tar"):
        put_if_absent(f"s3://{bucket}/in/{name}", b"x" * 512)
    now = time.time() + 120
    found = place.find(now, shards=f"s3://{bucket}/in/")
    # Their bytes are the same: one is a copy of the other.
    assert [each.url for each in found.new] == [f"s3://{bucket}/in/a.tar"]
    assert "same bytes as a shard that was taken" in found.refused[0].reason
    assert found.new[0].version.startswith("etag:") and found.new[0].modified_s == pytest.approx(now - 120, abs=30)
    assert place.find(now - 110, shards=f"s3://{bucket}/in/").num_settling == 2
    assert place.find(now, shards=f"s3://{bucket}/nothing-yet/") == Found(())


@pytest.mark.parametrize(
    "line", ["no JSON", "[1]", '{"name": "a"}', '{"path": "a", "sha256": "x"}', '{"path": "a", "event_time": "soon"}']
)
def test_a_line_of_a_manifest_that_can_not_be_read_is_named(place: Place, line: str) -> None:
    place.put("a.tar")
    manifest = place.folder / "list.jsonl"
    manifest.write_text('{"path": "a.tar"}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"list\.jsonl:2 can't be read"):
        place.find(by="manifest", manifest=str(manifest))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "manifest"}, "manifest belongs to by: manifest"),
        ({"tables": "a.csv"}, "takes either shards or tables"),
        ({"shards": None}, "takes either shards or tables"),
        ({"key": "id"}, "key is for tables; remove it"),
        ({"shards": None, "tables": "in/*.jsonl", "members": {"a": "jpg"}}, "members is for shards; remove it"),
        ({"shards": None, "tables": "in"}, r"named as in/\*\.jsonl"),
        ({"shards": None, "tables": ("a.csv", "s3://b/c.csv")}, "a disk that every node sees"),
        ({"manifest": "x"}, "manifest belongs to by: manifest"),
        ({"time_pattern": "("}, "is no regular expression"),
        ({"time_pattern": "x"}, "needs a group in parentheses"),
        ({"time_zone": "Europe/Nowhere"}, "time_zone 'Europe/Nowhere' is not known"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Arrivals(**{"shards": "in", **settings})
