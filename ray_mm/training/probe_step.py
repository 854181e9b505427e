"""What a worker's part of a training costs, each alone: a decoded block → costs per sample of transfer, step, validation.

The model, the optimizer, the precision and the number of samples are the job's; gradients are not exchanged with others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pyarrow as pa
import torch

from ray_mm.data.blocks import to_arrays
from ray_mm.data.device import CudaStream, ToDevice
from ray_mm.data.loader import LoadedBatch, to_tensors
from ray_mm.training.costs import StepCost
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks, resolve_precision
from ray_mm.training.plan import Training
from ray_mm.training.probe_data import Stopwatch
from ray_mm.training.validation import ValidationSums

_WARM_UPS = 3
_MIN_RUNS = 2
_LOOK_EVERY = 4
"""Runs between two looks at the clock, for which a GPU has to have done everything that it was given."""


def probe_step(training: Training, table: pa.Table, rows: int, device: torch.device, seconds: float) -> StepCost:
    """Measures bringing a batch to the device, training on it, and scoring it as in a validation.

    Args:
        training: what the worker would do.
        table: a decoded block.
        rows: of the worker's share of a batch; the block begins with one.
        device: where it computes.
        seconds: for each, about; two steps are measured in any case.
    """
    arrays, share = to_arrays(table), slice(0, rows)
    bring = ToDevice(CudaStream(device)).bring if device.type == "cuda" else dict[str, torch.Tensor]
    transfer, _ = _measured(lambda: bring(to_tensors(arrays, share)), device, seconds / 4)
    ranks = Ranks(0, 1, device)
    learner = Learner(training, ranks)
    host = to_tensors(arrays, share)
    tensors = bring(host)
    item = training.schedule.item(0)
    batch = LoadedBatch(item, tensors, [], item.start, item.start + rows, wait_s=0.0, host=host)
    step, num_steps = _measured(lambda: learner.train(batch), device, seconds)
    sums = ValidationSums(training, ranks)
    validate, _ = _measured(lambda: sums.add(learner.model, tensors, training.job.train.precision), device, seconds / 4)
    return StepCost(
        transfer_s=transfer.wall_s / rows,
        step_s=step.wall_s / rows,
        step_cpu_s=step.cpu_s / rows,
        validate_s=validate.wall_s / rows,
        batch_size=rows,
        num_steps=num_steps,
        precision=resolve_precision(training.job.train.precision, device),
        num_threads=torch.get_num_threads(),
    )


def _measured(run: Callable[[], object], device: torch.device, seconds: float) -> tuple[Stopwatch, int]:
    """The time of one run, and how many it was taken from."""
    started = time.perf_counter()
    for _ in range(_WARM_UPS):
        run()
        _wait(device)
        if time.perf_counter() - started >= seconds:
            break
    watch, done = Stopwatch(), 0
    while done < _MIN_RUNS or watch.wall_s < seconds:
        with watch:
            for _ in range(_LOOK_EVERY if done >= _MIN_RUNS else _MIN_RUNS):
                run()
                done += 1
            _wait(device)
    watch.wall_s, watch.cpu_s = watch.wall_s / done, watch.cpu_s / done
    return watch, done


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
