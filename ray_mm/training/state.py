"""Where a training resumes: which of its checkpoints is whole, and one decision about which of them to use. Knows no torch.

    <run>/checkpoints/step-00000120/   a checkpoint folder (see ``checkpoint``), and
        optimizer.safetensors ...      the optimizer's state, and the average of the weights (see ``snapshot``)
        training.json                  the cursor (next item), the best metric so far, counts; written last
    <run>/attempts/0002.json           attempt 2 starts at this item from this checkpoint

The decision is taken in one place, by whoever builds the dataset for a new group of workers; the workers read it. What
the data starts at and what the model starts from can then never differ.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_mm.errors import CheckpointError
from ray_mm.storage import sha256_file, write_json
from ray_mm.training.stopping import StopSign

_log = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """Where a training is, after an item was done.

    Attributes:
        next_item: the cursor.
        step: optimizer steps done.
        data_digest: of the training and the validation dataset.
        trained: samples of the current epoch trained on so far.
        quarantined: samples of the current epoch quarantined so far.
        total_quarantined: over all epochs, each meeting counted.
        best: the best validation metrics so far, empty before the first validation.
        best_step: when that was.
        latest: the newest validation's metrics, empty before the first.
        bad_steps: optimizer steps so far whose loss or gradient was not finite, and that were left out.
        loss_scale: of a training in fp16 (see ``Learner``); empty otherwise.
        since_best: validations after the best one.
        stopped: whether the training has ended early.
        epochs: epochs whose training batches are all done.
        blending: of a training with Gradient-Blending (see ``blending``); empty otherwise.
    """

    next_item: int
    step: int
    data_digest: str
    trained: int
    quarantined: int
    total_quarantined: int
    best: dict[str, float]
    best_step: int
    latest: dict[str, float]
    bad_steps: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    stopped: bool = False
    epochs: int = 0
    blending: dict[str, list[float | None]] = field(default_factory=dict)


def initial_state(data_digest: str) -> TrainingState:
    """Before the first item."""
    return TrainingState(0, 0, data_digest, 0, 0, 0, {}, 0, {})


@dataclass(frozen=True)
class Attempt:
    """One start of the workers.

    Attributes:
        number: from 1.
        first_item: where it starts.
        checkpoint: the folder it starts from, relative to the run; None: from scratch.
    """

    number: int
    first_item: int
    checkpoint: str | None


def begin_attempt(run: Path, data_digest: str) -> Attempt:
    """Decides where the next group of workers starts: at the newest checkpoint that is whole.

    Raises:
        CheckpointError: a checkpoint of other data.
    """
    latest, state = find_start(run, data_digest)
    number = max(attempt_starts(run), default=0) + 1
    checkpoint = str(latest.relative_to(run)) if latest is not None else None
    attempt = Attempt(number, state.next_item, checkpoint)
    write_json(run / "attempts" / f"{number:04d}.json", asdict(attempt))
    # From here on no earlier attempt may write; what one was writing when it was killed is of no use.
    for left in (*run.glob("checkpoints/.step-*"), *run.glob(".best.*"), *run.glob(".last.*")):
        shutil.rmtree(left, ignore_errors=True)
    StopSign(run).have_left()
    return attempt


def find_start(run: Path, data_digest: str) -> tuple[Path | None, TrainingState]:
    """The newest checkpoint that is whole, if there is one, and its state. Changes nothing.

    Raises:
        CheckpointError: a checkpoint of other data.
    """
    latest = latest_checkpoint(run)
    state = read_state(latest) if latest is not None else initial_state(data_digest)
    if state.data_digest != data_digest:
        raise CheckpointError(
            f"{latest}: was trained on other data than the job names now (the datasets have changed since); choose another "
            "output, or begin its epoch anew with what there is now: ray-mm run JOB --resume force."
        )
    return latest, state


def current_attempt(run: Path) -> Attempt:
    """The newest attempt."""
    number = max(attempt_starts(run))
    return Attempt(**json.loads((run / "attempts" / f"{number:04d}.json").read_text()))


def attempt_starts(run: Path) -> dict[int, int]:
    """Attempt → its first item."""
    return {
        int(path.stem): int(json.loads(path.read_text())["first_item"]) for path in (run / "attempts").glob("*.json")
    }


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; damaged ones are passed over with a warning."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        reason = _damage(folder)
        if reason is None:
            return folder
        _log.warning("checkpoint passed over path=%s reason=%s", folder, reason)
    return None


def read_state(checkpoint: Path) -> TrainingState:
    """The state that lies in a checkpoint."""
    content: dict[str, Any] = json.loads((checkpoint / "training.json").read_text())
    return TrainingState(**content["state"])


def restate(run: Path, checkpoint: Path, state: TrainingState, alone: bool) -> None:
    """Gives a checkpoint another state, at once or not at all.

    Args:
        run: the run's folder.
        checkpoint: the newest that is whole.
        state: that it has from now on.
        alone: whether all others go: they are of another course of the training.
    """
    content = json.loads((checkpoint / "training.json").read_text())
    write_json(checkpoint / "training.json", content | {"state": asdict(state)})
    if alone:
        for other in (run / "checkpoints").glob("step-*"):
            if other != checkpoint:
                shutil.rmtree(other)
        checkpoint.rename(run / "checkpoints" / f"step-{state.step:08d}")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def require_current(run: Path, attempt: Attempt) -> None:
    """Keeps a group of workers that was given up, but lives on somewhere, from writing.

    Raises:
        CheckpointError: a newer attempt has taken over this run.
    """
    if current_attempt(run).number != attempt.number:
        raise CheckpointError(f"{run}: another start of this run has taken over; this one ends.")


def _damage(folder: Path) -> str | None:
    try:
        content = json.loads((folder / "training.json").read_text())
        if content["version"] > STATE_VERSION:
            raise CheckpointError(
                f"{folder}: has state version {content['version']}, this ray_mm reads versions up to {STATE_VERSION}."
            )
        for name, digest in content["files"].items():
            if sha256_file(folder / name) != digest:
                return f"{name} was changed"
        TrainingState(**content["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None
