"""``ray-mm run evaluate.yaml``: checkpoint or artifact, dataset → metrics, predictions, report.

<run>/result.json          metrics with all fields and with every subset of them
<run>/predictions.parquet  a row per sample
<run>/report.html          one file to look at
<run>/quarantine/          samples that can't be read, with their reasons
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mm.actors.pool import Pass, through_actors
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.source import source_of
from ray_mm.data.epochs import Epochs
from ray_mm.data.fit import lacking_text
from ray_mm.data.preprocessor import check_dataset_fits
from ray_mm.data.quarantine import check_budget
from ray_mm.data.samples import Samples, select_all
from ray_mm.errors import DatasetError, RayMMError
from ray_mm.evaluation.outcome import checkpoint_folder, report_content, result_details, result_metrics
from ray_mm.evaluation.predictions import predictions_writer
from ray_mm.evaluation.report.render import write_report
from ray_mm.evaluation.scorer import Scorer
from ray_mm.evaluation.subsets import Subset, field_subsets
from ray_mm.evaluation.tally import Tally
from ray_mm.evaluation.tasks import evaluated_task, unscorable
from ray_mm.evaluation.tasks.several import SeveralEvaluation, of_task
from ray_mm.model_folder import model_digest, model_folder
from ray_mm.predictor import Predictor, load_predictor
from ray_mm.progress import notice, progress
from ray_mm.run_folder import open_run_folder
from ray_mm.session import own_errors, ray_session

REPORT = "report.html"
PREDICTIONS = "predictions.parquet"
QUARANTINE = "quarantine"


def run_evaluate(job: EvaluateJob, title: str = "evaluate") -> dict[str, Any]:
    """Scores a model on a dataset.

    Args:
        job: validated.
        title: what stands before the progress.

    Returns:
        The content of ``result.json``.

    Raises:
        UsageError: something that the job names does not fit; nothing was started.
        QuarantineBudgetError: too many samples can't be read.
        RayMMError: the evaluation failed.
    """
    # The actors load the model again; here it is loaded to find out before Ray starts if that is possible.
    predictor = load_predictor(job.checkpoint, device="cpu", threads=1)
    model = model_digest(model_folder(job.checkpoint))
    dataset, samples = select_all(source_of(job.data), "data")
    lacking = check_dataset_fits(dataset, predictor.preprocessor, may_lack=predictor.input_fields)
    if lacking:
        notice(f"data: {dataset.root} {lacking_text(lacking)}.")
    # Without one of its sides nothing is left of a retrieval.
    subsets = field_subsets(predictor.input_fields, job.subsets if predictor.towers is None else "full")
    lacked = unscorable(predictor.config, dataset.manifest.presence)
    if lacked is not None:
        raise DatasetError(f"{dataset.root}: {lacked}, so nothing can be scored.")
    folder = open_run_folder(job)
    tallies = _empty_tallies(job, predictor, subsets)
    with folder.locked(), ray_session(announce=True):
        _clear(folder.path)
        with own_errors("the evaluation"):
            _score(job, predictor, model, samples, subsets, tallies, folder.path, title)
        reports, metrics, details = {}, {}, {}
        for name, tally in tallies.items():
            # Of several tasks, those that no sample has a label for have nothing to say.
            if tally.num_scored:
                content = report_content(job, predictor, Epochs([dataset], samples, None), subsets, tally, name)
                reports[name] = str(folder.path / name / REPORT)
                (folder.path / name).mkdir(exist_ok=True)
                write_report(folder.path / name / REPORT, content)
                metrics[name], details[name] = result_metrics(content), result_details(content)
        one = list(tallies) == [""]
        return folder.write_result(
            "done",
            metrics[""] if one else {"tasks": metrics},
            checkpoint=str(checkpoint_folder(job)),
            model=model,
            data={
                "name": dataset.manifest.name,
                "path": str(dataset.root),
                "digest": dataset.manifest.digest,
                "selection": samples.selections[0].description,
                "lacks": lacking,
            },
            predictions=str(folder.path / PREDICTIONS),
            **({"report": reports[""], **details[""]} if one else {"reports": reports, "tasks": details}),
        )


def _empty_tallies(job: EvaluateJob, predictor: Predictor, subsets: tuple[Subset, ...]) -> dict[str, Tally]:
    """A tally for each task, by its name; of one task alone the name is empty."""
    # A retrieval has searches instead of examples.
    examples = job.examples if predictor.towers is None else 0
    task = evaluated_task(predictor)
    parts = task.parts if isinstance(task, SeveralEvaluation) else {"": task}
    return {name: Tally(part, predictor.input_fields, subsets, examples) for name, part in parts.items()}


def _clear(folder: Path) -> None:
    """Takes away what an earlier evaluation left, so that nothing of it can be taken for a result of this one."""
    for path in (folder / "result.json", folder / REPORT, folder / PREDICTIONS, *folder.glob(f"*/{REPORT}")):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / QUARANTINE, ignore_errors=True)


def _score(
    job: EvaluateJob,
    predictor: Predictor,
    model: str,
    samples: Samples,
    subsets: tuple[Subset, ...],
    tallies: Mapping[str, Tally],
    folder: Path,
    title: str,
) -> None:
    """Streams the samples through the actors, in order, and takes note of every row."""
    planned = Pass(samples, predictor.preprocessor, job.batch_size, folder / QUARANTINE, job.cache.remote)
    scored = through_actors(planned, Scorer, job.checkpoint, model, job.resources, subsets=subsets)
    total, first = samples.epoch_samples, next(iter(tallies.values()))
    with (
        predictions_writer(folder / PREDICTIONS, predictor.input_fields, evaluated_task(predictor)) as predictions,
        progress(title, total, "samples", waiting="loading the model") as bar,
    ):
        for rows, keys in scored:
            for name, tally in tallies.items():
                tally.add(of_task(name, rows), keys)
            check_budget(job.bad_samples, first.num_quarantined, first.num_seen, folder / QUARANTINE)
            predictions.add(rows, keys)
            bar.advance(len(keys), **(first.running() if len(tallies) == 1 else {}))
        tally = max(tallies.values(), key=lambda each: each.num_scored)
        if tally.num_scored == 0:
            raise RayMMError(
                f"none of the {total} samples of data could be scored: {tally.num_quarantined} can't be read, "
                f"{tally.num_unlabelled} have {tally.lacking}; {folder / QUARANTINE} says why."
            )
