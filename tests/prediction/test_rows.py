"""Answers become rows of every kind of task, and rows become counts, whether they were just made or read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_mm.answers import Answers
from ray_mm.config.fields import LabelField
from ray_mm.config.tasks import ClassifyTask, GridTask, MultilabelTask, RegressTask
from ray_mm.data.decode.mask import read_mask
from ray_mm.data.manifest import Statistics
from ray_mm.errors import OutputFolderError
from ray_mm.prediction.answerer import ANSWERS
from ray_mm.prediction.counts import Counts
from ray_mm.prediction.partitions import Partitions
from ray_mm.prediction.rows import PredictionRows

CLASSES = ("a", "b", "c")
NONE_THERE, UNREADABLE = 1, 3
SOME = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.1, 0.9], [0.9, 0.9, 0.9]], np.float32)


def form_of(label: LabelField) -> PredictionRows:
    """Of a model that predicts this label."""
    types = {"class": ClassifyTask, "classes": MultilabelTask, "number": RegressTask}
    statistics = {"label": Statistics(mean=(0.0,), std=(1.0,))}
    answers = Answers(types[label.target](label="label"), {"label": label}, statistics, ["image", "vector"])
    return PredictionRows(answers, ["image", "vector"])


def rows_of(label: LabelField) -> tuple[dict[str, Any], pa.Table, pa.Schema]:
    """Four samples: of one no field is there, one can't be read."""
    rows = {
        ANSWERS: SOME[:, 0] if label.target == "number" else SOME,
        "weight": np.array([1, 1, 1, 0], np.float32),
        "image.presence": np.array([True, False, True, False]),
        "vector.presence": np.array([False, False, True, False]),
    }
    form = form_of(label)
    return rows, form.table(rows, ["k0", "k1", "k2", "k3"]), form.schema


@pytest.mark.parametrize(
    ("target", "predicted", "counts"),
    [
        ("class", ["a", "b", "c", None], {"a": 1, "b": 1, "c": 1}),
        ("classes", [["a"], ["b"], ["a", "c"], None], {"a": 2, "b": 1, "c": 1}),
        ("number", [*SOME[:3, 0].tolist(), None], None),
    ],
)
def test_rows_and_counts_of_a_task(tmp_path: Path, target: str, predicted: list[Any], counts: Any) -> None:
    label = LabelField.model_validate({"target": target, **({} if counts is None else {"classes": CLASSES})})
    rows, table, schema = rows_of(label)
    found = table.to_pydict()
    assert found["key"] == ["k0", "k1", "k2", "k3"]
    assert found["prediction"] == predicted
    for name in ("image.presence", "vector.presence"):
        assert found[name] == rows[name].tolist()
    if counts is not None:
        assert found["probabilities"] == [*SOME[:3].tolist(), None]
    else:
        assert "probabilities" not in found

    partitions = Partitions(tmp_path / "predictions", 4, 3, schema, "model", "data")
    with partitions.writer(0) as writer:
        for start in range(4):
            writer.add(table.slice(start, 1))
    assert [len(partitions.rows(number)) for number in range(partitions.num_files)] == [3, 1]
    made, read = Counts(form_of(label)), Counts(form_of(label))
    made.add(table)
    for number in range(partitions.num_files):
        for part in partitions.read(number, read.columns):
            read.add(part)
    for count in (made, read):
        assert (count.num_rows, count.num_predicted, count.num_quarantined, count.num_without_fields) == (4, 3, 1, 1)
        assert count.told() == ({} if counts is None else {"classes": counts})


def test_only_whole_files_of_the_same_run_count(tmp_path: Path) -> None:
    _, table, schema = rows_of(LabelField(classes=CLASSES))
    partitions = Partitions(tmp_path / "predictions", 10, 2, schema, "model", "data")
    assert (partitions.num_files, partitions.num_whole()) == (5, 0)
    with pytest.raises(RuntimeError), partitions.writer(0) as writer:
        writer.add(table)
        writer.add(table.slice(0, 3))
        raise RuntimeError
    assert sorted(path.name for path in partitions.folder.iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]
    assert partitions.num_whole() == 3

    # What a killed process leaves is taken away, and what lies behind a damaged file is made again.
    (partitions.folder / ".part-00003.parquet.x.tmp").touch()
    content = partitions.path(1).read_bytes()
    partitions.path(1).write_bytes(content[:-9])
    assert partitions.num_whole() == 1
    with partitions.writer(1) as writer:
        writer.add(table.slice(2))
        writer.add(table)
        writer.add(table.slice(0, 2))
    assert partitions.num_whole() == 5
    assert partitions.path(1).read_bytes() == content
    assert sorted(path.name for path in partitions.folder.iterdir()) == [f"part-0000{n}.parquet" for n in range(5)]
    assert partitions.path(0).stat().st_mode & 0o777 == 0o644

    for change, what in (({"model": "other"}, "another model"), ({"data": "other"}, "another dataset")):
        other = Partitions(**{**vars(partitions), **change})
        with pytest.raises(OutputFolderError, match=rf"part-00000.parquet was made with {what} \(\w+, now other\)"):
            other.num_whole()


def test_a_file_whose_rows_are_damaged_is_named(tmp_path: Path) -> None:
    _, table, schema = rows_of(LabelField(classes=CLASSES))
    partitions = Partitions(tmp_path / "predictions", 4, 4, schema, "model", "data")
    with partitions.writer(0) as writer:
        writer.add(table)
    content = bytearray(partitions.path(0).read_bytes())
    content[4:200] = bytes(196)
    partitions.path(0).write_bytes(content)
    with pytest.raises(OutputFolderError, match=r"part-00000\.parquet is damaged \(.*\); remove it"):
        list(partitions.read(0, ["key", "prediction"]))


def test_a_map_becomes_a_png_of_the_numbers_of_its_classes() -> None:
    label = LabelField(target="mask", classes=CLASSES, height=2, width=4)
    answers = Answers(GridTask(label="label"), {"label": label}, {}, ["image"])
    form = PredictionRows(answers, ["image"])
    said = np.random.default_rng(0).random((3, 3, 2, 4)).astype(np.float32)
    rows = {ANSWERS: said, "weight": np.array([1, 0, 1], np.float32), "image.presence": np.array([True, False, True])}
    found = form.table(rows, ["k0", "k1", "k2"]).to_pydict()
    assert found["prediction"][1] is None and form.classes == {}
    for row in (0, 2):
        assert (read_mask(found["prediction"][row], label) == said[row].argmax(axis=0)).all()
