"""Datasets on disk: whole, or refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mm.config.fields import ImageField
from ray_mm.data.manifest import open_dataset, write_dataset
from ray_mm.errors import DatasetError
from ray_mm.version import DATASET_FORMAT
from tests.factories import CLASSES, SPECS, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "train", num_samples=7, fields=("image", "text", "label"), missing={"image": 0.3})


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


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
    _edit(dataset / "dataset.json", lambda content: content.update(version=DATASET_FORMAT + 1, novelty=[1]))
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
    _edit(dataset / "dataset.json", change)
    with pytest.raises(DatasetError, match=reason):
        open_dataset(dataset)


def test_a_manifest_that_is_not_json_is_refused(dataset: Path) -> None:
    (dataset / "dataset.json").write_text('{"format": "ray_mm.dat')
    with pytest.raises(DatasetError, match="can't be read"):
        open_dataset(dataset)
    (dataset / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"is not the dataset\.json"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            {"path": ["/etc/passwd", "b"], "num_samples": [4, 3], "size_bytes": [1, 1], "sha256": ["", ""]},
            "outside the dataset",
        ),
        (
            {"path": ["a", "../b"], "num_samples": [4, 3], "size_bytes": [1, 1], "sha256": ["", ""]},
            "outside the dataset",
        ),
        ({"path": ["a", "b"], "num_samples": [4, None], "size_bytes": [1, 1], "sha256": ["", ""]}, "damaged"),
        ({"path": ["a", "b"], "num_samples": [4, 3]}, "damaged"),
        ({"path": ["a", "b"], "num_samples": ["x", "y"], "size_bytes": [1, 1], "sha256": ["", ""]}, "damaged"),
        ({"path": ["a"], "num_samples": [7], "size_bytes": [1], "sha256": [""]}, "do not agree"),
    ],
)
def test_a_damaged_list_of_shards_is_refused(dataset: Path, rows: dict[str, list[Any]], reason: str) -> None:
    pq.write_table(pa.table(rows), dataset / "shards.parquet")
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
