"""Checkpoints that are whole or not there, and what is published of them. What they hold is told in ``state``."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from ray_mm.checkpoint import (
    MODEL_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    WEIGHTS_KIND,
    save_checkpoint,
    save_description,
)
from ray_mm.config.train import CheckpointConfig
from ray_mm.errors import CheckpointError, StorageError
from ray_mm.storage import atomic_folder, sha256_file, write_json
from ray_mm.training.plan import Training
from ray_mm.training.sharding import Writers
from ray_mm.training.snapshot import Snapshot, published_weights
from ray_mm.training.state import STATE_VERSION, Attempt, TrainingState, checkpoint_folder, require_current

_FAILED = "failed"


def save_state(
    training: Training,
    attempt: Attempt,
    state: TrainingState,
    snapshot: Snapshot,
    writers: Writers | None = None,
    is_best: bool = False,
) -> None:
    """Writes a checkpoint and lets older ones go, as the job says. Called when every rank has done the step: by all that write.

    Args:
        training: whose it is.
        attempt: that writes it.
        state: at that step.
        snapshot: at that step.
        writers: the ranks that write it; None: this one alone.
        is_best: whether its weights are to be published as the best so far.

    Raises:
        CheckpointError: a newer attempt has taken over this run; this one must not write any more.
        StorageError: the disk does not take it. Those before it are as they were.
    """
    run, job = training.run, training.job
    target = checkpoint_folder(run, state.step)
    # All ranks know its name.
    temporary = target.with_name(f".{target.name}.{attempt.number:04d}.tmp")

    def write() -> dict[str, str]:
        require_current(run, attempt)
        with writing(target):
            return snapshot.write(temporary)

    try:
        digests = write() if writers is None else _write_all(write, writers)
    except (CheckpointError, StorageError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if writers is not None and writers.rank > 0:
        return
    with writing(target), atomic_folder(target, temporary) as folder:
        weights = {name: digest for name, digest in digests.items() if name.startswith(f"{WEIGHTS_KIND}-")}
        whole = digests.get(WEIGHTS_FILE)
        save_description(folder, job.model, training.preprocessor, state.latest, whole, weights)
        files = digests | {name: sha256_file(folder / name) for name in (MODEL_FILE, PREPROCESSOR_FILE)}
        if is_best:
            # Before the checkpoint: a training that goes on from it does not publish it again.
            publish(training, attempt, "best", folder, state.best)
        content = {"version": STATE_VERSION, "saved_at": time.time(), "state": asdict(state), "files": files}
        write_json(folder / "training.json", content)
        require_current(run, attempt)
    # One with more steps was passed over as damaged, or this attempt had not begun before it.
    folders = sorted((run / "checkpoints").glob("step-*"))
    before = [folder for folder in folders if folder.name < target.name]
    let_go = _let_go(before, job.train.checkpoints)
    for old in (*let_go, *(folder for folder in folders if folder.name > target.name)):
        shutil.rmtree(old, ignore_errors=True)


def _write_all(write: Callable[[], dict[str, str]], writers: Writers) -> dict[str, str]:
    """Writes what this rank has, and waits for the others.

    Returns:
        File → its digest, of all ranks.

    Raises:
        CheckpointError: a newer attempt has taken over this run.
        StorageError: one of them could not write; on every rank.
    """
    try:
        mine = write()
    except (CheckpointError, StorageError) as error:
        # Else they would wait for it.
        writers.exchange({_FAILED: str(error)})
        raise
    found = writers.exchange(mine)
    for files in found:
        if _FAILED in files:
            raise StorageError(files[_FAILED])
    return {name: digest for files in found for name, digest in files.items()}


def publish(training: Training, attempt: Attempt, name: str, checkpoint: Path, metrics: dict[str, float]) -> None:
    """Makes a checkpoint to be used, ``best`` or ``last``, from one to be resumed.

    Raises:
        CheckpointError: a newer attempt has taken over this run.
        StorageError: the disk does not take it.
    """
    require_current(training.run, attempt)
    target = training.run / name
    weights = published_weights(checkpoint, averaged=training.job.train.ema is not None)
    with writing(target), atomic_folder(target) as folder:
        save_checkpoint(folder, weights, training.job.model, training.preprocessor, metrics)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raises StorageError where the disk does not take a checkpoint: starting the workers again would not help."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(
            f"{target}: the checkpoint can't be written ({reason}). Those before it are whole: make room, or mend the disk, and "
            "run the same command again to go on."
        ) from error


def _let_go(before: list[Path], config: CheckpointConfig) -> list[Path]:
    """Of the checkpoints before the newest, oldest first, those that are kept no longer."""
    old = before[: max(0, len(before) + 1 - config.keep_last)]
    if config.keep_every_hours is None:
        return old
    let_go, kept_at = [], -math.inf
    for folder in old:
        saved_at = _saved_at(folder)
        if saved_at - kept_at >= config.keep_every_hours * 3600:
            kept_at = saved_at
        else:
            let_go.append(folder)
    return let_go


def _saved_at(folder: Path) -> float:
    try:
        return float(json.loads((folder / "training.json").read_text())["saved_at"])
    except (OSError, ValueError, KeyError, TypeError):  # a damaged one is not kept for hours
        return -math.inf
