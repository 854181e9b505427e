"""Lists of names in tars of others → a label of any number of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.collate import Collator
from ray_mm.data.manifest import open_dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.replay import left_out
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.factories import member_of, write_tar


@pytest.mark.ray
def test_lists_of_names_are_labels_with_any_number_of_classes(local_ray: None, tmp_path: Path) -> None:
    tags: list[Any] = [["b", "a"], [], None, ["c"], ["a", "a"], "a"]
    members: dict[str, bytes] = {}
    for i, each in enumerate(tags):
        members |= {f"{i}.json": json.dumps({"tags": each}).encode(), f"{i}.npy": member_of("vector", i)[1]}
    write_tar(tmp_path / "t-0.tar", members)
    spec = {"type": "label", "target": "classes", "path": "tags"}
    job = {
        "kind": "preprocess",
        "name": "tags",
        "shards": str(tmp_path / "t-0.tar"),
        "fields": {"v": {"type": "vector"}, "tags": spec},
        "members": {"v": "npy", "tags": "json"},
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
        "on_missing": "absent",
        "output": str(tmp_path / "data"),
    }
    run_preprocess(PreprocessJob.model_validate(job))
    dataset = open_dataset(tmp_path / "data" / "train")
    manifest = dataset.manifest
    found = manifest.fields["tags"]
    assert found.classes == ("a", "b", "c") and found.written_as == "name"  # type: ignore[union-attr]
    assert manifest.label_counts["tags"] == {"a": 2, "b": 1, "c": 1}
    assert manifest.presence["tags"] == 4, "neither that of null nor that of a text"
    assert dataset.read_index(0).labels == {}
    assert [line.reason for line in left_out(tmp_path / "data" / "train")] == [
        "json: has 'a', expected a list of classes"
    ]
    arrays, bad = Collator(preprocessor_for(dataset, {}, ["tags"])).collate(
        [SampleReader(dataset, ["tags"]).members(0, row) for row in range(6)]
    )
    assert bad == {} and [np.flatnonzero(row).tolist() for row in arrays["tags"]] == [[0, 1], [], [], [2], [0], []]
    assert arrays["tags.presence"].tolist() == [True, True, False, True, True, False]
