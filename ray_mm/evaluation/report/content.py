"""What a report is made of: plain values, no Ray, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ray_mm.evaluation.metrics import Bin, ClassFigures, Metrics
from ray_mm.evaluation.report.cards import Card, SaidCard, SearchCard
from ray_mm.evaluation.report.curves import Curves


@dataclass(frozen=True)
class SubsetScore:
    """How well the model does with some of its fields.

    Attributes:
        fields: which, sorted.
        metrics: over all samples, whether the fields are there or not.
        coverage: share of the samples that have at least one of the fields.
    """

    fields: tuple[str, ...]
    metrics: Metrics
    coverage: float


@dataclass(frozen=True)
class ClassificationDetails:
    """What only a classification has.

    Attributes:
        classes: in the order of their numbers.
        figures: of each class.
        confusion: int64 [C, C], a row per true class; None where there are too many classes to keep it.
        bins: of confidence.
        interval: where the accuracy lies with 95% certainty.
    """

    classes: tuple[str, ...]
    figures: Sequence[ClassFigures]
    confusion: npt.NDArray[np.int64] | None
    bins: Sequence[Bin]
    interval: tuple[float, float]


@dataclass(frozen=True)
class RegressionDetails:
    """What only a regression has.

    Attributes:
        true: of samples drawn at random, float64 [n].
        predicted: of the same samples, float64 [n].
        intervals: metric → where it lies with 95% certainty.
    """

    true: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class LabelFigures(ClassFigures):
    """One of several classes per sample; ``average_precision`` is None where no sample has it."""

    average_precision: float | None


@dataclass(frozen=True)
class MultilabelDetails:
    """What only several classes per sample have.

    Attributes:
        classes: in the order of their numbers.
        figures: of each class.
        classes_per_sample: how many a sample has, on average.
        bins: of the probability of a class, over all samples and classes; ``accuracy`` is the share that has it.
        interval: where the micro F1 lies with 95% certainty; None: all samples are equally right.
    """

    classes: tuple[str, ...]
    figures: Sequence[LabelFigures]
    classes_per_sample: float
    bins: Sequence[Bin]
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class CellFigures:
    """Of the cells of one class.

    Attributes:
        support: that are of it.
        predicted: that are taken for it.
        iou: intersection over union; None where it neither occurs nor is predicted.
    """

    support: int
    predicted: int
    iou: float | None


@dataclass(frozen=True)
class MapDetails:
    """What only a map has.

    Attributes:
        classes: in the order of their numbers.
        figures: of each class.
    """

    classes: tuple[str, ...]
    figures: Sequence[CellFigures]


@dataclass(frozen=True)
class Way:
    """Searching by one tower among another.

    Attributes:
        query: tower that is searched by.
        candidate: tower that is searched.
        num_queries: samples that have both.
        num_candidates: samples that have the second.
        figures: recall, MRR and median rank.
    """

    query: str
    candidate: str
    num_queries: int
    num_candidates: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Search:
    """One query, and what it finds.

    Attributes:
        query: position of its sample in the dataset.
        towers: that it searches by, and that is searched.
        rank: of the right candidate, from 1.
        num_candidates: among which.
        cosine: of the right one.
        found: the nearest candidates: position and cosine.
    """

    query: int
    towers: tuple[str, str]
    rank: float
    num_candidates: int
    cosine: float
    found: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class RetrievalDetails:
    """What only a retrieval has.

    Attributes:
        ways: from each tower to every other one.
        intervals: metric → where it lies with 95% certainty.
        towers: tower → its fields.
        worst: drawn searches with the worst ranks.
        even: others, taken evenly over the dataset.
    """

    ways: Sequence[Way]
    intervals: Mapping[str, tuple[float, float]]
    towers: Mapping[str, Sequence[str]]
    worst: Sequence[SearchCard] = ()
    even: Sequence[SearchCard] = ()


@dataclass(frozen=True)
class ReconstructionDetails:
    """What only a reconstruction has.

    Attributes:
        fields: that are reconstructed, sorted.
        loss: mean over the samples of what each costs with all fields.
        worst: those that cost most, drawn.
        best: those that cost least.
    """

    fields: tuple[str, ...]
    loss: float
    worst: Sequence[SaidCard] = ()
    best: Sequence[SaidCard] = ()


Details: TypeAlias = (
    ClassificationDetails
    | MultilabelDetails
    | RegressionDetails
    | RetrievalDetails
    | ReconstructionDetails
    | MapDetails
)


@dataclass(frozen=True)
class ReportContent:
    """Everything that stands in a report.

    Attributes:
        job: name of the job.
        checkpoint: where the model lies.
        model: in a few words: its fusion, its size.
        dataset: name of the dataset.
        dataset_path: where it lies.
        dataset_digest: of its content.
        label: the field that is predicted; of a retrieval or a reconstruction nothing.
        main: the metric by which subsets are compared.
        num_samples: samples that were scored.
        num_quarantined: samples that could not be read.
        num_unlabelled: samples without the label, or with one side only; predicted, not scored.
        presence: input field → share of the scored samples that have it.
        metrics: with all fields.
        subsets: sorted by number of fields; the last one has all of them.
        baseline: what a constant prediction scores.
        contributions: field → what it adds to the main metric; None where not every subset was scored.
        details: of the task.
        curves: of the training.
        worst: the examples with the largest loss.
        best: those with the smallest.
        finished: date and time, to be shown as it is.
        versions: of what decides the outcome.
    """

    job: str
    checkpoint: str
    model: str
    dataset: str
    dataset_path: str
    dataset_digest: str
    label: str
    main: str
    num_samples: int
    num_quarantined: int
    num_unlabelled: int
    presence: dict[str, float]
    metrics: Metrics
    subsets: Sequence[SubsetScore]
    baseline: Metrics
    contributions: dict[str, float] | None
    details: Details
    curves: Curves | None
    worst: Sequence[Card]
    best: Sequence[Card]
    finished: str
    versions: dict[str, str]
