"""Decoded rows that are kept: the same batches to the bit, whatever happened to the files, and no tar is read for them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.cache import DecodedCache
from ray_mm.config.fields import FieldSpec, ImageField, LabelField, RandomCrop, TextField, VideoField
from ray_mm.config.source import TrainSource
from ray_mm.data.blocks import Work
from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.epochs import Epochs, sequence
from ray_mm.data.fields import WEIGHT, Arrays
from ray_mm.data.index import index_shard
from ray_mm.data.manifest import Dataset, ShardInfo, open_dataset, write_dataset
from ray_mm.data.order import Shuffle
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.quarantine import list_quarantine
from ray_mm.data.reader import BatchReader
from ray_mm.data.row_cache import RowCache, RowLayout, cache_notices
from ray_mm.data.samples import all_of, plan_samples
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.storage import sha256_file
from tests.data.decode.videos import video_bytes
from tests.factories import CLASSES, SPECS, make_dataset, write_tar
from tests.object_store import Proxy, upload

FLIPPED = ImageField(height=8, width=12, random_flip=0.5)
WHOLE = ImageField(
    height=8, width=12, random_crop=RandomCrop(scale=(0.2, 0.6), whole_side=20), random_flip=0.5, fit="stretch"
)
CROPPED = ImageField(height=8, width=8, random_crop=RandomCrop(scale=(0.2, 0.6)), random_flip=0.5)


def cache_of(folder: Path, size: int = 10**8) -> DecodedCache:
    return DecodedCache(folder=str(folder / "cache"), size=size)


def preprocessor_of(dataset: Dataset, **overrides: FieldSpec) -> Preprocessor:
    return preprocessor_for(dataset, overrides, dataset.manifest.fields)


def reader_of(
    datasets: Sequence[Dataset], preprocessor: Preprocessor, quarantine: Path | None, cache: DecodedCache | None
) -> BatchReader:
    """A reader as a new process makes it."""
    rows = None if cache is None else RowCache(cache, datasets, preprocessor)
    return BatchReader(datasets, preprocessor, quarantine, None, rows)


def epoch_of(reader: BatchReader, epochs: Epochs, number: int, size: int = 7) -> list[tuple[Arrays, list[str], Work]]:
    """One epoch with its random choices, the last batch padded."""
    batches = []
    for start in range(0, epochs.num_samples, size):
        places = epochs.places(start, min(start + size, epochs.num_samples), number)
        reader.prefetch(places)
        batches.append((*reader.read(places, start, size, (3, number)), reader.work))
    return batches


def check_same(found: list[tuple[Arrays, list[str], Work]], expected: list[tuple[Arrays, list[str], Work]]) -> None:
    assert len(found) == len(expected) > 0
    for (arrays, keys, _), (wanted, wanted_keys, _) in zip(found, expected, strict=True):
        assert keys == wanted_keys and arrays.keys() == wanted.keys()
        for name, array in wanted.items():
            assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes(), name


def num_cached(batches: list[tuple[Arrays, list[str], Work]]) -> int:
    return sum(sum(work.num_cached) for _, _, work in batches)


@pytest.mark.parametrize(
    "image", [FLIPPED, CROPPED, WHOLE, ImageField(height=16, width=16, channels=1, random_flip=0.5)]
)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_batches_are_those_without_the_cache_to_the_bit(tmp_path: Path, image: ImageField, share: float) -> None:
    corrupt = {(3, "image"), (5, "audio"), (11, "image"), (11, "number")}
    missing = {"image": 0.2, "label": 0.3, "points": 0.2}
    make_dataset(tmp_path / "one", 40, num_shards=3, missing=missing, corrupt=corrupt)
    make_dataset(tmp_path / "two", 23, num_shards=2, seed=1, missing=missing, corrupt={(1, "text")})
    sources = [TrainSource(path=str(tmp_path / "one"), weight=1), TrainSource(path=str(tmp_path / "two"), weight=2)]
    datasets, samples = plan_samples(sources, None, 60)
    epochs = Epochs(datasets, samples, Shuffle(seed=1, digest=samples.digest, chunk_samples=4, window_chunks=3))
    preprocessor = preprocessor_of(datasets[0], image=image)
    cache = cache_of(tmp_path, max(1, int(share * 63 * (RowLayout(preprocessor).slot_bytes + 4))))
    plain = reader_of(datasets, preprocessor, tmp_path / "without", None)
    met = []
    for number in range(4):
        # Every epoch in another process, as far as the cache can tell.
        cached = reader_of(datasets, preprocessor, tmp_path / "with", cache)
        found = epoch_of(cached, epochs, number)
        check_same(found, epoch_of(plain, epochs, number))
        met.append(num_cached(found))
    if share == 1:
        # The second dataset is met twice in an epoch, and what can't be decoded is not kept.
        assert met[0] > 10 and met[1] > met[0] and met[3] >= 50
    else:
        assert 0.5 * share * 60 <= met[3] <= 1.5 * share * 60
    assert len(list_quarantine(tmp_path / "without")) == len(list_quarantine(tmp_path / "with")) == 5


def test_a_kept_sample_is_read_without_its_shard_and_its_index(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 20, num_shards=2))
    preprocessor, epochs = preprocessor_of(dataset), sequence(dataset)
    expected = epoch_of(reader_of([dataset], preprocessor, None, cache_of(tmp_path)), epochs, 0)
    shutil.rmtree(tmp_path / "train" / "shards")
    found = epoch_of(reader_of([dataset], preprocessor, None, cache_of(tmp_path)), epochs, 0)
    check_same(found, expected)
    assert num_cached(found) == 20


def test_bad_samples_are_quarantined_every_time(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 10, corrupt={(4, "image")}))
    preprocessor = preprocessor_of(dataset)
    for number in range(3):
        reader = reader_of([dataset], preprocessor, tmp_path / f"quarantine{number}", cache_of(tmp_path))
        found = epoch_of(reader, sequence(dataset), number, size=10)
        assert found[0][0][WEIGHT].tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
        assert num_cached(found) == (9 if number else 0)
        assert [one.error.key for one in list_quarantine(tmp_path / f"quarantine{number}")] == ["sample000004"]


def test_a_damaged_row_is_decoded_again_and_mended(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 10))
    preprocessor, epochs = preprocessor_of(dataset), sequence(dataset)
    expected = epoch_of(reader_of([dataset], preprocessor, None, cache_of(tmp_path)), epochs, 0)
    (path,) = (tmp_path / "cache").rglob("content")
    content, slot = bytearray(path.read_bytes()), RowLayout(preprocessor).slot_bytes
    for number in (2, 7):
        content[number * slot + 11] ^= 1
    path.write_bytes(content)
    for hits in (8, 10):
        found = epoch_of(reader_of([dataset], preprocessor, None, cache_of(tmp_path)), epochs, 0)
        check_same(found, expected)
        assert num_cached(found) == hits


def test_where_not_all_is_kept_it_is_an_even_part(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 200, ("vector",), num_shards=4))
    preprocessor = preprocessor_of(dataset)
    slot = RowLayout(preprocessor).slot_bytes + 4
    cache = cache_of(tmp_path, 50 * slot + 3)
    for _ in range(2):
        found = epoch_of(reader_of([dataset], preprocessor, None, cache), sequence(dataset), 0, size=20)
    assert num_cached(found) == 50
    assert {sum(work.num_cached) for _, _, work in found} <= {4, 5, 6, 7}
    used = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert used == 50 * slot
    (notice,) = cache_notices(cache, [dataset], preprocessor)
    assert "hold 25% of the decoded samples" in notice
    assert not list(cache_notices(cache_of(tmp_path), [dataset], preprocessor))


def test_datasets_share_the_size_and_one_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    datasets = [
        open_dataset(make_dataset(tmp_path / name, samples, ("vector",), seed=seed))
        for seed, (name, samples) in enumerate({"train": 60, "validation": 20}.items())
    ]
    preprocessor = preprocessor_of(datasets[0])
    cache = cache_of(tmp_path, 40 * (RowLayout(preprocessor).slot_bytes + 4))
    for named in (datasets, [*datasets, datasets[0]]):
        for dataset, kept in zip(datasets, (30, 10), strict=True):
            for _ in range(2):
                rows = RowCache(cache, named, preprocessor)
                reader = BatchReader([dataset], preprocessor, None, None, rows)
                found = epoch_of(reader, sequence(dataset), 0)
            assert num_cached(found) == kept


def test_rows_are_found_by_all_that_decides_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 6))

    def name(preprocessor: Preprocessor | None = None, of: Dataset = dataset, **overrides: FieldSpec) -> str:
        return RowLayout(preprocessor or preprocessor_of(dataset, **overrides)).name(of)

    plain = name()
    # The chance of a flip, and the means that a model subtracts, are no matter of a row.
    assert name(image=ImageField(random_flip=0.5)) == plain
    assert name(preprocessor_of(dataset).model_copy(update={"statistics": {}})) == plain
    others = [
        name(image=ImageField(height=8)),
        name(image=ImageField(random_crop=RandomCrop())),
        name(text=TextField(max_tokens=3)),
        name(preprocessor_for(dataset, {}, ["image", "label"])),
        name(preprocessor_of(dataset).model_copy(update={"tokenizers": {"text": "{}"}})),
        name(of=open_dataset(make_dataset(tmp_path / "other", 6, seed=1))),
    ]
    members = dataset.manifest.members | {"image": ("depth.png",)}
    others.append(
        name(of=Dataset(dataset.root, dataset.manifest.model_copy(update={"members": members}), dataset.shards))
    )
    monkeypatch.setattr("ray_mm.data.row_cache._code", lambda: "another version of a decoder")
    others.append(name())
    assert len({plain, *others}) == len(others) + 1


def test_a_sample_whose_key_is_too_long_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mm.data.row_cache._KEY_BYTES", 12)
    dataset = open_dataset(make_dataset(tmp_path / "train", 6, ("vector",)))
    preprocessor = preprocessor_of(dataset)
    for _ in range(2):
        found = epoch_of(reader_of([dataset], preprocessor, None, cache_of(tmp_path)), sequence(dataset), 0)
    assert num_cached(found) == 6
    assert found[0][1] == [f"sample{i:06d}" for i in range(6)] + [""]


def test_random_crops_are_told(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 6))
    (notice,) = cache_notices(cache_of(tmp_path), [dataset], preprocessor_of(dataset, image=CROPPED))
    assert notice.startswith("data.cache.decoded: image with random_crop can't be kept")


def test_what_is_kept_is_not_asked_of_a_store(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 12, ("image", "vector", "label"), num_shards=3, missing={"vector": 0.3})
    upload(proxy.endpoint, tmp_path / "train", f"{bucket}/train")
    dataset = open_dataset(f"s3://{bucket}/train")
    for image, crops in ((SPECS["image"], False), (CROPPED, True)):
        preprocessor, epochs = preprocessor_of(dataset, image=image), sequence(dataset)
        plain = [epoch_of(reader_of([dataset], preprocessor, None, None), epochs, number) for number in range(2)]
        for number in range(2):
            reader = reader_of([dataset], preprocessor, None, cache_of(tmp_path))
            proxy.requests.clear()
            check_same(epoch_of(reader, epochs, number), plain[number])
        # Pictures that are cropped anew are read again, and for all else not even an index.
        assert bool(proxy.requests) == crops
        assert num_cached(epoch_of(reader, epochs, 1)) == 12


def test_a_folder_that_cannot_be_made_is_told_once_and_reading_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = [
        open_dataset(make_dataset(tmp_path / name, 6, ("vector",), seed=seed)) for seed, name in enumerate("ab")
    ]
    (tmp_path / "cache").write_text("")
    preprocessor = preprocessor_of(datasets[0])
    with caplog.at_level(logging.WARNING):
        reader = reader_of(datasets, preprocessor, None, cache_of(tmp_path))
        for _ in range(2):
            found = epoch_of(reader, sequence(datasets[0]), 0)
    check_same(found, epoch_of(reader_of(datasets, preprocessor, None, None), sequence(datasets[0]), 0))
    assert [record.name for record in caplog.records if "without it" in record.message] == ["ray_mm.storage.disk"]


def test_a_disk_that_takes_no_more_is_told_once_and_what_is_there_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "train", 12, ("vector",)))
    preprocessor, epochs = preprocessor_of(dataset), sequence(dataset)
    reader = reader_of([dataset], preprocessor, None, cache_of(tmp_path))
    reader.read(epochs.places(0, 4), 0, 4)
    writes = []

    def full(*_: object) -> int:
        writes.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ray_mm.storage.slots.os.pwritev", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = epoch_of(reader, epochs, 0)
    check_same(found, epoch_of(reader_of([dataset], preprocessor, None, None), epochs, 0))
    assert num_cached(found) == 4 and len(writes) == 1
    assert [r.message for r in caplog.records if "No space left" in r.message and "without it" in r.message]


def make_clips(folder: Path) -> Dataset:
    """Ten clips in three shards, upright and lying ones of 2 to 9 frames: sample 2 has none, that of 6 can't be decoded."""
    shards = []
    for number, rows in enumerate(np.array_split(np.arange(10), 3)):
        members = {}
        for row in map(int, rows):
            height, width = (48, 64) if row % 2 else (64, 48)
            payload = b"damaged" if row == 6 else video_bytes(2 + row * 7 % 8, height=height, width=width)
            members |= {f"sample{row}.clip.mp4": payload} if row != 2 else {}
            members[f"sample{row}.label.cls"] = str(row % 3).encode()
        path = write_tar(folder / "shards" / f"{number}.tar", members)
        write_index(index_path(path), replace(index_shard(path), labels={"label": (rows % 3).astype(np.int32)}))
        name, version = f"shards/{number}", f"sha256:{sha256_file(path)}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(rows), path.stat().st_size, version))
    write_dataset(
        folder,
        name="clips",
        shards=shards,
        fields={"clip": VideoField(num_frames=6, height=24, width=32), "label": SPECS["label"]},
        members={"clip": ("clip.mp4",), "label": ("label.cls",)},
        presence={"clip": 9, "label": 10},
        label_counts={"label": dict.fromkeys(CLASSES, 3)},
        statistics={},
    )
    return open_dataset(folder)


@pytest.mark.parametrize("spec", [{}, {"rate_hz": 12.5, "channels": 1, "fit": "stretch"}], ids=["spread", "at a rate"])
@pytest.mark.parametrize("whole_side", [None, 40])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_clips_with_random_parts_are_those_without_the_cache_to_the_bit(
    tmp_path: Path, spec: dict[str, Any], whole_side: int | None, share: float
) -> None:
    dataset = make_clips(tmp_path / "train")
    clip = VideoField(
        random_crop=RandomCrop(scale=(0.2, 0.6), whole_side=whole_side),
        random_flip=0.5,
        **{"num_frames": 6, "height": 24, "width": 32, **spec},
    )
    preprocessor = preprocessor_of(dataset, clip=clip)
    epochs = Epochs([dataset], samples := all_of(dataset), Shuffle(1, samples.digest, 4, 3))
    cache = cache_of(tmp_path, int(share * 10 * (RowLayout(preprocessor).slot_bytes + 4)))
    plain = reader_of([dataset], preprocessor, tmp_path / "without", None)
    met, first_clips = [], []
    for number in range(3):
        cached = reader_of([dataset], preprocessor, tmp_path / "with", cache)
        found = epoch_of(cached, epochs, number, size=4)
        check_same(found, epoch_of(plain, epochs, number, size=4))
        met.append(num_cached(found))
        for arrays, keys, _ in found:
            assert arrays["clip.presence"].tolist() == [key not in ("", "sample2", "sample6") for key in keys]
            first_clips += [arrays["clip"][place] for place, key in enumerate(keys) if key == "sample5"]
    assert met == ([0, 9, 9] if share == 1 else [0, met[1], met[1]]) and met[1] >= 3
    assert all((first_clips[0] != clip).any() for clip in first_clips[1:]), "another part in every epoch"
    assert len(list_quarantine(tmp_path / "without")) == len(list_quarantine(tmp_path / "with")) == 1


def test_kept_clips_are_cut_without_their_shards(tmp_path: Path) -> None:
    dataset = make_clips(tmp_path / "train")
    crop = RandomCrop(scale=(0.2, 0.6), whole_side=40)
    preprocessor = preprocessor_of(dataset, clip=VideoField(num_frames=6, height=24, width=32, random_crop=crop))
    assert not list(cache_notices(cache_of(tmp_path), [dataset], preprocessor))
    reader = reader_of([dataset], preprocessor, None, cache_of(tmp_path))
    places = sequence(dataset).places(3, 6)
    expected, _ = reader.read(places, 0, 3, (3, 1))
    reader.read(places, 0, 3, (3, 0))
    shutil.rmtree(tmp_path / "train" / "shards")
    found, _ = reader_of([dataset], preprocessor, None, cache_of(tmp_path)).read(places, 0, 3, (3, 1))
    assert found["clip"].any() and found["clip"].tobytes() == expected["clip"].tobytes()


def test_a_clip_is_mirrored_after_it_was_kept_as_if_it_had_been_decoded_so() -> None:
    spec = VideoField(num_frames=6, height=24, width=32, random_flip=0.5)
    preprocessor = Preprocessor(fields={"clip": spec})
    layout = RowLayout(preprocessor)
    clips = [{"clip": video_bytes(4)}, {}, {"clip": video_bytes()}] * 4
    draws = [Draw(0, 1, place) for place in range(len(clips))]
    found, expected = (Collator(each).empty(len(clips)) for each in (layout.plain, preprocessor))
    Collator(layout.plain).fill(found, 0, clips, draws)
    plain = found["clip"].copy()
    for row, draw in enumerate(draws):
        layout.mirror(found, row, draw)
    Collator(preprocessor).fill(expected, 0, clips, draws)
    np.testing.assert_array_equal(found["clip"], expected["clip"])
    assert 0 < sum((a != b).any() for a, b in zip(found["clip"], plain, strict=True)) < 8


@pytest.mark.parametrize("image", [FLIPPED, CROPPED, WHOLE])
def test_a_mask_is_seen_as_its_picture_is_with_and_without_the_cache(tmp_path: Path, image: ImageField) -> None:
    fields = ("image", "mask", "grid", "vector")
    dataset = open_dataset(make_dataset(tmp_path / "train", 30, fields, missing={"mask": 0.2}, picture_size=(16, 20)))
    preprocessor = preprocessor_of(dataset, image=image)
    mask = preprocessor.fields["mask"]
    assert isinstance(mask, LabelField)
    epochs, cache = sequence(dataset), cache_of(tmp_path)
    plain = reader_of([dataset], preprocessor, None, None)
    for number in range(3):
        found = epoch_of(reader_of([dataset], preprocessor, None, cache), epochs, number)
        check_same(found, epoch_of(plain, epochs, number))
        assert num_cached(found) == (30 if number else 0)
    layout = RowLayout(preprocessor)
    assert ("mask" in layout.decoded_anew) == (image is not FLIPPED)
    told = " ".join(cache_notices(cache, [dataset], preprocessor))
    assert ("mask, of target: mask and like a picture with random_crop" in told) == (image is not FLIPPED)
