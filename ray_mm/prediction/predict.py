"""``ray-mm run predict.yaml``: checkpoint or artifact, dataset → what the model says of every sample.

<run>/predictions/part-NNNNN.parquet   a row per sample, in the order of the dataset; see ``rows``
<run>/quarantine/                      samples that can't be read, with their reasons
<run>/result.json                      how many samples there are, and how often each class was predicted

A run that was interrupted goes on behind the last file that is whole; at most the batch that lies across its end is read again.
"""

from __future__ import annotations

import shutil
from typing import Any

from ray_mm.actors.pool import Pass, through_actors
from ray_mm.config.predict import PREDICT_SETTLED, PredictJob
from ray_mm.config.source import source_of
from ray_mm.data.fit import lacking_text
from ray_mm.data.preprocessor import Preprocessor, check_dataset_fits
from ray_mm.data.quarantine import check_budget
from ray_mm.data.samples import Samples, select_all
from ray_mm.errors import UsageError
from ray_mm.model_folder import model_digest, model_folder
from ray_mm.prediction.answerer import Answerer
from ray_mm.prediction.counts import Counts
from ray_mm.prediction.partitions import Partitions
from ray_mm.prediction.rows import PredictionRows
from ray_mm.predictor import load_predictor
from ray_mm.progress import notice, progress
from ray_mm.run_folder import open_run_folder
from ray_mm.session import own_errors, ray_session

PREDICTIONS = "predictions"
QUARANTINE = "quarantine"


def run_predict(job: PredictJob) -> dict[str, Any]:
    """Predicts, or goes on with a run that was interrupted.

    Returns:
        The content of ``result.json``; its status is ``unchanged`` when all was predicted before.

    Raises:
        UsageError: something that the job names does not fit; nothing was started.
        QuarantineBudgetError: too many samples can't be read.
        RayMMError: the prediction failed.
    """
    # The actors load the model again; here it is loaded to find out before Ray starts if that is possible.
    predictor = load_predictor(job.checkpoint, device="cpu", threads=1)
    model = model_folder(job.checkpoint)
    if predictor.reconstructed is not None:
        raise UsageError(
            f"checkpoint: {model} says its inputs again (model.task.type: reconstruct), and there is nothing to predict; train "
            "another task from it with train.init_from, or evaluate it."
        )
    dataset, samples = select_all(source_of(job.data), "data")
    # Without the label: the dataset need not have it.
    inputs = predictor.preprocessor.only(predictor.input_fields)
    lacking = check_dataset_fits(dataset, inputs, may_lack=predictor.input_fields)
    if lacking:
        notice(f"data: {dataset.root} {lacking_text(lacking)}.")
    form = PredictionRows(predictor.answers, predictor.input_fields)
    folder = open_run_folder(job, settled=PREDICT_SETTLED)
    partitions = Partitions(
        folder=folder.path / PREDICTIONS,
        num_rows=samples.epoch_samples,
        rows_per_file=job.rows_per_file,
        schema=form.schema,
        model=model_digest(model),
        data=samples.digest,
    )
    num_whole = partitions.num_whole()
    earlier = folder.read_result()
    if earlier is not None and num_whole == partitions.num_files:
        return earlier | {"status": "unchanged"}
    with folder.locked(continues=True):
        (folder.path / "result.json").unlink(missing_ok=True)
        counts = Counts(form)
        if num_whole:
            notice(f"goes on behind {partitions.rows(num_whole - 1).stop:,} of {partitions.num_rows:,} samples.")
        else:
            shutil.rmtree(folder.path / QUARANTINE, ignore_errors=True)
        for number in range(num_whole):
            for table in partitions.read(number, counts.columns):
                counts.add(table)
        if num_whole < partitions.num_files:
            with ray_session(announce=True), own_errors("the prediction"):
                _predict(job, inputs, form, samples, partitions, counts)
        return folder.write_result(
            "done",
            {
                "num_rows": counts.num_rows,
                "num_predicted": counts.num_predicted,
                "num_quarantined": counts.num_quarantined,
                "num_without_fields": counts.num_without_fields,
                "num_files": partitions.num_files,
            },
            checkpoint=str(model),
            model=partitions.model,
            data={
                "name": dataset.manifest.name,
                "path": str(dataset.root),
                "digest": dataset.manifest.digest,
                "selection": samples.selections[0].description,
                "lacks": lacking,
            },
            predictions=str(partitions.folder),
            **counts.told(),
        )


def _predict(
    job: PredictJob,
    inputs: Preprocessor,
    form: PredictionRows,
    samples: Samples,
    partitions: Partitions,
    counts: Counts,
) -> None:
    """Writes the files that are not there yet.

    Args:
        job: what was asked for.
        inputs: how samples are read.
        form: what the rows look like.
        samples: all of them.
        partitions: the files.
        counts: of the rows of the files that are there.
    """
    quarantine = partitions.folder.parent / QUARANTINE
    # Batches are cut as in a run from the first sample on, so that the same sums are made.
    first_batch, skipped = divmod(counts.num_rows, job.batch_size)
    planned = Pass(samples, inputs, job.batch_size, quarantine, job.cache.remote, first_batch)
    answered = through_actors(planned, Answerer, job.checkpoint, partitions.model, job.resources)
    with (
        partitions.writer(counts.num_rows // job.rows_per_file) as writer,
        progress("predict", partitions.num_rows, "samples", done=counts.num_rows, waiting="loading the model") as bar,
    ):
        for rows, keys in answered:
            table = form.table(rows, keys).slice(skipped)
            skipped = 0
            counts.add(table)
            check_budget(job.bad_samples, counts.num_quarantined, counts.num_rows, quarantine)
            writer.add(table)
            bar.advance(table.num_rows, **({"unreadable": counts.num_quarantined} if counts.num_quarantined else {}))
