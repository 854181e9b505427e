"""An evaluation of maps: figures of all cells, per class and per subset, and pictures that can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_mm.config.fields import UNLABELLED
from ray_mm.data.blocks import to_table
from ray_mm.evaluation.outcome import result_details, result_metrics
from ray_mm.evaluation.report.content import MapDetails
from ray_mm.evaluation.report.render import render
from ray_mm.evaluation.tasks.base import LOSS
from ray_mm.evaluation.tasks.maps import MapEvaluation
from ray_mm.training.scores import MapScores
from tests.evaluation.scenes import make_scene
from tests.evaluation.test_report import content_of
from tests.factories import CLASSES

# What jaccard_score (macro) and accuracy_score of scikit-learn give for the cells that are labelled.
TRUE = np.array(
    [[[0, 0, 1, 1], [0, 2, 1, 255], [2, 2, 255, 0]], [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8
)
SAID = np.array([[[0, 1, 1, 1], [0, 2, 0, 0], [2, 0, 1, 0]], [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 2]]], np.uint8)
MIOU, ACCURACY = (9 / 13 + 6 / 9 + 2 / 3) / 3, 17 / 21


def _likely(said: np.ndarray) -> np.ndarray:
    """Probabilities float32 [N, 3, H, W] of which the largest is that of the class that is said."""
    found = np.full((len(said), 3, *said.shape[1:]), 0.1, np.float32)
    np.put_along_axis(found, said[:, None].astype(np.int64), 0.8, axis=1)
    return found


def test_figures_are_those_of_all_cells() -> None:
    evaluation = MapEvaluation("mask", ("a", "b", "c"))
    rows = {"mask": TRUE, "mask.presence": np.array([True, True])}
    # Of two subsets the first says nothing but the first class.
    outputs = np.stack([_likely(np.zeros_like(SAID)), _likely(SAID)])
    found = rows | evaluation.scored(outputs, rows)
    tally = evaluation.tally(2)
    for row in range(2):
        losses = tally.add({name: array[row : row + 1] for name, array in found.items()})
        assert losses == pytest.approx(found[LOSS][row : row + 1, -1])
    first, last = tally.metrics()
    assert last["miou"] == pytest.approx(MIOU) and last["pixel_accuracy"] == pytest.approx(ACCURACY)
    assert first["miou"] == pytest.approx(tally.baseline()["miou"]) and tally.running() == {"miou": last["miou"]}
    costs = np.where(TRUE == SAID, -np.log(0.8), -np.log(0.1))
    wanted = np.mean([each[true != UNLABELLED].mean() for each, true in zip(costs, TRUE, strict=True)])
    assert last["log_loss"] == pytest.approx(wanted, abs=1e-6)
    details = tally.details()
    assert [each.support for each in details.figures] == [11, 7, 3]
    assert np.mean([each.iou for each in details.figures]) == pytest.approx(MIOU)
    label, said = tally.answers(found, 1)
    assert isinstance(label, np.ndarray) and (label == TRUE[1]).all() and (said == SAID[1]).all()


def test_a_row_of_predictions_has_the_figures_of_its_sample() -> None:
    evaluation = MapEvaluation("mask", ("a", "b", "c"))
    rows = {"mask": TRUE, "mask.presence": np.array([False, True])}
    columns = evaluation.arrays(rows | evaluation.scored(_likely(SAID)[None], rows))
    assert [name for name, _ in evaluation.columns] == list(columns)
    assert columns["miou"].to_pylist() == [None, pytest.approx((6 / 7 + 4 / 5) / 2)]
    assert columns["pixel_accuracy"].to_pylist() == [None, pytest.approx(10 / 11)]
    assert all(column.type == pa.float32() for column in columns.values())


def test_a_validation_counts_the_same_cells() -> None:
    import torch

    scores = MapScores("mask", 3)
    counted = torch.tensor([True, True])
    main = scores.main(torch.from_numpy(_likely(SAID)), {"mask": torch.from_numpy(TRUE)}, counted).tolist()
    assert scores.figures(main, [], 2) == pytest.approx({"miou": MIOU, "pixel_accuracy": ACCURACY})


def test_scored_maps_travel_as_a_table() -> None:
    evaluation = MapEvaluation("mask", ("a", "b", "c"))
    rows = {"mask": TRUE, "mask.presence": np.array([True, True])}
    assert to_table(rows | evaluation.scored(_likely(SAID)[None], rows), []).num_rows == 2


@pytest.mark.parametrize("label", ["mask", "grid"])
def test_the_report_shows_classes_and_maps_beside_each_other(tmp_path: Path, label: str) -> None:
    missing = {label: 0.2, "image": 0.3}
    content = content_of(make_scene(tmp_path, ["image", "points", "vector"], label, missing=missing))
    assert isinstance(content.details, MapDetails) and content.num_unlabelled > 0
    metrics = result_metrics(content)
    assert len(metrics["subsets"]) == 7 and set(metrics["baseline"]) == {"miou", "pixel_accuracy"}
    assert metrics["contributions"].keys() == {"image", "points", "vector"}
    assert sum(metrics["contributions"].values()) == pytest.approx(metrics["miou"] - metrics["baseline"]["miou"])
    found = result_details(content)
    assert list(found["classes"]) == list(CLASSES)
    assert {"support", "predicted", "iou"} == set(found["classes"]["left"])
    page = render(content)
    assert page.count("<figcaption><span>truth</span>") == page.count("<figcaption><span>prediction</span>") == 8
    assert "Which cells it finds" in page and "Mean IoU" in page and "<script" not in page
    for card in content.worst:
        assert card.right is None and card.predicted.startswith("mean IoU ") and card.maps is not None
