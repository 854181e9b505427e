"""``ray-mm run evaluate.yaml``: checkpoint or artifact, dataset → metrics, predictions, report.

<run>/result.json          metrics with all fields and with every subset of them
<run>/predictions.parquet  a row per sample
<run>/report.html          one file to look at
<run>/quarantine/          samples that can't be read, with their reasons
"""

from __future__ import annotations

import datetime
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from ray_mm.checkpoint import resolve_checkpoint
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.fields import LabelField
from ray_mm.data.blocks import to_arrays
from ray_mm.data.fields import POSITION
from ray_mm.data.loader import check_positions
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.preprocessor import check_dataset_fits
from ray_mm.data.quarantine import check_budget
from ray_mm.data.source import sequential_dataset
from ray_mm.errors import CheckpointError, DatasetError, OrderError, RayMMError
from ray_mm.evaluation.metrics import per_class, reliability, wilson_interval
from ray_mm.evaluation.predictions import predictions_writer
from ray_mm.evaluation.report.cards import make_cards
from ray_mm.evaluation.report.content import ClassificationDetails, RegressionDetails, ReportContent, SubsetScore
from ray_mm.evaluation.report.curves import Curves, read_curves
from ray_mm.evaluation.report.render import write_report
from ray_mm.evaluation.scorer import KEY, Scorer
from ray_mm.evaluation.subsets import Subset, contributions, field_subsets, subset_name
from ray_mm.evaluation.tally import Tally
from ray_mm.predictor import OnnxPredictor, Predictor, load_predictor
from ray_mm.progress import progress
from ray_mm.run_folder import open_run_folder, versions
from ray_mm.session import cause_of, place, ray_session
from ray_mm.storage import local_path

REPORT = "report.html"
PREDICTIONS = "predictions.parquet"
QUARANTINE = "quarantine"

_MAX_LISTED_CLASSES = 100


def run_evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Scores a model on a dataset.

    Returns:
        The content of ``result.json``.

    Raises:
        UsageError: something that the job names does not fit; nothing was started.
        QuarantineBudgetError: too many samples can't be read.
        RayMMError: the evaluation failed.
    """
    # The actors load the model again; here it is loaded to find out before Ray starts if that is possible.
    predictor = load_predictor(job.checkpoint, device="cpu", threads=1)
    dataset = open_dataset(job.data)
    check_dataset_fits(dataset, predictor.preprocessor)
    subsets = field_subsets(predictor.input_fields, job.subsets)
    label = predictor.config.task.label
    if dataset.manifest.presence.get(label, 0) == 0:
        raise DatasetError(f"{dataset.root}: no sample has the label {label!r}, so nothing can be scored.")
    folder = open_run_folder(job)
    tally = _empty_tally(job, predictor, subsets)
    with ray_session():
        _clear(folder.path)
        try:
            _score(job, predictor, dataset, subsets, tally, folder.path)
        except RayMMError:
            raise
        except Exception as error:
            cause = cause_of(error)
            if isinstance(cause, RayMMError):
                raise cause from error
            raise RayMMError(f"the evaluation failed: {type(cause).__name__}: {cause}") from error
    content = _report_content(job, predictor, dataset, subsets, tally)
    write_report(folder.path / REPORT, content)
    return folder.write_result(
        "done",
        _result_metrics(content),
        checkpoint=str(_checkpoint_folder(job)),
        data={"name": dataset.manifest.name, "path": str(dataset.root), "digest": dataset.manifest.digest},
        report=str(folder.path / REPORT),
        predictions=str(folder.path / PREDICTIONS),
        **_result_details(content),
    )


def _empty_tally(job: EvaluateJob, predictor: Predictor, subsets: tuple[Subset, ...]) -> Tally:
    label = predictor.config.task.label
    classes = _classes(predictor)
    statistics = predictor.preprocessor.statistics.get(label)
    return Tally(
        label,
        predictor.input_fields,
        subsets,
        None if classes is None else len(classes),
        statistics.mean[0] if classes is None and statistics is not None else 0.0,
        job.examples,
    )


def _clear(folder: Path) -> None:
    """Takes away what an earlier evaluation left, so that nothing of it can be taken for a result of this one."""
    for name in ("result.json", REPORT, PREDICTIONS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / QUARANTINE, ignore_errors=True)


def _score(
    job: EvaluateJob, predictor: Predictor, dataset: Dataset, subsets: tuple[Subset, ...], tally: Tally, folder: Path
) -> None:
    """Streams the dataset through the actors, in order, and takes note of every row."""
    placement = place(job.resources)
    gpu = placement.gpus_per_worker > 0
    scored = sequential_dataset(dataset, predictor.preprocessor, job.batch_size, folder / QUARANTINE).map_batches(
        Scorer,
        fn_constructor_args=(
            str(local_path(job.checkpoint)),
            subsets,
            "cuda" if gpu else "cpu",
            max(1, int(placement.cpus_per_worker)),
        ),
        batch_format="pyarrow",
        # A block is a batch. Ray wants the number to be named where there is a GPU.
        batch_size=job.batch_size if gpu else None,
        compute=ray.data.ActorPoolStrategy(size=placement.workers),
        num_cpus=_apart(placement.cpus_per_worker),
        num_gpus=placement.gpus_per_worker or None,
        udf_modifying_row_count=False,
    )
    label, total = predictor.config.task.label, dataset.manifest.num_samples
    with (
        predictions_writer(folder / PREDICTIONS, label, predictor.input_fields, _classes(predictor)) as predictions,
        progress("evaluate", total, "samples") as bar,
    ):
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            rows, keys = to_arrays(table), table.column(KEY).to_pylist()
            check_positions(rows[POSITION], tally.num_seen, tally.num_seen + len(keys))
            tally.add(rows, keys)
            check_budget(job.bad_samples, tally.num_quarantined, tally.num_seen, folder / QUARANTINE)
            predictions.add(rows, keys)
            bar.advance(len(keys), **tally.running())
        if tally.num_seen != total:
            raise OrderError(f"{tally.num_seen} samples arrived, the dataset has {total}: this is an error in ray_mm.")
        if tally.num_scored == 0:
            raise RayMMError(
                f"none of the {total} samples of {dataset.root} could be scored: {tally.num_quarantined} can't be read, "
                f"{tally.num_unlabelled} have no label {label!r}; {folder / QUARANTINE} says why."
            )


def _apart(cpus: float) -> float:
    """A reservation that is not a read task's.

    Where the two are equal, Ray would make one operator of them, and read, decode and score one after the other.
    """
    return 0.999 if cpus == 1 else cpus


def _report_content(
    job: EvaluateJob, predictor: Predictor, dataset: Dataset, subsets: tuple[Subset, ...], tally: Tally
) -> ReportContent:
    label = predictor.config.task.label
    metrics, baseline = tally.metrics(), tally.baseline()
    shares = None
    if job.subsets == "all":
        # An error is better when it is smaller: what a field adds is what it takes away from the error.
        name, sign = ("accuracy", 1.0) if tally.classification is not None else ("mae", -1.0)
        scores = {subset: sign * _number(each[name]) for subset, each in zip(subsets, metrics, strict=True)}
        shares = contributions(scores, sign * _number(baseline[name]))

    def cards(examples: Any) -> Any:
        return make_cards(examples, dataset, predictor.preprocessor, label)

    now = datetime.datetime.now().astimezone()
    runtime = "onnxruntime" if isinstance(predictor, OnnxPredictor) else "PyTorch"
    return ReportContent(
        job=job.name,
        checkpoint=_shown(_checkpoint_folder(job)),
        model=f"{predictor.config.fusion.method.replace('_', ' ')} fusion, {_size(predictor.size_bytes)}, {runtime}",
        dataset=dataset.manifest.name,
        dataset_path=_shown(dataset.root),
        dataset_digest=dataset.manifest.digest,
        label=label,
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
        details=_details(predictor, tally),
        curves=_curves(job),
        worst=cards(tally.extremes.worst()),
        best=cards(tally.extremes.best()),
        finished=f"{now.day} {now:%B %Y, %H:%M %Z}",
        versions=versions(),
    )


def _details(predictor: Predictor, tally: Tally) -> ClassificationDetails | RegressionDetails:
    if tally.classification is None:
        true, predicted = np.array(tally.drawn, np.float64).T
        return RegressionDetails(true, predicted)
    sums = tally.classification
    full = len(sums.hits) - 1
    return ClassificationDetails(
        classes=_classes(predictor) or (),
        figures=per_class(sums, full),
        confusion=tally.confusion,
        bins=reliability(sums, full),
        interval=wilson_interval(int(sums.hits[full].sum()), tally.num_scored),
    )


def _result_metrics(content: ReportContent) -> dict[str, Any]:
    subsets = {
        subset_name(frozenset(score.fields)): {**score.metrics, "coverage": score.coverage} for score in content.subsets
    }
    counts = {
        "num_samples": content.num_samples,
        "num_quarantined": content.num_quarantined,
        "num_unlabelled": content.num_unlabelled,
    }
    extra = {} if content.contributions is None else {"contributions": content.contributions}
    return {**content.metrics, **counts, "subsets": subsets, "baseline": content.baseline, **extra}


def _result_details(content: ReportContent) -> dict[str, Any]:
    details = content.details
    if not isinstance(details, ClassificationDetails) or len(details.classes) > _MAX_LISTED_CLASSES:
        return {}
    assert details.confusion is not None
    return {
        "classes": {name: asdict(figures) for name, figures in zip(details.classes, details.figures, strict=True)},
        "confusion": details.confusion.tolist(),
    }


def _classes(predictor: Predictor) -> tuple[str, ...] | None:
    spec = predictor.preprocessor.fields[predictor.config.task.label]
    assert isinstance(spec, LabelField)
    return spec.classes if spec.target == "class" else None


def _checkpoint_folder(job: EvaluateJob) -> Path:
    try:
        return resolve_checkpoint(job.checkpoint)
    except CheckpointError:  # a compress run: its artifact was loaded
        return local_path(job.checkpoint)


def _curves(job: EvaluateJob) -> Curves | None:
    return read_curves(_checkpoint_folder(job))


def _number(value: float | None) -> float:
    assert value is not None, "only R² can be missing"
    return value


def _shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"
