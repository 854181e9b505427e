"""One trial, in a process of its own: an ordinary training, whose validations are told to Ray Tune as they come."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ray import tune

from ray_mm.config.train import TrainJob
from ray_mm.errors import RayMMError, StopRequested, TrainingDivergedError
from ray_mm.placement import use_share
from ray_mm.run_folder import wait_until_free
from ray_mm.session import cause_of
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import run_train
from ray_mm.tuning.table import State

_POLL_S = 0.5
_LEFT_OVER_S = 120.0
"""How long a process of an interrupted search may take to notice that it was."""


def run_trial(config: dict[str, Any]) -> None:
    """Trains, or goes on with a training that was interrupted; Ray Tune calls it.

    Args:
        config: ``number``; ``job``, the training as JSON; ``share`` of Ray that it may take; ``epochs`` whose validations are
            known.
    """
    job = TrainJob.model_validate_json(config["job"])
    run = Path(job.output)
    outcome: dict[str, Any] = {}

    def train() -> None:
        try:
            wait_until_free(run, _LEFT_OVER_S)
            with use_share(config["share"]):
                run_train(job)
            outcome.update(state=State.DONE.value)
        except StopRequested:
            outcome.update(state=None)
        except BaseException as error:
            outcome.update(_failure(error))

    told = int(config["epochs"])
    training = threading.Thread(target=train, name="training", daemon=True)
    training.start()
    while True:
        over = not training.is_alive()
        for line in read_metrics(run):
            if line["kind"] == "validation" and line["epoch"] > told:
                told = line["epoch"]
                tune.report({"validation": line})
        if over:
            break
        training.join(_POLL_S)
    tune.report({"outcome": outcome})


def _failure(error: BaseException) -> dict[str, Any]:
    cause = cause_of(error)
    text = " ".join(str(cause).split()) or "no message"
    return {
        "state": (State.DIVERGED if isinstance(cause, TrainingDivergedError) else State.FAILED).value,
        "reason": text if isinstance(cause, RayMMError) else f"{type(cause).__name__}: {text}",
    }
