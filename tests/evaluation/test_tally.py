"""What the driver keeps of a stream, and what it writes: counts, extremes, predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.evaluation.examples import Example, Extremes
from ray_mm.evaluation.metrics import NUM_BINS
from ray_mm.evaluation.predictions import predictions_writer
from ray_mm.evaluation.subsets import field_subsets
from ray_mm.evaluation.tally import Tally
from ray_mm.evaluation.tasks.classify import ClassEvaluation
from ray_mm.evaluation.tasks.multilabel import MultilabelEvaluation
from ray_mm.evaluation.tasks.regress import NumberEvaluation
from tests.evaluation.scenes import make_scene, scored_blocks

KINDS = ClassEvaluation("label", ("a", "b", "c"))


def example(position: int, loss: float) -> Example:
    return Example(position, f"key{position}", loss, 0, 0, (), {})


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 8), st.integers(1, 12))
def test_extremes_are_those_of_a_full_sort_however_the_stream_is_cut(losses: list[int], size: int, cut: int) -> None:
    extremes = Extremes(size)
    for start in range(0, len(losses), cut):
        part = np.array(losses[start : start + cut], np.float64)
        extremes.add(part, lambda row, start=start, part=part: example(start + row, float(part[row])))
    by_loss = sorted(range(len(losses)), key=lambda position: (-losses[position], position))
    worst = by_loss[:size]
    best = sorted(range(len(losses)), key=lambda position: (losses[position], position))[:size]
    assert [each.position for each in extremes.worst()] == worst
    assert [each.position for each in extremes.best()] == [position for position in best if position not in worst]


def test_an_example_is_made_only_when_it_is_kept() -> None:
    extremes, made = Extremes(2), []

    def make(row: int) -> Example:
        made.append(row)
        return example(len(made), 1.0)

    extremes.add(np.array([5.0, 0.0, 3.0, 4.0, 1.0]), make)
    assert sorted(made) == [0, 1, 3, 4]
    extremes.add(np.array([3.0, 3.5]), lambda row: pytest.fail("no extreme"))


def test_a_tally_does_not_depend_on_how_the_rows_are_cut(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["image", "vector"], missing={"image": 0.3, "label": 0.2}, corrupt=[(3, "image")])
    subsets = field_subsets(scene.inputs, "all")
    # The rows of one forward pass, cut in two ways: what a network computes may depend on the size of its batch.
    rows, keys = next(scored_blocks(scene, subsets, batch_size=40))
    tallies = []
    for size in (40, 7):
        tally = Tally(KINDS, scene.inputs, subsets, examples=3)
        for start in range(0, 40, size):
            part = {name: array[start : start + size] for name, array in rows.items()}
            tally.add(part, keys[start : start + size])
        tallies.append(tally)
    whole, parts = tallies
    assert (whole.num_seen, whole.num_quarantined) == (40, 1)
    assert whole.num_scored + whole.num_unlabelled == 39
    assert whole.num_unlabelled > 0
    assert whole.of_task.metrics() == parts.of_task.metrics()
    assert whole.of_task.baseline() == parts.of_task.baseline()
    assert whole.covered.tolist() == parts.covered.tolist()
    assert whole.present.tolist() == [int(rows[f"{name}.presence"][_scored(rows)].sum()) for name in scene.inputs]
    assert whole.extremes.worst() == parts.extremes.worst()
    assert np.array_equal(whole.of_task.confusion, parts.of_task.confusion)


def _scored(rows: dict[str, np.ndarray]) -> np.ndarray:
    return (rows["weight"] > 0) & rows["label.presence"]


def test_drawn_values_are_a_fair_and_bounded_sample() -> None:
    tally = Tally(NumberEvaluation("number", 0.0), ["vector"], [frozenset({"vector"})], examples=0)
    labels = np.arange(20_000, dtype=np.float32)
    for start in range(0, len(labels), 1000):
        part = labels[start : start + 1000]
        rows = {
            "position": np.arange(start, start + len(part)),
            "weight": np.ones(len(part), np.float32),
            "number": part,
            "number.presence": np.ones(len(part), np.bool_),
            "vector.presence": np.ones(len(part), np.bool_),
            "score.predictions": part[:, None] + 1,
        }
        tally.add(rows, [""] * len(part))
    drawn = np.array(tally.of_task.drawn)
    assert len(drawn) == len(np.unique(drawn[:, 0])) == 1500
    assert drawn[:, 0].mean() == pytest.approx(10_000, rel=0.05)
    assert tally.of_task.metrics()[0]["mae"] == 1.0
    assert tally.running() == {"mae": 1.0}


def test_figures_of_several_classes_are_those_of_the_samples() -> None:
    evaluation = MultilabelEvaluation("tags", ("a", "b", "c", "d"))
    random = np.random.default_rng(0)
    # The last class nobody has; the first one most samples have.
    labels = (random.random((50, 4)) < (0.7, 0.3, 0.1, 0)).astype(np.float32)
    outputs = random.random((2, 50, 4)).astype(np.float32)
    outputs[1] = np.clip(0.6 * labels + 0.5 * outputs[1], 0, 1)
    rows = {"tags": labels, "tags.presence": np.ones(50, np.bool_)}
    rows |= evaluation.scored(outputs, rows)
    whole, parts = evaluation.tally(2), evaluation.tally(2)
    losses = whole.add(rows)
    for start in range(0, 50, 7):
        parts.add({name: array[start : start + 7] for name, array in rows.items()})
    assert whole.metrics() == parts.metrics() and whole.details() == parts.details()
    for subset, metrics in enumerate(whole.metrics()):
        predicted, having = outputs[subset] > 0.5, labels > 0.5
        hits = (predicted & having).sum()
        assert metrics["micro_f1"] == pytest.approx(2 * hits / (predicted.sum() + having.sum()))
        right = np.where(having, outputs[subset], 1 - outputs[subset]).astype(np.float64)
        assert metrics["log_loss"] == pytest.approx(-np.log(np.maximum(right, 1.2e-7)).mean(), rel=1e-5)
    assert losses.mean() == pytest.approx(whole.metrics()[-1]["log_loss"])
    assert whole.running() == {"micro_f1": whole.metrics()[-1]["micro_f1"]}
    assert whole.metrics()[1]["map"] > 0.9 > whole.metrics()[0]["map"] > 0.2
    support = labels.sum(axis=0)
    baseline = whole.baseline()
    assert baseline["micro_f1"] == pytest.approx(2 * support[0] / (50 + support.sum()))
    assert baseline["map"] == pytest.approx(support[:3].mean() / 50)
    # Calibration: of all pairs of sample and class, with all fields.
    chance, has = outputs[1].astype(np.float64).ravel(), labels.ravel()
    numbers = np.clip(np.ceil(chance * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = [abs(chance[numbers == n].sum() - has[numbers == n].sum()) for n in range(NUM_BINS)]
    assert whole.metrics()[1]["ece"] == pytest.approx(sum(gaps) / 200) and whole.metrics()[0]["ece"] is None
    bins = whole.details().bins
    assert sum(each.count for each in bins) == 200
    assert sum(each.count * each.accuracy for each in bins) == pytest.approx(support.sum())
    # All are right: that says nothing of the spread.
    assert whole.metrics()[1]["micro_f1"] == 1 and whole.details().interval is None
    guessing = evaluation.tally(1)
    guessing.add(rows | evaluation.scored(outputs[:1], rows))
    assert guessing.details().interval is not None
    low, high = guessing.details().interval
    assert low < guessing.metrics()[0]["micro_f1"] < high and 0.05 < high - low < 0.4
    figures = whole.details().figures
    assert [each.support for each in figures] == support.tolist()
    assert figures[3].average_precision is None and figures[3].recall is None
    first = {name: array[:1] for name, array in rows.items()} | {"tags.presence": np.array([False])}
    assert evaluation.arrays(first)["label"].to_pylist() == [None]


def test_of_very_many_classes_only_all_fields_together_have_an_average_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray_mm.evaluation.tasks.multilabel.MAX_HISTOGRAMS", 5)
    evaluation = MultilabelEvaluation("tags", ("a", "b", "c"))
    labels = np.eye(3, dtype=np.float32)
    tally = evaluation.tally(2)
    rows = {"tags": labels}
    tally.add(rows | evaluation.scored(np.stack([labels * 0 + 0.4, labels]), rows))
    assert [each["map"] for each in tally.metrics()] == [None, 1.0]
    assert [each["micro_f1"] for each in tally.metrics()] == [0.0, 1.0]


def test_predictions_are_whole_or_not_there(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["vector"], num_samples=10)
    subsets = field_subsets(["vector"], "all")
    path = tmp_path / "predictions.parquet"
    with pytest.raises(RuntimeError), predictions_writer(path, ["vector"], KINDS) as writer:
        writer.add(*next(scored_blocks(scene, subsets)))
        raise RuntimeError
    assert sorted(child.name for child in tmp_path.iterdir()) == ["checkpoint", "data"]
    with predictions_writer(path, ["vector"], KINDS) as writer:
        for rows, keys in scored_blocks(scene, subsets, batch_size=3):
            writer.add(rows, keys)
    file = pq.ParquetFile(path)
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (10, 1)
    assert path.stat().st_mode & 0o777 == 0o644
