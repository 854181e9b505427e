"""Positions → a decoded batch, whatever is missing, damaged or gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_mm.config.cache import DecodedCache
from ray_mm.config.fields import ImageField
from ray_mm.data.epochs import sequence
from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.data.manifest import Dataset, open_dataset, write_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.quarantine import list_quarantine
from ray_mm.data.reader import BatchReader, read_batches
from ray_mm.data.row_cache import RowCache
from ray_mm.errors import DatasetError, StorageError
from ray_mm.storage.cache import BlockCache
from ray_mm.storage.ranges import REMOTE_POLICY
from tests.factories import add_checksums, class_of, make_dataset, member_of, number_of
from tests.object_store import Fault, Proxy, delete_object, first_times, put_object, upload

FIELDS = ("image", "vector", "label", "number")


def _opened(path: Path | str) -> tuple[Dataset, Preprocessor]:
    dataset = open_dataset(path)
    return dataset, preprocessor_for(dataset, {}, dataset.manifest.fields)


def test_members_are_the_bytes_that_were_written(tmp_path: Path) -> None:
    dataset, _ = _opened(make_dataset(tmp_path, 7, FIELDS, num_shards=2))
    reader = SampleReader(dataset, list(FIELDS))
    for sample in range(7):
        shard, row = divmod(sample, 4)
        found = reader.members(shard, row)
        assert {field: bytes(view) for field, view in found.items()} == {
            field: member_of(field, sample)[1] for field in FIELDS
        }
        assert reader.name(shard, row) == (f"shards/{shard:06d}.tar", f"sample{sample:06d}")


def test_only_the_members_that_are_asked_for_are_read(tmp_path: Path) -> None:
    dataset, _ = _opened(make_dataset(tmp_path, 4, FIELDS, missing={"vector": 0.5}))
    reader = SampleReader(dataset, list(FIELDS))
    whole = [reader.members(0, row) for row in range(2)]
    for row in range(2):
        found = reader.members(0, row, fields=("image", "vector"))
        assert found == {field: whole[row][field] for field in ("image", "vector") if field in whole[row]}
        assert reader.damaged(0, row, found) == {}


def test_a_batch_has_its_samples_its_positions_and_its_keys(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 10, FIELDS, num_shards=3))
    reader = BatchReader([dataset], preprocessor, None)
    places = sequence(dataset).places
    arrays, keys = reader.read(places(3, 8), 3, 5)
    assert keys == [f"sample{i:06d}" for i in range(3, 8)]
    assert arrays[POSITION].tolist() == [3, 4, 5, 6, 7]
    assert arrays[WEIGHT].tolist() == [1.0] * 5
    assert arrays["label"].tolist() == [class_of(i) for i in range(3, 8)]
    np.testing.assert_allclose(arrays["number"], [number_of(i) for i in range(3, 8)], rtol=1e-6)
    assert arrays["image"].shape == (5, 16, 16, 3) and arrays["image.presence"].all()


def test_rows_that_nothing_is_left_for_are_padding(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 4, FIELDS))
    reader = BatchReader([dataset], preprocessor, None)
    places = sequence(dataset).places
    arrays, keys = reader.read(places(2, 4), 2, 5)
    assert keys == ["sample000002", "sample000003", "", "", ""]
    assert arrays[POSITION].tolist() == [2, 3, -1, -1, -1]
    assert arrays[WEIGHT].tolist() == [1, 1, 0, 0, 0]
    assert all(not array[2:].any() for name, array in arrays.items() if name != POSITION)
    nothing, keys = reader.read(places(4, 4), 4, 2)
    assert nothing[POSITION].tolist() == [-1, -1] and keys == ["", ""]


def test_a_missing_member_is_absent_and_the_sample_counts(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 30, FIELDS, missing={"image": 0.5, "label": 0.3}))
    (arrays,) = read_batches(sequence(dataset), preprocessor, 30)
    for field in FIELDS:
        assert arrays[presence_name(field)].sum() == dataset.manifest.presence[field]
        assert not arrays[field][~arrays[presence_name(field)]].any()
    assert arrays[WEIGHT].all()


def test_a_field_that_no_sample_has_is_absent_everywhere(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 6, FIELDS, missing={"image": 1.0}))
    assert dataset.manifest.presence["image"] == 0
    (arrays,) = read_batches(sequence(dataset), preprocessor, 6)
    assert not arrays["image.presence"].any() and arrays[WEIGHT].all()


def test_a_damaged_sample_keeps_its_place_without_weight_and_is_quarantined(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(
        make_dataset(tmp_path / "train", 6, FIELDS, num_shards=2, corrupt={(4, "image"), (4, "number"), (1, "vector")})
    )
    reader = BatchReader([dataset], preprocessor, tmp_path / "quarantine")
    locations = sequence(dataset).places(0, 6)
    for _ in range(2):
        arrays, keys = reader.read(locations, 0, 6)
        assert arrays[WEIGHT].tolist() == [1, 0, 1, 1, 0, 1]
        assert arrays[POSITION].tolist() == list(range(6)) and keys[4] == "sample000004"
        assert not any(arrays[presence_name(field)][4] for field in FIELDS)
    found = [one.error for one in list_quarantine(tmp_path / "quarantine")]
    assert [(error.shard, error.key, error.field) for error in found] == [
        ("shards/000000.tar", "sample000001", "vector"),
        ("shards/000001.tar", "sample000004", "image"),
        ("shards/000001.tar", "sample000004", "number"),
    ]
    for record in (tmp_path / "quarantine").glob("*.json"):
        assert json.loads(record.read_text())["dataset"] == str(dataset.root)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_batch_and_change_nothing_of_it(tmp_path: Path, threads: int) -> None:
    corrupt = {(1, "image"), (5, "vector"), (10, "image"), (10, "number")}
    dataset, preprocessor = _opened(make_dataset(tmp_path / "train", 11, FIELDS, corrupt=corrupt))
    places, found = sequence(dataset).places(0, 11), []
    for count in (1, threads):
        quarantine = tmp_path / f"quarantine{count}"
        reader = BatchReader([dataset], preprocessor, quarantine, threads=count)
        found.append((reader.read(places, 0, 12), [one.error.args for one in list_quarantine(quarantine)]))
    ((alone, keys), listed), ((shared, shared_keys), shared_listed) = found
    assert shared_keys == keys and shared_listed == listed and len(listed) == 4
    assert alone[WEIGHT].tolist() == [1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    assert shared.keys() == alone.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(shared[name], array)


def test_a_batch_of_nothing_but_damaged_samples_is_still_a_batch(tmp_path: Path) -> None:
    corrupt = {(i, "image") for i in range(4)}
    dataset, preprocessor = _opened(make_dataset(tmp_path, 4, FIELDS, corrupt=corrupt))
    (arrays,) = read_batches(sequence(dataset), preprocessor, 4)
    assert not arrays[WEIGHT].any() and arrays[POSITION].tolist() == [0, 1, 2, 3]


def test_keys_that_several_shards_have_are_samples_of_their_own(tmp_path: Path) -> None:
    parts = [
        open_dataset(make_dataset(tmp_path / name, 5, ("vector",), num_shards=1, seed=seed, corrupt=corrupt))
        for seed, (name, corrupt) in enumerate({"one": [(1, "vector")], "two": [(3, "vector")]}.items())
    ]
    folder, shards = tmp_path / "both", []
    for part in parts:
        shutil.copytree(Path(part.root) / "shards", folder / part.manifest.name)
        (shard,) = part.shards
        moved = {key: f"{part.manifest.name}/{Path(getattr(shard, key)).name}" for key in ("path", "index")}
        shards.append(replace(shard, **moved))
    write_dataset(
        folder,
        name="both",
        shards=shards,
        presence={"vector": 10},
        **{key: getattr(parts[0].manifest, key) for key in ("fields", "members", "label_counts", "statistics")},
    )
    dataset, preprocessor = _opened(folder)
    rows = RowCache(DecodedCache(folder=str(tmp_path / "cache"), size=10**7), [dataset], preprocessor)
    for number in range(2):
        reader = BatchReader([dataset], preprocessor, tmp_path / "quarantine", None, rows)
        arrays, keys = reader.read(sequence(dataset).places(0, 10), 0, 10)
        assert keys == [f"sample{i:06d}" for i in range(5)] * 2
        assert reader.work.num_cached == (8 * number,)
        for half, part in enumerate(parts):
            (expected,) = read_batches(sequence(part), preprocessor, 5)
            np.testing.assert_array_equal(arrays["vector"][5 * half : 5 * half + 5], expected["vector"])
    found = [(one.error.shard, one.error.key) for one in list_quarantine(tmp_path / "quarantine")]
    assert found == [
        ("factory/one/000000.tar", "sample000001"),
        ("factory/two/000000.tar", "sample000003"),
    ]


def test_two_datasets_with_equal_names_share_a_quarantine(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        dataset, preprocessor = _opened(make_dataset(tmp_path / name, 2, FIELDS, corrupt={(0, "image")}))
        reader = BatchReader([dataset], preprocessor, tmp_path / "quarantine")
        reader.read(sequence(dataset).places(0, 2), 0, 2)
    assert len(list_quarantine(tmp_path / "quarantine")) == 2


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4, 4, 2]), (6, [4, 2]), (0, []), (99, [4, 4, 2])])
def test_reading_in_sequence_ends_with_a_short_batch_or_at_the_limit(
    tmp_path: Path, limit: int | None, sizes: list[int]
) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 10, FIELDS, num_shards=3))
    found = list(read_batches(sequence(dataset), preprocessor, 4, limit))
    assert [len(arrays[POSITION]) for arrays in found] == sizes
    assert [p for arrays in found for p in arrays[POSITION].tolist()] == list(range(sum(sizes)))


def test_a_dataset_with_empty_shards_is_read(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 2, FIELDS, num_shards=4))
    assert dataset.shard_sizes.tolist() == [1, 1, 0, 0]
    assert sum(len(arrays[POSITION]) for arrays in read_batches(sequence(dataset), preprocessor, 8)) == 2


def test_more_shards_than_stay_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mm.data.members._OPEN_SHARDS", 2)
    dataset, _ = _opened(make_dataset(tmp_path, 10, FIELDS, num_shards=5))
    reader = SampleReader(dataset, list(FIELDS))
    # Views of a shard that was let go stay readable.
    held = [reader.members(shard, row) for row in range(2) for shard in range(5)]
    for number, members in enumerate(held):
        sample = number % 5 * 2 + number // 5
        assert bytes(members["image"]) == member_of("image", sample)[1]


def test_a_shard_that_is_gone_cut_or_without_its_index_is_named(tmp_path: Path) -> None:
    for name, change, text in (
        ("gone", lambda shard: shard.unlink(), r"\[sample000002\]: the shard is missing"),
        (
            "cut",
            lambda shard: shard.write_bytes(shard.read_bytes()[:-512]),
            r"\[sample000002\]: .* when it was indexed",
        ),
        ("bare", lambda shard: shard.with_suffix(".index.parquet").unlink(), "index is missing"),
    ):
        dataset, preprocessor = _opened(make_dataset(tmp_path / name, 4, FIELDS))
        change(dataset.shard_path(1))
        batches = read_batches(sequence(dataset), preprocessor, 2)
        assert len(next(batches)[POSITION]) == 2
        with pytest.raises(DatasetError, match=rf"000001.*{text}"):
            next(batches)


def test_a_shard_that_is_removed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    dataset, preprocessor = _opened(make_dataset(tmp_path, 4, FIELDS, num_shards=1))
    batches = read_batches(sequence(dataset), preprocessor, 2)
    next(batches)
    dataset.shard_path(0).unlink()
    assert next(batches)[WEIGHT].all()


def test_a_field_may_lie_under_several_suffixes_and_be_decoded_as_the_job_wants(tmp_path: Path) -> None:
    dataset, _ = _opened(make_dataset(tmp_path, 4, ("image", "label")))
    preprocessor = preprocessor_for(dataset, {"image": ImageField(height=8, width=12)}, ["image"])
    (arrays,) = read_batches(sequence(dataset), preprocessor, 4)
    assert arrays["image"].shape == (4, 8, 12, 3) and arrays["image.presence"].all()
    assert "label" not in arrays


@pytest.fixture
def remote(
    bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Dataset, Preprocessor]:
    """A dataset of twelve samples in three shards, in a store that is not waited for long."""
    make_dataset(tmp_path / "local", 12, FIELDS, num_shards=3, missing={"vector": 0.3})
    upload(s3_endpoint, tmp_path / "local", f"{bucket}/data")
    impatient = replace(REMOTE_POLICY, give_up_s=1.0, stall_s=0.3, backoff_s=0.01)
    monkeypatch.setattr("ray_mm.storage.ranges.REMOTE_POLICY", impatient)
    return _opened(f"s3://{bucket}/data")


def test_a_dataset_in_a_store_gives_the_same_batches(remote: tuple[Dataset, Preprocessor], tmp_path: Path) -> None:
    local, preprocessor = _opened(tmp_path / "local")
    expected = list(read_batches(sequence(local), preprocessor, 5))
    found = list(read_batches(sequence(remote[0]), remote[1], 5))
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_what_is_read_ahead_is_asked_for_once(proxy: Proxy, remote: tuple[Dataset, Preprocessor]) -> None:
    reader = SampleReader(remote[0], list(FIELDS))
    # A sample may be planned twice.
    samples = [(0, 1), (2, 3), (1, 0), (0, 1)]
    reader.prefetch(*zip(*samples, strict=True))
    found = [reader.members(*sample) for sample in samples]
    for (shard, row), members in zip(samples, found, strict=True):
        assert members["image"] == member_of("image", shard * 4 + row)[1]
    assert len(proxy.gets(".tar")) == 3
    # Nothing of it is left: the next time it is read anew.
    reader.members(0, 1)
    assert len(proxy.gets(".tar")) == 4


def test_a_local_shard_is_not_read_ahead(tmp_path: Path) -> None:
    dataset, _ = _opened(make_dataset(tmp_path, 4, FIELDS))
    reader = SampleReader(dataset, list(FIELDS))
    dataset.shard_path(0).unlink()
    reader.prefetch([0], [0])
    with pytest.raises(DatasetError, match="is missing"):
        reader.members(0, 0)


def test_a_remote_shard_that_is_replaced_or_deleted_while_it_is_read_is_named_with_the_key(
    remote: tuple[Dataset, Preprocessor], s3_endpoint: str
) -> None:
    reader = SampleReader(remote[0], list(FIELDS))
    reader.members(0, 0)
    reader.members(1, 0)
    path = remote[0].location(0).removeprefix("s3://")
    put_object(s3_endpoint, path, bytes(remote[0].shards[0].size_bytes))
    with pytest.raises(DatasetError, match=r"shards/000000\.tar\[sample000001\]: was replaced"):
        reader.members(0, 1)
    delete_object(s3_endpoint, remote[0].location(1).removeprefix("s3://"))
    with pytest.raises(DatasetError, match=r"shards/000001\.tar\[sample000007\]: there is no such object"):
        reader.members(1, 3)


def test_a_store_that_stays_away_is_an_error_with_shard_and_key(
    proxy: Proxy, remote: tuple[Dataset, Preprocessor]
) -> None:
    reader = SampleReader(remote[0], list(FIELDS))
    reader.members(2, 0)
    proxy.faults = lambda request: Fault("hang")
    reader.prefetch([2], [3])
    with pytest.raises(StorageError, match=r"shards/000002\.tar\[sample000011\]: bytes \d+ to \d+ could not be read"):
        reader.members(2, 3)


def test_a_local_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    dataset, _ = _opened(make_dataset(tmp_path, 4, FIELDS, num_shards=1))
    reader = SampleReader(dataset, list(FIELDS))
    reader.members(0, 0)
    with dataset.shard_path(0).open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(DatasetError, match=r"000000\.tar\[sample000003\]: was replaced"):
        reader.members(0, 3)


def test_a_member_whose_checksum_is_not_that_of_the_index_is_quarantined(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "train", 6, FIELDS, num_shards=2)
    add_checksums(folder)
    dataset, preprocessor = _opened(folder)
    # A bit in a number: it decodes as well as before.
    members = SampleReader(dataset, list(FIELDS))
    offset = dataset.read_index(1).offsets["vector.npy"][1] + 130
    path = dataset.shard_path(1)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    assert members.damaged(1, 1, members.members(1, 1)).keys() == {"vector"}
    arrays, keys = BatchReader([dataset], preprocessor, tmp_path / "quarantine").read(
        sequence(dataset).places(0, 6), 0, 6
    )
    assert arrays[WEIGHT].tolist() == [1, 1, 1, 1, 0, 1] and keys[4] == "sample000004"
    assert not any(arrays[presence_name(field)][4] for field in FIELDS)
    (error,) = [one.error for one in list_quarantine(tmp_path / "quarantine")]
    assert (error.key, error.field) == ("sample000004", "vector") and "CRC32C" in error.reason


@pytest.mark.parametrize("cached", [False, True])
def test_a_bit_that_flips_on_its_way_is_read_again(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    folder = make_dataset(tmp_path / "local", 6, FIELDS, num_shards=1)
    add_checksums(folder)
    upload(proxy.endpoint, folder, f"{bucket}/data")
    dataset, _ = _opened(f"s3://{bucket}/data")
    cache = BlockCache(tmp_path / "cache", 10**9) if cached else None
    reader = SampleReader(dataset, list(FIELDS), cache)
    offset = int(dataset.read_index(0).offsets["image.jpg"][0])
    proxy.faults = first_times(1, Fault("flip", at=offset + 20 if cached else 20))
    assert reader.members(0, 0)["image"] == member_of("image", 0)[1]
    assert len(proxy.gets(".tar")) == 2
    # The next reader must not find the flipped bit in the cache.
    assert SampleReader(dataset, list(FIELDS), cache).members(0, 0)["image"] == member_of("image", 0)[1]


@pytest.mark.parametrize("group_bytes", [1, 700, 3000])
def test_members_are_held_a_group_at_a_time_and_the_batch_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    corrupt = {(1, "image"), (6, "vector"), (9, "image")}
    make_dataset(tmp_path / "data", 12, FIELDS, num_shards=3, missing={"vector": 0.3}, corrupt=corrupt)
    dataset, preprocessor = _opened(tmp_path / "data")
    (expected,) = read_batches(sequence(dataset), preprocessor, 12)
    monkeypatch.setattr("ray_mm.data.reader._GROUP_BYTES", group_bytes)
    places = sequence(dataset).places(0, 12)
    reader = BatchReader([dataset], preprocessor, tmp_path / "quarantine")
    for _ in range(2):
        found, keys = reader.read(places, 0, 12)
        assert keys == [f"sample{number:06d}" for number in range(12)]
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    kept = {(one.error.key, one.error.field) for one in list_quarantine(tmp_path / "quarantine")}
    assert {("sample000001", "image"), ("sample000009", "image")} <= kept
    # What is set aside is the member itself, not what was read over it later.
    sizes = sorted(path.stat().st_size for path in (tmp_path / "quarantine").glob("*.bin"))
    assert all(path.read_bytes() != bytes(len(path.read_bytes())) for path in (tmp_path / "quarantine").glob("*.bin"))
    assert len(sizes) == len(kept)
