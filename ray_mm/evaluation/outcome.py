"""What a finished tally says: the content of the report and of ``result.json``. No Ray."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_mm.checkpoint import resolve_checkpoint
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.tasks import FIGURES, SeveralTask, labels_of
from ray_mm.data.epochs import Epochs
from ray_mm.errors import CheckpointError
from ray_mm.evaluation.examples import Example
from ray_mm.evaluation.metrics import ClassFigures
from ray_mm.evaluation.report.cards import Card, SampleViews, make_cards
from ray_mm.evaluation.report.content import (
    CellFigures,
    ClassificationDetails,
    MapDetails,
    MultilabelDetails,
    ReconstructionDetails,
    RegressionDetails,
    ReportContent,
    RetrievalDetails,
    SubsetScore,
)
from ray_mm.evaluation.report.curves import read_curves
from ray_mm.evaluation.report.reconstructions import reconstruction_cards
from ray_mm.evaluation.report.searches import search_cards
from ray_mm.evaluation.subsets import Subset, contributions, subset_name
from ray_mm.evaluation.tally import Tally
from ray_mm.evaluation.tasks.reconstruct import ReconstructEvaluation
from ray_mm.evaluation.tasks.retrieve import RetrieveTally
from ray_mm.predictor import OnnxPredictor, Predictor
from ray_mm.run_folder import versions
from ray_mm.storage import local_path

_MAX_LISTED_CLASSES = 100


def report_content(
    job: EvaluateJob,
    predictor: Predictor,
    epochs: Epochs,
    subsets: tuple[Subset, ...],
    tally: Tally,
    of_task: str = "",
) -> ReportContent:
    """Everything that the report shows; reads the examples' members again.

    Args:
        job: what was asked for.
        predictor: the model.
        epochs: the samples that were scored, of one dataset.
        subsets: of the input fields; the last one has all of them.
        tally: of all of them, with at least one scored sample.
        of_task: name of the task, where the model has several.
    """
    task = predictor.config.task
    if isinstance(task, SeveralTask):
        task = task.tasks[of_task]
    dataset, labels = epochs.datasets[0], labels_of(task)
    part = epochs.samples.selections[0].description
    metrics, baseline = tally.of_task.metrics(), tally.of_task.baseline()
    figures = FIGURES[task.type]
    shares = None
    if job.subsets == "all" and predictor.towers is None:
        # An error is better when it is smaller: what a field adds is what it takes away from the error.
        name, sign = figures.main, figures.sign
        scores = {subset: sign * _number(each[name]) for subset, each in zip(subsets, metrics, strict=True)}
        shares = contributions(scores, sign * _number(baseline[name]))

    samples = SampleViews(epochs, predictor.preprocessor, predictor.input_fields)

    def cards(examples: list[Example]) -> list[Card]:
        return make_cards(examples, samples, predictor.preprocessor.fields[labels[0]]) if examples and labels else []

    details = tally.of_task.details()
    if isinstance(tally.of_task, RetrieveTally):
        assert isinstance(details, RetrievalDetails)
        worst, even = (search_cards(found, samples, details.towers) for found in tally.of_task.searches(job.examples))
        details = replace(details, worst=worst, even=even)
    if isinstance(details, ReconstructionDetails):
        targets = ReconstructEvaluation(details.fields, predictor.preprocessor).targets
        worst_said, best_said = (
            reconstruction_cards(examples, samples, predictor, targets)
            for examples in (tally.extremes.worst(), tally.extremes.best())
        )
        details = replace(details, worst=worst_said, best=best_said)

    now = datetime.datetime.now().astimezone()
    runtime = "onnxruntime" if isinstance(predictor, OnnxPredictor) else "PyTorch"
    return ReportContent(
        job=f"{job.name}, {of_task}" if of_task else job.name,
        checkpoint=_shown(str(checkpoint_folder(job))),
        model=f"{predictor.config.fusion.method.replace('_', ' ')} fusion, {_size(predictor.size_bytes)}, {runtime}",
        dataset=f"{dataset.manifest.name} ({part})" if part else dataset.manifest.name,
        dataset_path=_shown(dataset.root),
        dataset_digest=dataset.manifest.digest,
        label=labels[0] if labels else "",
        main=figures.main,
        num_samples=tally.num_scored,
        num_quarantined=tally.num_quarantined,
        num_unlabelled=tally.num_unlabelled,
        presence=dict(zip(predictor.input_fields, (tally.present / tally.num_scored).tolist(), strict=True)),
        metrics=metrics[-1],
        subsets=[
            SubsetScore(tuple(sorted(subset)), each, covered / tally.num_scored)
            for subset, each, covered in zip(subsets, metrics, tally.covered.tolist(), strict=True)
        ],
        baseline=baseline,
        contributions=shares,
        details=details,
        curves=read_curves(checkpoint_folder(job), of_task),
        worst=cards(tally.extremes.worst()),
        best=cards(tally.extremes.best()),
        finished=f"{now.day} {now:%B %Y, %H:%M %Z}",
        versions=versions(),
    )


def result_metrics(content: ReportContent) -> dict[str, Any]:
    """``metrics`` of ``result.json``: with all fields, then with every subset of them."""
    subsets = {
        subset_name(frozenset(score.fields)): {**score.metrics, "coverage": score.coverage} for score in content.subsets
    }
    counts = {
        "num_samples": content.num_samples,
        "num_quarantined": content.num_quarantined,
        "num_unlabelled": content.num_unlabelled,
    }
    extra = {} if content.contributions is None else {"contributions": content.contributions}
    details = content.details
    interval: dict[str, Any] = {}
    if isinstance(details, ClassificationDetails):
        interval = {"interval": {"accuracy": details.interval}}
    elif isinstance(details, MultilabelDetails) and details.interval is not None:
        interval = {"interval": {"micro_f1": details.interval}}
    elif isinstance(details, (RegressionDetails, RetrievalDetails)):
        interval = {"interval": dict(details.intervals)}
    ways = {}
    if isinstance(details, RetrievalDetails):
        ways = {
            "ways": {
                f"{way.query} to {way.candidate}": {
                    **way.figures,
                    "num_queries": way.num_queries,
                    "num_candidates": way.num_candidates,
                }
                for way in details.ways
            }
        }
    return {
        **content.metrics,
        **interval,
        **counts,
        **ways,
        "subsets": subsets,
        "baseline": content.baseline,
        **extra,
    }


def result_details(content: ReportContent) -> dict[str, Any]:
    """What else ``result.json`` says about not too many classes."""
    details = content.details
    if (
        isinstance(details, (RegressionDetails, RetrievalDetails, ReconstructionDetails))
        or len(details.classes) > _MAX_LISTED_CLASSES
    ):
        return {}
    figures: Sequence[ClassFigures | CellFigures] = details.figures
    found = {"classes": {name: asdict(each) for name, each in zip(details.classes, figures, strict=True)}}
    if isinstance(details, (MultilabelDetails, MapDetails)):
        return found
    assert details.confusion is not None
    return {**found, "confusion": details.confusion.tolist()}


def checkpoint_folder(job: EvaluateJob) -> Path:
    """The folder that was loaded."""
    try:
        return resolve_checkpoint(job.checkpoint)
    except CheckpointError:  # a compress run: its artifact was loaded
        return local_path(job.checkpoint)


def _number(value: float | None) -> float:
    assert value is not None, "only R² can be missing"
    return value


def _shown(location: str) -> str:
    """A path relative to the working directory where that is shorter; a URL as it is."""
    path, here = Path(location), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else location


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"
