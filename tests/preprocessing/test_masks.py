"""Masks from a table and from tars in place: kept as they are, counted, and refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.fields import LabelField
from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.collate import Collator
from ray_mm.data.inspect import inspect_dataset
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.errors import JobFileError, RayMMError, UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.factories import CLASSES, image_bytes, mask_bytes, mask_of, npy_bytes, write_tar
from tests.preprocessing.tables import members_by_key, write_csv, write_file

_NUM_ROWS = 12
_FIELDS: dict[str, dict[str, Any]] = {
    "image": {"type": "image", "height": 12, "width": 16},
    "mask": {"type": "label", "target": "mask", "classes": list(CLASSES), "like": "image"},
    "grid": {"type": "label", "target": "mask", "classes": list(CLASSES)},
}
_SPLITS = {"by": "hash", "fractions": {"train": 1.0}}


def _members(i: int) -> dict[str, bytes]:
    return {
        "image": image_bytes(i, height=24, width=32),
        "mask": mask_bytes(mask_of("mask", i, size=(24, 32))),
        "grid": npy_bytes(mask_of("grid", i)),
    }


def _from_table(folder: Path, change: dict[str, bytes] | None = None, **more: Any) -> PreprocessJob:
    rows = []
    for i in range(_NUM_ROWS):
        row: dict[str, Any] = {"key": f"k{i:03d}"}
        for name, payload in _members(i).items():
            row[name] = f"files/{name}{i}.bin"
            write_file(folder / row[name], (change or {}).get(f"{name}{i}", payload))
        if i == 5:
            row["mask"] = None
        rows.append(row)
    content = {
        "kind": "preprocess",
        "name": "maps",
        "table": str(write_csv(folder / "t.csv", rows)),
        "key": "key",
        "fields": _FIELDS,
        "splits": _SPLITS,
        "output": str(folder / "out"),
    }
    job = load_job(content | more)
    assert isinstance(job, PreprocessJob)
    return job


def _check(dataset: Dataset, lacking: set[str]) -> None:
    manifest = dataset.manifest
    mask, grid = manifest.fields["mask"], manifest.fields["grid"]
    assert isinstance(mask, LabelField) and isinstance(grid, LabelField)
    assert (mask.height, mask.width, mask.like) == (12, 16, "image"), "as large as the picture"
    assert (grid.height, grid.width, grid.like) == (6, 8, None), "from the data"
    samples = members_by_key(dataset)
    arrays, bad = Collator(preprocessor_for(dataset, {}, _FIELDS)).collate(samples.values())
    assert not bad and len(samples) == _NUM_ROWS
    counts = np.zeros(len(CLASSES), int)
    for row, key in enumerate(samples):
        i = int(key[-3:])
        assert arrays["mask.presence"][row] == (key not in lacking) and arrays["grid.presence"][row]
        assert (arrays["grid"][row] == mask_of("grid", i)).all()
        if key not in lacking:
            # At half the size: every second row and column.
            assert (arrays["mask"][row] == mask_of("mask", i, size=(24, 32))[1::2, 1::2]).all()
            counts += np.bincount(np.unique(mask_of("mask", i)), minlength=256)[: len(CLASSES)]
        else:
            assert not arrays["mask"][row].any()
    assert list(manifest.label_counts["mask"]) == list(CLASSES)
    assert list(manifest.label_counts["mask"].values()) == counts.tolist(), "samples in which each class occurs"
    assert manifest.presence["mask"] == _NUM_ROWS - len(lacking)


@pytest.mark.ray
def test_masks_of_a_table_come_back_as_they_went_in(tmp_path: Path, local_ray: None) -> None:
    run_preprocess(_from_table(tmp_path))
    dataset = open_dataset(tmp_path / "out" / "train")
    _check(dataset, {"k005"})
    assert dataset.manifest.members["mask"] == ("mask.png",) and dataset.manifest.members["grid"] == ("grid.npy",)
    shown = {table.title: table for table in inspect_dataset(dataset.root).tables}
    assert ("mask", "label (mask)", "uint8 [12, 16]") in {row[:3] for row in shown["fields"].rows}
    assert [row[0] for row in shown["label mask"].rows] == list(CLASSES)


@pytest.mark.ray
def test_masks_in_tars_stay_where_they_are(tmp_path: Path, local_ray: None) -> None:
    extensions = {"image": "jpg", "mask": "mask.png", "grid": "grid.npy"}
    members = {
        f"k{i:03d}.{extensions[name]}": payload
        for i in range(_NUM_ROWS)
        for name, payload in _members(i).items()
        if (i, name) != (5, "mask")
    }
    members["k007.mask.png"] = mask_bytes(np.full((24, 32), 9, np.uint8))
    write_tar(tmp_path / "t.tar", members)
    content = {
        "kind": "preprocess",
        "name": "maps",
        "shards": str(tmp_path / "t.tar"),
        "members": {"image": "jpg"},
        "fields": _FIELDS,
        "splits": _SPLITS,
        "on_missing": "absent",
        "output": str(tmp_path / "out"),
    }
    job = load_job(content)
    assert isinstance(job, PreprocessJob)
    result = run_preprocess(job)
    assert result["metrics"]["num_unusable"] == {"grid": 0, "image": 0, "mask": 1}
    _check(open_dataset(tmp_path / "out" / "train"), {"k005", "k007"})


@pytest.mark.ray
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask3": mask_bytes(np.full((24, 32), 3, np.uint8))},
            r"row 4 mask .*has 3 at row 0, column 0; the 3 classes",
        ),
        ({"mask3": image_bytes(0)}, r"row 4 mask .*is jpg; a mask is a PNG or an NPY"),
        ({"grid3": npy_bytes(np.zeros((5, 8), np.uint8))}, r"fields\.grid: height must be the same in every row"),
    ],
)
def test_what_is_no_mask_stops_the_job(tmp_path: Path, local_ray: None, change: dict[str, bytes], message: str) -> None:
    with pytest.raises(RayMMError, match=message):
        run_preprocess(_from_table(tmp_path, change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields.mask.classes": None}, r"fields\.mask\.classes: a mask holds numbers"),
        ({"fields.mask.like": "camera"}, r"fields\.mask\.like: 'camera' is no image field; there are image"),
        ({"fields.mask.target": "class"}, r"fields\.mask\.like is of a label with target: mask"),
        ({"fields.mask.path": "a.b"}, r"target: mask is a PNG or NPY of numbers and has no path"),
        ({"fields.mask.written_as": "name"}, r"has no written_as: name"),
        ({"fields.mask.classes": [str(i) for i in range(256)]}, r"a mask has at most 255 classes, found 256"),
    ],
)
def test_a_mistake_is_told_by_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = _from_table(tmp_path).model_dump(mode="json", exclude_unset=True)
    with pytest.raises((JobFileError, UsageError), match=message):
        load_job(content, changes)
