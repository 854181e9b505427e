"""``ray-mm run train.yaml``: datasets → checkpoint. Checks, starts the workers, shows their progress, writes the result.

<run>/best/  last/            checkpoints: the best by validation, and the last
<run>/checkpoints/            what resuming needs
<run>/metrics.jsonl tensorboard/ ledger/ quarantine/
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterable
from typing import Any

import ray
import ray.train
import ray.train.torch

from ray_mm.config.augment import check_augment, check_pairs
from ray_mm.config.model import check_model
from ray_mm.config.source import source_of, train_sources
from ray_mm.config.tasks import FIGURES, labelled_tasks, labels_of
from ray_mm.config.train import SETTLED, TrainJob
from ray_mm.data.foresight import check_cache
from ray_mm.data.loader import Loader
from ray_mm.data.manifest import Dataset
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import check_dataset_fits, preprocessor_for
from ray_mm.data.row_cache import cache_notices
from ray_mm.data.samples import class_counts, class_shares, open_planned, plan_samples, select_all
from ray_mm.data.source import READERS_PER_CPU
from ray_mm.data.store_limits import StoreLimits, limits_for
from ray_mm.errors import DatasetError, RayMMError, UsageError
from ray_mm.models.own import try_own
from ray_mm.placement import Placement, object_store_bytes, place
from ray_mm.progress import Progress, notice, progress
from ray_mm.run_folder import RunFolder, check_output, open_run_folder
from ray_mm.session import cause_of, ray_session
from ray_mm.storage import local_path
from ray_mm.training.advice import imbalance, warnings
from ray_mm.training.failures import StopAtOnce
from ray_mm.training.feeding import FEED, FeedConfig, plan_feed
from ray_mm.training.mlflow_sink import mlflow_run, send_the_rest
from ray_mm.training.mlflow_store import require_mlflow
from ray_mm.training.parallel import Ranks, use_cores, use_precision
from ray_mm.training.plan import Training
from ray_mm.training.pretrained import begins_with
from ray_mm.training.profile import DrawProfile, ProfileWatch, behind_the_end
from ray_mm.training.resume import Resume, force_resume
from ray_mm.training.scaling import Trainer, told_what_is_waited_for
from ray_mm.training.shown import ShownTraining
from ray_mm.training.state import (
    TrainingState,
    attempt_starts,
    current_attempt,
    find_start,
    latest_checkpoint,
    read_state,
)
from ray_mm.training.stopping import StopSign
from ray_mm.training.tracking import read_metrics
from ray_mm.training.validation import of_fields
from ray_mm.training.worker import run_worker

_RAY_NOTES = "ray_train"
"""Folder in the run's."""
_POLL_S = 0.5


def run_train(job: TrainJob, resume: Resume = "exact", draw_profile: DrawProfile | None = None) -> dict[str, Any]:
    """Trains, or goes on with a training that was interrupted.

    Args:
        job: validated.
        resume: whether it goes on only as the job was, or also where settings have changed; see ``training.resume``.
        draw_profile: makes the page of a profile; None: the figures of each worker will do.

    Returns:
        The content of ``result.json``; its status is ``unchanged`` when the training was done before.

    Raises:
        UsageError: something that the job names does not fit; nothing was started.
        RayMMError: the training failed.
    """
    training = plan_training(job)
    if resume == "force" and (before := check_output(job)) is not None:
        force_resume(training, SETTLED, before)
    folder = open_run_folder(job, settled=() if resume == "force" else SETTLED)
    earlier = folder.read_result()
    if earlier is not None and earlier.get("status") == "done":
        send_the_rest(training, earlier)
        return earlier | {"status": "unchanged"}
    require_mlflow(job)
    with folder.locked(continues=True):
        # What every new group of workers will find; here it is still an error of the call.
        latest, state = find_start(training.run, training.data_digest)
        for warning in warnings(training.schedule, _validates_on_training_data(training)):
            notice(warning)
        for warning in imbalance(job, [dataset.manifest.label_counts for dataset in open_planned(training.train)]):
            notice(warning)
        for warning in _cache_notices(training):
            notice(warning)
        if training.initial is not None:
            notice(f"begins with {', '.join(training.initial.moved)} of {training.initial.path}.")
        if latest is not None:
            notice(f"goes on at step {state.step:,} of {training.schedule.num_steps:,}.")
        with mlflow_run(training) as sink:
            # Ray takes signals, too, when it starts.
            with ray_session(announce=True), StopSign(training.run).on_sigterm():
                _fit(training, draw_profile)
            result = _result(folder, training)
            if sink is not None:
                sink.result = result
        return result


def plan_training(job: TrainJob) -> Training:
    """Opens what a job names and decides the whole course of the training.

    Raises:
        UsageError: something is missing, or does not fit.
    """
    datasets, train = plan_samples(train_sources(job.data.train), job.data.balance, job.data.epoch_samples)
    named = [("data.train", dataset) for dataset in datasets]
    if job.data.cache.remote is not None:
        check_cache(job.data.cache.remote, datasets, train.stream_sizes, job.data.shuffle)
    validation = None
    if job.data.validation is not None:
        dataset, validation = select_all(source_of(job.data.validation), "data.validation")
        named.append(("data.validation", dataset))
    check_model(job.model, datasets[0].manifest.fields)
    # Of several datasets the first one says how all are read: its tokenizers, its statistics.
    preprocessor = preprocessor_for(datasets[0], job.data.fields, job.model.read_fields)
    preprocessor, initial = begins_with(job, preprocessor)
    try_own(job.model, preprocessor)
    if job.train.augment is not None:
        check_augment(job.train.augment, job.model, preprocessor.fields)
        check_pairs(job.train.augment, job.data.batch_size, job.resources.range)
    for key, dataset in named:
        check_dataset_fits(dataset, preprocessor)
        _check_labelled(labels_of(job.model.task), key, dataset)
    counts = {}
    for task in labelled_tasks(job.model.task).values():
        if task.needs_class_counts:
            counted = class_counts if FIGURES[task.type].target == "class" else class_shares
            counts[task.label] = tuple(counted(datasets, train, task.label).tolist())
    training = Training(
        job=job,
        run=local_path(job.output),
        train=train,
        validation=validation,
        preprocessor=preprocessor,
        schedule=Schedule(
            train_samples=train.epoch_samples,
            validation_samples=validation.epoch_samples if validation is not None else 0,
            batch_size=job.data.batch_size,
            epochs=job.train.epochs,
        ),
        class_counts=counts,
        initial=initial,
    )
    if job.train.profile is not None:
        wrong = behind_the_end(job.train.profile, training.schedule.num_steps)
        if wrong is not None:
            raise UsageError(wrong)
    return training


def _fit(training: Training, draw_profile: DrawProfile | None) -> None:
    job = training.job
    placement = place(job.resources)
    if job.train.precision == "tf32" and not placement.gpus_per_worker:
        raise UsageError(
            "train.precision: tf32 is a way in which GPUs multiply, and the workers have none; set auto or fp32, or "
            "resources.gpus_per_worker."
        )
    limits = {
        workers: store_limits(training, placement, workers) for workers in range(placement.fewest, placement.most + 1)
    }
    # Of an earlier start, and nothing in it is needed: one that is damaged would end this start.
    shutil.rmtree(training.run / _RAY_NOTES, ignore_errors=True)
    trainer = Trainer(
        _worker,
        placement=placement,
        run=training.run,
        train_loop_config={"training": training, "limits": limits, "threads": placement.threads},
        # Gradients go from GPU to GPU, counts from host to host.
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if placement.gpus_per_worker > 0 else "gloo"
        ),
        run_config=ray.train.RunConfig(
            # Ray's own notes; the run's folder is one that every node sees, as Ray wants it to be.
            name=_RAY_NOTES,
            storage_path=str(training.run),
            failure_config=ray.train.FailureConfig(max_failures=job.train.max_failures),
            callbacks=[StopAtOnce()],
        ),
        # The feed is built in FeedConfig, which knows the number of workers; this is only its name.
        datasets={FEED: ray.data.range(1)},
        dataset_config=FeedConfig(training, limits),
    )
    with _shown_progress(training, ProfileWatch(training, draw_profile)), told_what_is_waited_for(placement):
        try:
            trainer.fit()
        except UsageError:
            raise
        except Exception as error:
            cause = cause_of(error)
            if isinstance(cause, RayMMError):
                raise cause from error
            attempts = len(attempt_starts(training.run))
            raise RayMMError(
                f"the training failed in {training.run} after {attempts} start(s): {type(cause).__name__}: "
                f"{str(cause).strip().splitlines()[-1] if str(cause).strip() else 'no message'}. "
                "Run the same command again to go on from the last checkpoint."
            ) from error


def store_limits(training: Training, placement: Placement, workers: int | None = None) -> StoreLimits:
    """What keeps a training's batches within their share of the object store of the Ray that is running.

    Args:
        training: whose batches.
        placement: of its workers.
        workers: that there are. None: as many as find room now.

    Raises:
        UsageError: a batch for every worker does not fit.
    """
    workers = workers or placement.workers
    feed = plan_feed(training, workers, 0)
    readers = math.ceil(READERS_PER_CPU * placement.data_cpus)
    limits = limits_for(
        training.job.data.object_store,
        store_bytes=object_store_bytes(),
        batch_bytes=feed.batch_rows * feed.row_bytes,
        block_bytes=feed.block_bytes,
        world_size=workers,
        prefetch_batches=training.job.data.prefetch_batches,
        readers=readers,
    )
    return limits if placement.share == 1 else limits.within(placement.share, readers)


def _worker(config: dict[str, Any]) -> None:
    training: Training = config["training"]
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    use_cores(context.get_local_world_size(), config["threads"])
    use_precision(training.job.train.precision, ranks.device)
    # A barrier for all ranks, after which the attempt is decided.
    shard = ray.train.get_dataset_shard(FEED)
    attempt = current_attempt(training.run)
    feed = plan_feed(training, ranks.world_size, attempt.first_item, config["limits"][ranks.world_size])
    prefetch = training.job.data.prefetch_batches
    loader = Loader(shard, feed, rank=ranks.rank, device=ranks.device, prefetch_batches=prefetch)
    run_worker(training, ranks, attempt, loader)


def _validates_on_training_data(training: Training) -> bool:
    if training.validation is None:
        return False
    (validation,) = training.validation.selections
    return any(
        (selection.digest, selection.name) == (validation.digest, validation.name)
        for selection in training.train.selections
    )


def _cache_notices(training: Training) -> Iterable[str]:
    cache = training.job.data.cache.decoded
    if cache is None:
        return ()
    chosen = (training.train, training.validation)
    datasets = [dataset for samples in chosen if samples is not None for dataset in open_planned(samples)]
    return cache_notices(cache, datasets, training.preprocessor)


def _check_labelled(labels: Iterable[str], key: str, dataset: Dataset) -> None:
    for label in labels:
        if dataset.manifest.num_samples and not dataset.manifest.presence.get(label):
            raise DatasetError(f"{key}: no sample of {dataset.root} has the label {label!r}; choose another dataset.")


def _is_over(state: TrainingState, training: Training) -> bool:
    return state.stopped or state.next_item == training.schedule.num_items


def _result(folder: RunFolder, training: Training) -> dict[str, Any]:
    latest = latest_checkpoint(training.run)
    if latest is None or not _is_over(state := read_state(latest), training):
        raise RayMMError(
            f"the workers ended before the training did; run the same command again to go on ({training.run})."
        )
    if state.stopped:
        notice(
            f"ended at step {state.step:,}: {state.since_best} validations in a row were no better than that of step "
            f"{state.best_step:,}."
        )
    lines = [line for line in read_metrics(training.run) if line["kind"] == "train"]
    fields = of_fields(state.best, FIGURES[training.job.model.task.type].main)
    metrics = {
        **{name: value for name, value in state.best.items() if "/" not in name},
        "best_step": state.best_step,
        "steps": state.step,
        "train_loss": lines[-1]["loss"],
        "num_quarantined": state.total_quarantined,
        "samples_per_s": sorted(line["samples_per_s"] for line in lines)[len(lines) // 2],
        "data_wait": sorted(line["data_wait"] for line in lines)[len(lines) // 2],
        "bad_steps": state.bad_steps,
        "stopped_early": state.stopped,
        "starts": len(attempt_starts(training.run)),
        **({"fields": fields} if fields else {}),
    }
    best = "best" if (training.run / "best").is_dir() else "last"
    return folder.write_result("done", metrics, checkpoint=str(training.run / best), data_digest=training.data_digest)


class _shown_progress:  # noqa: N801 - a context manager, read as a verb phrase
    """Shows what rank 0 writes into ``metrics.jsonl`` as a bar on the driver, wherever the worker runs."""

    def __init__(self, training: Training, profile: ProfileWatch) -> None:
        self._training = training
        self._profile = profile
        self._earlier = self._last_lines()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        schedule = self._training.schedule
        _, state = find_start(self._training.run, self._training.data_digest)
        with progress("train", schedule.num_steps, "steps", done=state.step, waiting="starting the workers") as bar:
            shown = ShownTraining(bar, self._training.job.train.epochs, schedule.validation_batches)
            # Until the workers have begun, what stands there is of an earlier run.
            while not self._stop.wait(_POLL_S) and self._last_lines() == self._earlier:
                bar.tick()
            while not self._stop.wait(_POLL_S):
                shown.show(self._last_lines())
                self._look_at_profile(bar)
            shown.show(self._last_lines())
            shown.end()
            self._look_at_profile(bar)

    def _look_at_profile(self, bar: Progress) -> None:
        page = self._profile.look()
        if page is not None:
            bar.note(f"profile: {page}")

    def _last_lines(self) -> list[dict[str, Any]]:
        # All of them, twice a second, would cost a long training more and more of a core.
        return read_metrics(self._training.run, last_bytes=16_384)
