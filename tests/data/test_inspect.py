"""What is in a dataset or in tars, as data and as tables."""

from __future__ import annotations

import json
import tarfile
import threading
from pathlib import Path

import pytest
import yaml

from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob, SplitByHash
from ray_mm.data.indexing import index_tars
from ray_mm.data.inspect import Inspection, Table, describe, inspect_tars
from ray_mm.errors import DatasetError
from tests.factories import edit_manifest, make_dataset, write_tar
from tests.object_store import Proxy, Request, put_object, upload


def _table(tables: tuple[Table, ...], title: str) -> dict[str, dict[str, str]]:
    (table,) = [table for table in tables if table.title.startswith(title)]
    assert all(len(row) == len(table.header) for row in table.rows)
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def _described(path: Path) -> Inspection:
    (found,) = describe([path])
    return found


def test_a_dataset_is_described_by_field_label_and_statistics(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "train", num_samples=20, missing={"audio": 0.5})
    found = _described(root)
    fields = _table(found.tables, "fields")
    assert list(fields) == ["audio", "image", "label", "number", "points", "series", "text", "vector"]
    assert fields["image"]["decoded"] == "uint8 [16, 16, 3]" and fields["image"]["members"] == "jpg 10, png 10"
    assert fields["label"]["type"] == "label (class)" and fields["label"]["decoded"] == "int64"
    present = found.data["presence"]["audio"]
    assert fields["audio"]["present"] == f"{present} ({present / 20:.1%})" and 0 < present < 20
    labels = _table(found.tables, "label label")
    assert sum(int(row["samples"]) for row in labels.values()) == 20
    assert len(_table(found.tables, "statistics")) == 4
    assert _table(found.tables, "factory/train")["samples"]["value"] == "20"
    assert found.data["member_bytes"]["label.cls"] == {"count": 20, "min": 1, "median": 1, "max": 1}
    json.dumps(found.data, allow_nan=False)


def test_of_many_classes_the_first_are_shown(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "train", num_samples=200)
    names = [f"c{number:03d}" for number in range(100)]
    edit_manifest(root, lambda content: content["fields"]["label"].update(classes=names))
    edit_manifest(root, lambda content: content["label_counts"].update(label=dict.fromkeys(names, 2)))
    labels = _table(_described(root).tables, "label label")
    assert len(labels) == 31 and labels["… 70 more"] == {"class": "… 70 more", "samples": "140", "share": "70.0%"}
    edit_manifest(root, lambda content: content["label_counts"].update(label=dict.fromkeys(names, 3)))
    several = _table(_described(root).tables, "label label")
    assert several["c000"]["share"] == "1.5%" and several["… 70 more"] == dict.fromkeys(("samples", "share"), "–") | {
        "class": "… 70 more"
    }


def test_tars_are_described_without_writing_anything(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"x" * 100, "a.txt": b"xyz", "b.txt": b""}, tarfile.PAX_FORMAT)
    write_tar(tmp_path / "1.tar", {"c.jpg": b"x" * 300, "c.txt": b"x"})
    for found in (_described(tmp_path), inspect_tars([tmp_path / "0.tar", tmp_path / "1.tar"])):
        members = _table(found.tables, "members")
        assert members["jpg"] == {
            "suffix": "jpg",
            "present": "2 (66.7%)",
            "smallest": "100 B",
            "median": "200 B",
            "largest": "300 B",
        }
        assert members["txt"]["present"] == "3 (100.0%)"
        shards = _table(found.tables, "3 samples")
        assert shards[str(tmp_path / "0.tar")]["samples"] == "2" and shards[str(tmp_path / "0.tar")]["indexed"] == "no"
        assert found.data["num_samples"] == 3 and found.data["presence"] == {"jpg": 2, "txt": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "1.tar"]


def test_an_index_that_is_there_is_used(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.txt": b"xyz", "b.txt": b""})
    list(index_tars([shard]))
    assert _described(shard).tables[0].rows[0][3] == "yes"
    write_tar(shard, {"a.jpg": b"x" * 20_000})
    changed = _described(shard)
    assert changed.tables[0].rows[0][3] == "no" and changed.data["num_samples"] == 1


def test_the_labels_of_tars_are_counted(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(10):
        members |= {f"{i}.cls": str(i % 3).encode(), f"{i}.json": json.dumps({"kind": "ab"[i % 2]}).encode()}
    members["9.json"] = b'{"kind": null}'
    found = _described(write_tar(tmp_path / "0.tar", members))
    assert found.data["label_counts"] == {"label": {"0": 4, "1": 3, "2": 3}, "kind": {"a": 5, "b": 4}}
    labels = _table(found.tables, "label label")
    assert labels["0"] == {"value": "0", "samples": "4", "share": "40.0%"}
    assert _table(found.tables, "label kind, in 9 of the samples")["a"]["samples"] == "5"


def test_datasets_and_tars_are_described_in_their_order(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "train", 4, fields=("label",))
    tars = [write_tar(tmp_path / f"{i}.tar", {f"{i}.txt": b""}) for i in range(2)]
    found = list(describe([*tars, root, tmp_path / "{0,1}.tar", root / "shards"]))
    assert [inspection.data["num_samples"] for inspection in found] == [2, 4, 6]


def test_folders_of_a_store_are_tars_or_datasets_too(tmp_path: Path, s3_endpoint: str, bucket: str) -> None:
    upload(s3_endpoint, make_dataset(tmp_path / "data/train", 4, fields=("label",)), f"{bucket}/data/train")
    put_object(s3_endpoint, f"{bucket}/tars/deep/0.tar", write_tar(tmp_path / "0.tar", {"0.txt": b""}).read_bytes())
    put_object(s3_endpoint, f"{bucket}/else/x.txt", b"")
    put_object(s3_endpoint, f"{bucket}/made/in/place/dataset.json", b"{}")
    places = (f"s3://{bucket}/{name}" for name in ("tars", "data/train", "data/train/shards/"))
    assert [inspection.data["num_samples"] for inspection in describe(places)] == [1, 4, 4]
    with pytest.raises(DatasetError, match=rf"s3://{bucket}/else: holds no tars .* and no dataset"):
        list(describe([f"s3://{bucket}/else/"]))
    with pytest.raises(DatasetError, match=rf"s3://{bucket}/made: has no dataset\.json"):
        list(describe([f"s3://{bucket}/made"]))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"missing\.tar: no such file or folder"):
        inspect_tars([tmp_path / "missing.tar"])
    with pytest.raises(DatasetError, match=r"holds no tars \(\.tar, \.tgz, \.tar\.gz\) and no dataset"):
        list(describe([tmp_path]))
    with pytest.raises(DatasetError, match="no such dataset folder"):
        _described(tmp_path / "missing")


def test_objects_are_walked_side_by_side(tmp_path: Path, bucket: str, proxy: Proxy) -> None:
    tar = write_tar(tmp_path / "0.tar", {"a.txt": b"one"}).read_bytes()
    for number in range(8):
        put_object(proxy.endpoint, f"{bucket}/{number}.tar", tar)
    together = threading.Barrier(8, timeout=20)
    begun: set[str] = set()

    def wait_for_the_others(request: Request) -> None:
        if request.method == "GET" and ".tar" in request.path and request.path not in begun:
            begun.add(request.path)
            together.wait()  # if one shard comes after the other, it breaks

    proxy.faults = wait_for_the_others
    assert inspect_tars([f"s3://{bucket}/{{0..7}}.tar"]).data["num_samples"] == 8
    assert not together.broken


def test_a_proposal_for_a_few_samples_does_not_divide_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "few.tar", {f"{i}.txt": b"one" for i in range(6)})
    write_tar(tmp_path / "many.tar", {f"{i}.txt": b"one" for i in range(100)})
    for name, splits in (("few", {"train"}), ("many", {"train", "validation", "test"})):
        job = load_job(yaml.safe_load(_described(tmp_path / f"{name}.tar").job))
        assert isinstance(job, PreprocessJob) and isinstance(job.splits, SplitByHash)
        assert set(job.splits.fractions) == splits
