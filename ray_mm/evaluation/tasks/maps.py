"""A class for every cell of a map. What the actors find:

score.cells          int64 [N, S × 3 × C]: cells of each class that are right, predicted and true, for S subsets of the fields
score.loss           float32 [N, S]: the cross entropy, the mean over the labelled cells
score.predictions    uint8 [N, H, W]: the most probable classes, with all fields

All sums are of whole numbers: any order of the samples gives the same figures to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.class_scores import intersection_over_union, mean_iou
from ray_mm.config.fields import UNLABELLED
from ray_mm.data.fields import presence_name
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.metrics import FIXED_POINT, PROBABILITY_FLOOR, Metrics, fixed_point
from ray_mm.evaluation.report.content import CellFigures, MapDetails
from ray_mm.evaluation.tasks.base import CELLS, LOSS, PREDICTIONS, Array, OfLabel, Rows

Counts = npt.NDArray[np.int64]


class MapEvaluation(OfLabel):
    """See ``base.TaskEvaluation``.

    Args:
        label: its name.
        classes: in the order of their numbers.
    """

    def __init__(self, label: str, classes: Sequence[str]) -> None:
        super().__init__(label)
        self._classes = tuple(classes)

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        labels, count = batch[self.label], len(self._classes)
        predicted = outputs.argmax(axis=2).astype(np.uint8)
        labelled = labels != UNLABELLED
        true = np.where(labelled, labels, 0).astype(np.int64)
        likely = np.take_along_axis(outputs, true[None, :, None], axis=2)[:, :, 0]
        likely = np.clip(likely, PROBABILITY_FLOOR, 1)
        costs = (-np.log(likely.astype(np.float64)) * labelled).sum(axis=(2, 3))
        cells = np.stack(
            [[_cells(*pair, count) for pair in zip(labels, each, strict=True)] for each in predicted], axis=1
        )
        return {
            CELLS: cells.reshape(len(labels), -1),
            LOSS: (costs / np.maximum(labelled.sum(axis=(1, 2)), 1)).T.astype(np.float32),
            PREDICTIONS: predicted[-1],
        }

    def tally(self, num_subsets: int) -> MapTally:
        return MapTally(self.label, self._classes, num_subsets)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        return [("miou", pa.float32()), ("pixel_accuracy", pa.float32())]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        absent = ~rows[presence_name(self.label)]
        cells = rows[CELLS].reshape(len(absent), -1, 3, len(self._classes))[:, -1]
        found = [_figures(each) for each in cells]
        return {
            name: pa.array(np.array([figures[name] for figures in found], np.float32), mask=absent)
            for name, _ in self.columns
        }


def _cells(labels: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], num_classes: int) -> Counts:
    """Cells of each class that are right, predicted and true, int64 [3, C]; those without a label do not count."""
    true, said = labels[labels != UNLABELLED], predicted[labels != UNLABELLED]
    return np.stack([np.bincount(each, minlength=num_classes) for each in (true[true == said], said, true)])


def _figures(cells: Counts) -> dict[str, float]:
    hits, predicted, support = cells.tolist()
    return {
        "miou": mean_iou(hits, predicted, support),
        "pixel_accuracy": sum(hits) / sum(support) if any(support) else 0.0,
    }


class MapTally:
    """See ``base.TaskTally``."""

    def __init__(self, label: str, classes: Sequence[str], num_subsets: int) -> None:
        self._label = label
        self._classes = tuple(classes)
        self._num_samples = 0
        self._cells = np.zeros((num_subsets, 3, len(classes)), np.int64)
        self._loss = np.zeros(num_subsets, np.int64)

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        self._num_samples += len(rows[LOSS])
        self._cells += rows[CELLS].reshape(-1, *self._cells.shape).sum(axis=0)
        self._loss += fixed_point(rows[LOSS].astype(np.float64)).sum(axis=0)
        return rows[LOSS][:, -1].astype(np.float64)

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        return rows[self._label][row].copy(), rows[PREDICTIONS][row].copy()

    def metrics(self) -> list[Metrics]:
        return [
            {**_figures(cells), "log_loss": int(loss) / FIXED_POINT / self._num_samples}
            for cells, loss in zip(self._cells, self._loss, strict=True)
        ]

    def baseline(self) -> Metrics:
        """What the most frequent class in every cell would score."""
        support = self._cells[-1, 2]
        predicted = np.zeros_like(support)
        most = int(support.argmax())
        predicted[most] = support.sum()
        return dict(_figures(np.stack([np.minimum(support, predicted), predicted, support])))

    def running(self) -> dict[str, float]:
        return {"miou": _figures(self._cells[-1])["miou"]}

    def details(self) -> MapDetails:
        figures = [
            CellFigures(support, predicted, intersection_over_union(hits, predicted, support))
            for hits, predicted, support in self._cells[-1].T.tolist()
        ]
        return MapDetails(self._classes, figures)
