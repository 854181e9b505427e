"""Any number of classes per sample; those that are more probable than not are predicted. What the actors find:

score.bins            int16 [N, S × C]: the bin of each class's probability (``class_scores``), for S subsets of the fields
score.loss            float32 [N, S]: the binary cross entropy, the mean over the classes
score.probabilities   float32 [N, C]: of every class, with all fields

All sums are of whole numbers: any order of the samples gives the same figures to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.actors.columns import list_column, names_column
from ray_mm.class_scores import (
    NUM_SCORE_BINS,
    OVER_HALF,
    average_precisions,
    f1_score,
    macro_f1,
    mean_average_precision,
    score_bins,
)
from ray_mm.data.fields import presence_name
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.intervals import ratio_interval
from ray_mm.evaluation.metrics import (
    FIXED_POINT,
    NUM_BINS,
    Metrics,
    bin_numbers,
    calibration_error,
    filled_bins,
    fixed_point,
    per_class,
    sample_log_loss,
)
from ray_mm.evaluation.report.content import LabelFigures, MultilabelDetails
from ray_mm.evaluation.tasks.base import BINS, LOSS, PROBABILITIES, Array, OfLabel, Rows

MAX_HISTOGRAMS = 4096
"""Subsets times classes beyond which only all fields together have an mAP: a histogram takes 24 kB."""


class MultilabelEvaluation(OfLabel):
    """See ``base.TaskEvaluation``.

    Args:
        label: its name.
        classes: in the order of their numbers.
    """

    def __init__(self, label: str, classes: Sequence[str]) -> None:
        super().__init__(label)
        self._classes = tuple(classes)

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        labels = batch[self.label]
        likely = outputs.astype(np.float64)
        losses = sample_log_loss(np.where(labels[None] > 0.5, likely, 1 - likely)).mean(axis=2)
        return {
            BINS: score_bins(outputs).transpose(1, 0, 2).reshape(outputs.shape[1], -1),
            LOSS: losses.T.astype(np.float32),
            PROBABILITIES: outputs[-1],
        }

    def tally(self, num_subsets: int) -> MultilabelTally:
        return MultilabelTally(self.label, self._classes, num_subsets)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        names = pa.list_(pa.string())
        return [
            ("label", names),
            ("prediction", names),
            ("correct", pa.bool_()),
            ("probabilities", pa.list_(pa.float32())),
        ]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        labels, absent = rows[self.label], ~rows[presence_name(self.label)]
        true, predicted = labels > 0.5, rows[PROBABILITIES] > 0.5
        return {
            "label": names_column(true, self._classes, absent),
            "prediction": names_column(predicted, self._classes),
            "correct": pa.array((true == predicted).all(axis=1), mask=absent),
            "probabilities": list_column(rows[PROBABILITIES]),
        }


class MultilabelTally:
    """See ``base.TaskTally``."""

    def __init__(self, label: str, classes: Sequence[str], num_subsets: int) -> None:
        self._label = label
        self._classes, count = tuple(classes), len(classes)
        self._num_samples = 0
        self._hits = np.zeros((num_subsets, count), np.int64)
        self._predicted = np.zeros((num_subsets, count), np.int64)
        self._support = np.zeros(count, np.int64)
        self._loss = np.zeros(num_subsets, np.int64)
        # With all fields: pairs of a sample and a class by the probability, those where it has the class, their probabilities.
        self._bins = np.zeros((3, NUM_BINS), np.int64)
        # Likewise: of each sample's share of both sides of the micro F1 the squares and the product.
        self._squares = np.zeros(3, np.int64)
        # Of the last ones alone where there would be too many.
        kept = num_subsets if num_subsets * count <= MAX_HISTOGRAMS else 1
        self._histograms = np.zeros((kept, count, 2, NUM_SCORE_BINS), np.int64)

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        labels = rows[self._label]
        num_subsets, num_classes = self._hits.shape
        having = labels > 0.5
        bins = rows[BINS].reshape(len(labels), num_subsets, num_classes)
        predicted = bins >= OVER_HALF
        self._num_samples += len(labels)
        self._hits += (predicted & having[:, None]).sum(axis=0)
        self._predicted += predicted.sum(axis=0)
        self._support += having.sum(axis=0)
        self._loss += fixed_point(rows[LOSS].astype(np.float64)).sum(axis=0)
        likely = rows[PROBABILITIES].astype(np.float64)
        places_of = bin_numbers(likely)
        for sums, values in zip(self._bins, (np.ones_like(places_of), having, fixed_point(likely)), strict=True):
            np.add.at(sums, places_of, values)
        right = 2 * (predicted[:, -1] & having).sum(axis=1)
        asked = predicted[:, -1].sum(axis=1) + having.sum(axis=1)
        self._squares += [int((one * other).sum()) for one, other in ((right, right), (right, asked), (asked, asked))]
        kept = len(self._histograms)
        subsets, classes = np.arange(kept)[:, None], np.arange(num_classes)
        places = (subsets, classes, having[:, None].astype(np.int64), bins[:, -kept:])
        np.add.at(self._histograms, places, 1)
        return rows[LOSS][:, -1].astype(np.float64)

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        true, predicted = rows[self._label][row] > 0.5, rows[PROBABILITIES][row] > 0.5
        return tuple(np.flatnonzero(true).tolist()), tuple(np.flatnonzero(predicted).tolist())

    def metrics(self) -> list[Metrics]:
        without = len(self._hits) - len(self._histograms)
        found: list[Metrics] = []
        for subset, (hits, predicted) in enumerate(zip(self._hits, self._predicted, strict=True)):
            found.append(
                {
                    "micro_f1": _micro_f1(hits, predicted, self._support),
                    "macro_f1": macro_f1(hits.tolist(), predicted.tolist(), self._support.tolist()),
                    "map": mean_average_precision(self._histograms[subset - without]) if subset >= without else None,
                    "ece": calibration_error(filled_bins(*self._bins)) if subset + 1 == len(self._hits) else None,
                    "log_loss": int(self._loss[subset]) / FIXED_POINT / self._num_samples,
                }
            )
        return found

    def baseline(self) -> Metrics:
        """What always predicting the classes that more than half of the samples have would score."""
        usual = 2 * self._support > self._num_samples
        hits, predicted = np.where(usual, self._support, 0), np.where(usual, self._num_samples, 0)
        occurring = self._support[self._support > 0]
        shares = [int(count) / self._num_samples for count in occurring]
        return {
            "micro_f1": _micro_f1(hits, predicted, self._support),
            "macro_f1": macro_f1(hits.tolist(), predicted.tolist(), self._support.tolist()),
            # Of samples that all look alike the precision is the share that has the class.
            "map": math.fsum(shares) / len(shares) if shares else 0.0,
        }

    def running(self) -> dict[str, float]:
        return {"micro_f1": _micro_f1(self._hits[-1], self._predicted[-1], self._support)}

    def details(self) -> MultilabelDetails:
        precisions = average_precisions(self._histograms[-1]).tolist()
        figures = [
            LabelFigures(**asdict(each), average_precision=None if math.isnan(precision) else precision)
            for each, precision in zip(
                per_class(self._hits[-1], self._predicted[-1], self._support), precisions, strict=True
            )
        ]
        hits, predicted, support = (int(sums.sum()) for sums in (self._hits[-1], self._predicted[-1], self._support))
        interval = ratio_interval(2 * hits, predicted + support, self._squares.tolist(), self._num_samples)
        per_sample = support / self._num_samples
        return MultilabelDetails(self._classes, figures, per_sample, filled_bins(*self._bins), interval)


def _micro_f1(hits: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], support: npt.NDArray[np.int64]) -> float:
    return f1_score(int(hits.sum()), int(predicted.sum()), int(support.sum())) or 0.0
