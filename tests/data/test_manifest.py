"""Datasets on disk: whole, or refused with what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mm.config.fields import ImageField
from ray_mm.data.index import index_shard, shard_state
from ray_mm.data.manifest import ShardInfo, open_dataset, write_dataset
from ray_mm.data.seal import checksum
from ray_mm.data.sidecar import write_index
from ray_mm.errors import DatasetError
from ray_mm.version import DATASET_FORMAT
from tests.factories import CLASSES, SPECS, class_of, edit_manifest, make_dataset
from tests.object_store import delete_object, put_object, upload


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "train", num_samples=7, fields=("image", "text", "label"), missing={"image": 0.3})


def test_what_was_written_is_read_back(dataset: Path) -> None:
    opened = open_dataset(dataset)
    manifest = opened.manifest
    assert manifest.num_samples == 7 and manifest.num_shards == 2 and opened.shard_sizes.tolist() == [4, 3]
    assert manifest.size_bytes == sum(opened.shard_path(i).stat().st_size for i in range(2))
    assert manifest.fields["image"] == SPECS["image"]
    assert manifest.members["image"] == ("image.jpg", "image.png")
    assert 0 < manifest.presence["image"] < 7 and manifest.presence["label"] == 7
    assert sum(manifest.label_counts["label"].values()) == 7 and set(manifest.label_counts["label"]) == set(CLASSES)
    assert [key for i in range(2) for key in opened.read_index(i).keys] == [f"sample{i:06d}" for i in range(7)]
    assert json.loads(opened.tokenizer("text"))["model"]["type"] == "BPE"


def test_the_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    digests = [
        open_dataset(make_dataset(tmp_path / name, num_samples=6, fields=("vector",), seed=seed)).manifest.digest
        for name, seed in (("a", 0), ("b", 0))
    ]
    assert digests[0] == digests[1]
    other = open_dataset(make_dataset(tmp_path / "c", num_samples=7, fields=("vector",))).manifest.digest
    assert other != digests[0]


def test_a_folder_that_is_no_dataset_says_what_to_run(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset folder; make it with a preprocess job"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(DatasetError, match="holds the datasets train; name one of them"):
        open_dataset(tmp_path)
    (dataset / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"has no dataset\.json, so it is not a"):
        open_dataset(dataset)


def test_a_newer_format_is_refused_with_both_versions(dataset: Path) -> None:
    edit_manifest(dataset, lambda content: content.update(version=DATASET_FORMAT + 1, novelty=[1]))
    with pytest.raises(DatasetError, match=f"version {DATASET_FORMAT + 1}.*up to {DATASET_FORMAT}; upgrade ray_mm"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(format="other"), "is not the dataset.json of a ray_mm dataset"),
        (lambda content: content.update(num_samples=8), "do not agree"),
        (lambda content: content.pop("presence"), "damaged"),
        (lambda content: content["fields"]["image"].update(height=None), "height must be given"),
        (lambda content: content["fields"]["image"].update(type="hologram"), "damaged"),
        (lambda content: content["members"].pop("image"), "field 'image'"),
    ],
)
def test_a_damaged_manifest_is_refused(dataset: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    edit_manifest(dataset, change)
    with pytest.raises(DatasetError, match=reason):
        open_dataset(dataset)


def test_a_manifest_that_is_not_json_is_refused(dataset: Path) -> None:
    (dataset / "dataset.json").write_text('{"format": "ray_mm.dat')
    with pytest.raises(DatasetError, match="can't be read"):
        open_dataset(dataset)
    (dataset / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"is not the dataset\.json"):
        open_dataset(dataset)


def test_a_manifest_that_was_changed_by_hand_says_what_to_do(dataset: Path) -> None:
    path = dataset / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert open_dataset(dataset).manifest.name == "factory/train", "laid out anew, it says the same"
    path.write_text(json.dumps(content | {"name": "mine"}))
    with pytest.raises(
        DatasetError, match=r"dataset\.json: has the CRC32C \w{8}, expected '\w{8}': .*changed by hand"
    ) as caught:
        open_dataset(dataset)
    told = re.search(r'write "crc32c": "(\w{8})" in it', str(caught.value))
    assert told is not None
    path.write_text(json.dumps(content | {"name": "mine", "crc32c": told[1]}))
    assert open_dataset(dataset).manifest.name == "mine"
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "crc32c"}))
    with pytest.raises(DatasetError, match=r"has the CRC32C \w{8}, expected None"):
        open_dataset(dataset)


def test_the_files_of_another_dataset_are_refused(dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", num_samples=7, fields=("image", "text", "label"))
    (dataset / "tokenizer.text.json").write_text('{"model": {}}')
    with pytest.raises(DatasetError, match=r"tokenizer\.text\.json: has the CRC32C .*make the dataset again"):
        open_dataset(dataset).tokenizer("text")
    (dataset / "shards.parquet").write_bytes((other / "shards.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"shards\.parquet: has the CRC32C .*damaged or of another dataset"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"path": ["/etc/passwd", "b"], "version": ["sha256:1", "sha256:2"]}, "'/etc/passwd', which is outside"),
        ({"path": ["s3://b/a.tar", "b"], "version": ["sha256:1", "sha256:2"]}, "'s3://b/a.tar', which is outside"),
        ({"path": ["a", "../b"]}, "'../b', which is outside"),
        ({"path": ["/a.tar", "/../b.tar"]}, "outside the dataset"),
        ({"index": ["a", "/b"]}, "'/b', which is outside"),
        ({"index": ["a", "../b"]}, "'../b', which is outside"),
        ({"num_samples": [4, None]}, "damaged"),
        ({"size_bytes": None}, "damaged"),
        ({"num_samples": ["x", "y"]}, "damaged"),
        ({"num_samples": [4, 4]}, "do not agree"),
    ],
)
def test_a_damaged_list_of_shards_is_refused(dataset: Path, rows: dict[str, list[Any] | None], reason: str) -> None:
    good = {"path": ["a", "b"], "index": ["c", "d"], "num_samples": [4, 3], "size_bytes": [1, 1], "version": ["", ""]}
    columns = {name: values for name, values in (good | rows).items() if values is not None}
    pq.write_table(pa.table(columns), dataset / "shards.parquet")
    found = checksum((dataset / "shards.parquet").read_bytes())
    edit_manifest(dataset, lambda content: content["files"].update({"shards.parquet": found}))
    with pytest.raises(DatasetError, match=reason):
        open_dataset(dataset)
    (dataset / "shards.parquet").unlink()
    with pytest.raises(DatasetError, match="damaged"):
        open_dataset(dataset)


def test_a_missing_tokenizer_and_a_foreign_index_are_named(dataset: Path) -> None:
    opened = open_dataset(dataset)
    (dataset / "tokenizer.text.json").unlink()
    with pytest.raises(DatasetError, match="tokenizer of field 'text' is missing"):
        opened.tokenizer("text")
    for suffix in (".tar", ".index.parquet"):
        (dataset / f"shards/000001{suffix}").write_bytes((dataset / f"shards/000000{suffix}").read_bytes())
    with pytest.raises(DatasetError, match=r"index has 4 samples, shards\.parquet says 3"):
        opened.read_index(1)


def test_a_list_of_shards_that_does_not_tell_what_gzip_files_unpack_to_is_read(dataset: Path) -> None:
    listed = pq.read_table(dataset / "shards.parquet").drop_columns(["unpacked_bytes"])
    pq.write_table(listed, dataset / "shards.parquet")
    found = checksum((dataset / "shards.parquet").read_bytes())
    edit_manifest(dataset, lambda content: content["files"].update({"shards.parquet": found}))
    shards = open_dataset(dataset).shards
    assert [(shard.unpacked_bytes, shard.tar_bytes) for shard in shards] == [
        (None, shard.size_bytes) for shard in shards
    ]


def _in_place(folder: Path, tars: Path) -> Path:
    """A dataset that refers to the tars of another one."""
    other = open_dataset(tars)
    infos = []
    for number, info in enumerate(other.shards):
        index = folder / f"index/{number:06d}.parquet"
        shard = other.shard_path(number)
        write_index(index, index_shard(shard))
        state = shard_state(str(shard))
        name = str(index.relative_to(folder))
        infos.append(ShardInfo(str(shard), name, info.num_samples, state.size_bytes, state.version))
    manifest = other.manifest
    write_dataset(
        folder,
        name="place",
        shards=infos,
        fields={"label": manifest.fields["label"]},
        members={"label": manifest.members["label"]},
        presence={"label": 7},
        label_counts=manifest.label_counts,
        statistics={},
    )
    return folder


def test_a_dataset_refers_to_tars_elsewhere_and_notices_when_they_change(dataset: Path, tmp_path: Path) -> None:
    opened = open_dataset(_in_place(tmp_path / "place", dataset))
    assert opened.location(0) == str(dataset / "shards/000000.tar")
    assert opened.shards[0].version.startswith("mtime:")
    assert opened.read_index(0).keys == open_dataset(dataset).read_index(0).keys
    shard = opened.shard_path(0)
    before = shard.stat()
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DatasetError, match=r"has changed since it was indexed .*make the dataset again"):
        opened.read_index(0)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.read_index(0)
    again = open_dataset(_in_place(tmp_path / "again", dataset))
    assert again.manifest.digest == opened.manifest.digest
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(DatasetError, match=r"has \d+ bytes and had \d+ when it was indexed"):
        opened.read_index(0)
    changed = open_dataset(_in_place(tmp_path / "changed", dataset))
    assert changed.manifest.digest != opened.manifest.digest
    shard.unlink()
    with pytest.raises(DatasetError, match="the shard is missing"):
        changed.read_index(0)


def test_the_index_of_another_shard_is_refused(dataset: Path, tmp_path: Path) -> None:
    place = _in_place(tmp_path / "place", make_dataset(tmp_path / "even", 6, fields=("label",)))
    (place / "index/000000.parquet").write_bytes((place / "index/000001.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"000000\.parquet: is the index of another state of"):
        open_dataset(place).read_index(0)


def test_the_labels_are_in_the_index(tmp_path: Path) -> None:
    opened = open_dataset(make_dataset(tmp_path, 9, fields=("image", "label", "number"), missing={"number": 0.4}))
    labels = opened.read_index(0).labels
    assert labels["label"].tolist() == [class_of(i) for i in range(5)] and labels["label"].dtype == np.int32
    absent = opened.read_index(0).sizes["number.json"] < 0
    assert (np.isnan(labels["number"]) == absent).all() and absent.any() and not absent.all()
    assert labels["number"].dtype == np.float32


def test_nothing_is_written_while_a_shape_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="height, width must be given"):
        write_dataset(
            tmp_path,
            name="x",
            shards=[],
            fields={"image": ImageField()},
            members={"image": ("image.jpg",)},
            presence={"image": 0},
            label_counts={},
            statistics={},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_at_a_url_opens_like_one_on_disk(bucket: str, s3_endpoint: str, tmp_path: Path) -> None:
    local = open_dataset(make_dataset(tmp_path, 7, ("image", "text", "label")))
    upload(s3_endpoint, tmp_path, f"{bucket}/data/train")
    remote = open_dataset(f"s3://{bucket}/data/train/")
    assert remote.root == f"s3://{bucket}/data/train" and remote.location(1) == f"{remote.root}/shards/000001.tar"
    assert remote.manifest == local.manifest and remote.shards == local.shards
    assert remote.read_index(1).keys == local.read_index(1).keys
    assert remote.tokenizer("text") == local.tokenizer("text")


def test_what_is_wrong_with_a_dataset_at_a_url_is_told(bucket: str, s3_endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"s3://{bucket}/none: has no dataset\.json"):
        open_dataset(f"s3://{bucket}/none")
    make_dataset(tmp_path, 4, ("label",))
    upload(s3_endpoint, tmp_path, f"{bucket}/data")
    dataset = open_dataset(f"s3://{bucket}/data")
    put_object(s3_endpoint, f"{bucket}/data/shards/000000.tar", b"shorter")
    with pytest.raises(DatasetError, match=r"shards/000000\.tar: has 7 bytes and had"):
        dataset.read_index(0)
    delete_object(s3_endpoint, f"{bucket}/data/shards/000001.tar")
    with pytest.raises(DatasetError, match=r"shards/000001\.tar: the shard is missing"):
        dataset.read_index(1)
