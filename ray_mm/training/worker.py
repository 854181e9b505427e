"""The training loop, from top to bottom: batches → gradients → weights → checkpoints. One call per worker.

Everything random in it is a function of (seed, step, rank) or (seed, epoch, position), so a resumed training needs no
generator's state, and the cursor alone says where to go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ray_mm.config.tasks import FIGURES, HIGHER_IS_BETTER
from ray_mm.config.train import TrainJob
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.quarantine import check_budget
from ray_mm.errors import OrderError, QuarantineBudgetError, StopRequested
from ray_mm.training.background import BackgroundWriter
from ray_mm.training.bad_steps import BadSteps, diverged
from ray_mm.training.gauges import Gauges
from ray_mm.training.learner import Learner
from ray_mm.training.ledger import Entry, Ledger
from ray_mm.training.optim import learning_rate
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.profile import StepProfiler
from ray_mm.training.saving import publish, save_state
from ray_mm.training.sharding import Writers, local
from ray_mm.training.state import (
    Attempt,
    TrainingState,
    checkpoint_folder,
    initial_state,
    read_state,
)
from ray_mm.training.stopping import Ask, LeaveRequested, StopSign
from ray_mm.training.tracking import Tracker
from ray_mm.training.validation import ValidationSums

_LOG_EVERY_S = 10.0


def run_worker(training: Training, ranks: Ranks, attempt: Attempt, batches: Iterable[LoadedBatch]) -> None:
    """Trains from the attempt's first item to the end.

    Args:
        training: what to do.
        ranks: this worker's place.
        attempt: where to start.
        batches: this rank's share of every global batch from there on.

    Raises:
        QuarantineBudgetError: too many bad samples; on every rank at the same step.
        TrainingDivergedError: the loss or a weight is no longer finite; on every rank at the same step.
        OrderError: an epoch did not meet every planned sample once.
        StopRequested: it was asked to end, and is saved; on every rank at the same step.
        LeaveRequested: likewise, but others are to go on.
    """
    job, schedule = training.job, training.schedule
    folder = training.run / attempt.checkpoint if attempt.checkpoint is not None else None
    state = read_state(folder) if folder is not None else initial_state(training.data_digest)
    learner = Learner(training, ranks, folder, state.loss_scale, state.blending)
    bad_steps = BadSteps(training.run, attempt.number, ranks, job.train.skip_bad_steps)
    loss_meter = _LossMeter(ranks, has_cache=job.data.cache.decoded is not None)
    gauges = Gauges(training, ranks)
    validation = ValidationSums(training, ranks)
    with ExitStack() as files:
        ledger = files.enter_context(closing(Ledger(training.run / "ledger", attempt.number, ranks.rank)))
        tracker = files.enter_context(closing(Tracker(training.run, state.step))) if ranks.rank == 0 else None
        writer = files.enter_context(BackgroundWriter())
        writers = Writers(ranks, learner.divided)
        profiler = files.enter_context(StepProfiler(training, ranks, state.next_item, state.step))
        sign = StopSign(training.run)
        first_scored = state.next_item
        for batch in () if state.stopped else profiler.watch(batches):
            item = batch.item
            if item.phase == "train":
                step = learner.train(batch, sign.seen() if ranks.rank == 0 else Ask.NOTHING)
                asked, first_scored = step.asked, item.number + 1
                bad_steps.add(item, batch.keys, step.finite)
                ledger.write(Entry(item.number, batch.start, batch.stop, step.quarantined_here))
                loss_meter.add(step.loss_sum, step.weight_sum, batch, step.met)
                gauges.add(batch, learner.model)
                state = replace(
                    state,
                    next_item=item.number + 1,
                    step=item.step,
                    trained=state.trained + step.met - step.quarantined,
                    quarantined=state.quarantined + step.quarantined,
                    total_quarantined=state.total_quarantined + step.quarantined,
                )
                met = state.trained + state.quarantined
                check_budget(job.data.bad_samples, state.quarantined, met, training.quarantine)
                if item.ends_phase:
                    _check_epoch(state, training)
                    state = replace(state, trained=0, quarantined=0, epochs=item.epoch + 1)
                if item.ends_phase or loss_meter.due(item.step, job.train.log_every_steps):
                    state = replace(state, bad_steps=state.bad_steps + bad_steps.look(state.bad_steps))
                    line = loss_meter.read(item.step, item.ends_phase) | gauges.read(item.step)
                    line["lr"] = learning_rate(
                        job.train.optimizer.lr, job.train.schedule, item.step, schedule.num_steps
                    )
                    if item.ends_phase:
                        line |= learner.balance()
                    writer.check()
                    if tracker is not None:
                        tracker.write("train", item.step, {"epoch": item.epoch + 1, **line})
            else:
                with learner.averaged():
                    validation.add(learner.model, batch.tensors, job.train.precision)
                state = replace(state, next_item=item.number + 1)
                asked = Ask(round(ranks.sum([float(sign.seen() if ranks.rank == 0 else Ask.NOTHING)])[0]))
                if item.ends_phase:
                    metrics = validation.read(item.step)
                    learner.validated(item.epoch, metrics)
                    state = replace(state, latest=metrics, since_best=state.since_best + 1)
                    if is_better(job, metrics, state.best):
                        state = replace(state, best=metrics, best_step=state.step, since_best=0)
                    patience = job.train.patience
                    state = replace(state, stopped=patience is not None and state.since_best >= patience)
                    if tracker is not None:
                        tracker.write("validation", item.step, {"epoch": item.epoch + 1, **metrics})
                    # Waiting during a validation says nothing about the training.
                    loss_meter.restart()
                    gauges.restart()
            stops = asked is not Ask.NOTHING and state.next_item < schedule.num_items
            if stops and item.phase == "validation" and not item.ends_phase:
                # It is begun again: what was added up so far is in no checkpoint.
                state = replace(state, next_item=first_scored)
            if stops or _saves_here(training, batch):
                # Adds up over the ranks, so it is a barrier, too: every rank's ledger must cover the checkpoint before it
                # is there.
                state = replace(
                    state,
                    bad_steps=state.bad_steps + bad_steps.look(state.bad_steps),
                    loss_scale=learner.loss_scale,
                    blending=learner.blending,
                )
                _check_finite(learner.model, ranks, item.step)
                if writers.writes:
                    started = time.perf_counter()
                    is_best = item.phase == "validation" and state.best_step == state.step
                    writer.start(partial(save_state, training, attempt, state, learner.snapshot(), writers, is_best))
                    loss_meter.stood_still(time.perf_counter() - started)
            if state.stopped:
                break
            if stops:
                writer.wait()
                # Nobody ends before it is written.
                ranks.barrier()
                if asked is Ask.LEAVE:
                    raise LeaveRequested(f"the workers left at step {state.step:,}")
                raise StopRequested(
                    f"the training in {training.run} was asked to end and is saved at step {state.step:,} of "
                    f"{schedule.num_steps:,}. Run the same command again to go on."
                )
        writer.wait()
        if ranks.rank == 0:
            publish(training, attempt, "last", checkpoint_folder(training.run, state.step), state.latest)


class _LossMeter:
    """Loss, speed, and where the time went since the last time that it was read."""

    def __init__(self, ranks: Ranks, has_cache: bool) -> None:
        self._ranks = ranks
        self._has_cache = has_cache
        self._started = time.perf_counter()
        self._waits_for_first = True
        self._first_batch: dict[str, float] = {}
        self._epoch = _EpochSums()
        self.restart()

    def restart(self) -> None:
        """Forgets what is not read yet."""
        self._since = time.perf_counter()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        self._weight_sum = 0.0
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        self._samples = 0
        self._cached = 0
        self._stood_still_s = 0.0

    def stood_still(self, seconds: float) -> None:
        """This rank did nothing else while a checkpoint was taken, or waited for the one before it to be written."""
        self._stood_still_s += seconds

    def add(self, loss_sum: Tensor, weight_sum: float, batch: LoadedBatch, samples: int) -> None:
        """One step: this rank's sums, its batch, and the samples of all ranks."""
        if self._waits_for_first:
            self._waits_for_first = False
            self._first_batch = {"first_batch_s": round(batch.wait_s, 3)}
        self._loss_sum += loss_sum
        self._weight_sum += weight_sum
        for stage in _STAGES:
            self._seconds[stage] += getattr(batch, stage)
        self._samples += samples
        self._cached += batch.num_cached

    def due(self, step: int, every: int) -> bool:
        """Whether a line is to be written. All ranks agree only on the step, so time alone decides on a single one."""
        slow = self._ranks.world_size == 1 and time.perf_counter() - self._since > _LOG_EVERY_S
        return step % every == 0 or slow

    def read(self, step: int, ends_epoch: bool) -> dict[str, float]:
        """The values for a line of metrics; then starts anew.

        Of all ranks: loss, samples_per_s, and the means over the ranks of

            data_wait         share of the time spent waiting for a batch
            data_transfer     share of the time spent bringing batches to the device
            checkpoint_wait   share of the time in which the training stood still for a checkpoint; not a mean: rank 0 saves
            read_cores        processes that were busy reading for this rank, on average
            decode_cores      processes that were busy decoding for this rank
            queued_batches    batches that lay ready, on average

        With a cache of decoded samples: cached, the share of the samples that came from it.
        Of the first line after a start: first_batch_s, seconds until the first batch was there.
        Of the last line of an epoch's training: epoch_loss, epoch_samples_per_s and epoch_data_wait, of all its lines since
        this start.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        loss_sum, weight_sum, cached, stood_still_s, *seconds = self._ranks.sum(
            [
                float(self._loss_sum),
                self._weight_sum,
                float(self._cached),
                self._stood_still_s,
                *self._seconds.values(),
            ]
        )
        if not math.isfinite(loss_sum):
            raise diverged(f"the loss at step {step} is {loss_sum}")
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        shares = [round(total / self._ranks.world_size / elapsed, 4) for total in seconds]
        values = {
            "loss": loss_sum / max(weight_sum, 1.0),
            "samples_per_s": round(self._samples / elapsed, 2),
            **dict(zip(_STAGES.values(), shares, strict=True)),
            "checkpoint_wait": round(stood_still_s / elapsed, 4),
            **({"cached": round(cached / max(self._samples, 1), 4)} if self._has_cache else {}),
            "seconds": round(now - self._started, 3),
            **self._first_batch,
        }
        self._epoch.add(loss_sum, weight_sum, self._samples, elapsed, seconds[0] / self._ranks.world_size)
        if ends_epoch:
            values |= self._epoch.values()
            self._epoch = _EpochSums()
        self._first_batch = {}
        self.restart()
        return values


@dataclass
class _EpochSums:
    """What the lines of an epoch's training have said so far, of all ranks; without the validations between them."""

    loss: float = 0.0
    weight: float = 0.0
    samples: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0

    def add(self, loss: float, weight: float, samples: int, elapsed_s: float, wait_s: float) -> None:
        self.loss += loss
        self.weight += weight
        self.samples += samples
        self.elapsed_s += elapsed_s
        self.wait_s += wait_s

    def values(self) -> dict[str, float]:
        return {
            "epoch_loss": self.loss / max(self.weight, 1.0),
            "epoch_samples_per_s": round(self.samples / self.elapsed_s, 2),
            "epoch_data_wait": round(self.wait_s / self.elapsed_s, 4),
        }


_STAGES = {
    "wait_s": "data_wait",
    "transfer_s": "data_transfer",
    "read_s": "read_cores",
    "decode_s": "decode_cores",
    "queued_s": "queued_batches",
}
"""Attribute of a batch → its name in a line of metrics: seconds per second."""


def is_better(job: TrainJob, metrics: dict[str, float], best: dict[str, float]) -> bool:
    """Whether a validation beats the best before it: by the job's metric, or by those that choose for its task."""
    if not best:
        return True
    given = job.train.best_metric
    names = FIGURES[job.model.task.type].best if given is None else (given,)

    def rank(of: dict[str, float]) -> list[float]:
        return [of[name] if name in HIGHER_IS_BETTER else -of[name] for name in names]

    return rank(metrics) > rank(best)


def _check_epoch(state: TrainingState, training: Training) -> None:
    planned = training.schedule.train_samples
    if state.trained + state.quarantined != planned:
        raise OrderError(
            f"an epoch of {planned} samples trained on {state.trained} and quarantined {state.quarantined}: this is an error "
            "in ray_mm."
        )
    if state.trained == 0:
        raise QuarantineBudgetError(
            f"none of the {planned} samples of data.train can be read; they lie with their reasons in {training.quarantine}."
        )


def _check_finite(model: nn.Module, ranks: Ranks, step: int) -> None:
    """Sees to it that no checkpoint is saved that nothing can be made of. The loss alone shows it a step too late."""
    finite = torch.stack([local(p.detach()).isfinite().all() for p in model.parameters()]).all()
    (num_diverged,) = ranks.sum([float(~finite)])
    if num_diverged:
        raise diverged(f"weights are not finite after step {step}")


def _saves_here(training: Training, batch: LoadedBatch) -> bool:
    item = batch.item
    if item.ends_phase:
        # After the validation, where there is one.
        return item.phase == "validation" or training.schedule.validation_batches == 0
    every = training.job.train.checkpoints.every_steps
    return item.phase == "train" and every is not None and item.step % every == 0
