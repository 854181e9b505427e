"""``ray-mm run JOB --resume force``: a run that was interrupted goes on although its job says something else now.

What the weights do not depend on is simply taken from the job. Where the order of the samples is another one (other data, other
batches, another seed), the epoch that was under way begins anew in the new order: an epoch is still whole, and what was done of
the old one is done again. A model whose tensors are others than those of the checkpoint is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ray_mm.checkpoint import load_checkpoint
from ray_mm.errors import CheckpointError
from ray_mm.models.multimodal import build_model
from ray_mm.progress import notice
from ray_mm.run_folder import RunFolder, changed_settings
from ray_mm.training.plan import Training
from ray_mm.training.state import TrainingState, attempt_starts, latest_checkpoint, read_state, restate

Resume = Literal["exact", "force"]

_ORDER = (
    *("data.train", "data.validation", "data.balance", "data.epoch_samples"),
    *("data.batch_size", "data.shuffle", "seed"),
)
"""Settings that decide which samples a step has."""
_BEST = ("data.validation", "train.best_metric")
"""Settings without which the best validation so far says nothing."""


def force_resume(training: Training, settled: tuple[str, ...], earlier: dict[str, Any]) -> None:
    """Makes the newest checkpoint of a run one that the job, as it is now, goes on from.

    Args:
        training: of the job as it is now.
        settled: dotted keys that may not change otherwise.
        earlier: the job as it was, with every default filled in.

    Raises:
        CheckpointError: the model, or the optimizer's state, would not fit.
        OutputFolderError: another process is at work in the folder.
    """
    run, job = training.run, training.job
    changed = changed_settings(earlier, job.model_dump(mode="json"), settled)
    with RunFolder(run, job).locked():
        latest = latest_checkpoint(run)
        if latest is not None:
            state = read_state(latest)
            other_order = state.data_digest != training.data_digest or any(key in changed for key in _ORDER)
            if not changed and not other_order:
                return
            _require_fit(latest, training, earlier)
            notice(f"goes on although these settings are others now: {', '.join(changed) or 'the data'}.")
            if other_order:
                state = _in_new_order(training, state)
                _put_ledger_aside(run)
            if any(key in changed for key in _BEST):
                state = replace(state, best={}, best_step=0)
            restate(run, latest, replace(state, stopped=False, since_best=0), alone=other_order)
        (run / "result.json").unlink(missing_ok=True)


def _in_new_order(training: Training, state: TrainingState) -> TrainingState:
    schedule = training.schedule
    epochs = min(state.epochs, schedule.epochs)
    notice(f"epoch {min(epochs + 1, schedule.epochs)} begins anew: its samples come in another order now.")
    return replace(
        state,
        next_item=epochs * schedule.items_per_epoch,
        step=epochs * schedule.train_batches,
        epochs=epochs,
        data_digest=training.data_digest,
        trained=0,
        quarantined=0,
        # Of the losses in this epoch so far nothing counts.
        blending={name: ([0.0] * len(each) if name == "sums" else each) for name, each in state.blending.items()},
        best_step=min(state.best_step, epochs * schedule.train_batches),
    )


def _put_ledger_aside(run: Path) -> None:
    """Its positions are those of another order: what is counted from now on begins with this epoch."""
    aside = run / "ledger" / f"before-{max(attempt_starts(run), default=0) + 1:04d}"
    for path in sorted((run / "ledger").glob("attempt-*.jsonl")):
        aside.mkdir(exist_ok=True)
        shutil.move(path, aside / path.name)


def _require_fit(checkpoint: Path, training: Training, earlier: dict[str, Any]) -> None:
    job = training.job
    problems = list(_differences(checkpoint, training))
    was = earlier["train"]
    if was["optimizer"]["name"] != job.train.optimizer.name:
        problems.append(f"train.optimizer.name was {was['optimizer']['name']} and its state is saved")
    if was["ema"] is None and job.train.ema is not None:
        problems.append("train.ema was unset, so there is no average of the weights")
    if problems:
        raise CheckpointError(
            f"{checkpoint}: does not fit the job as it is now, also with --resume force: {'; '.join(problems)}. Set it back, or "
            "choose another output."
        )


def _differences(checkpoint: Path, training: Training) -> Iterator[str]:
    """How the checkpoint's model differs from the job's, so that its weights would mean something else."""
    saved = load_checkpoint(checkpoint)
    now = training.preprocessor
    for name, spec in sorted(now.fields.items()):
        before = saved.preprocessor.fields.get(name)
        if before is not None and getattr(before, "classes", None) != getattr(spec, "classes", None):
            yield f"the classes of {name} are others"
    for name, tokenizer in sorted(now.tokenizers.items()):
        if saved.preprocessor.tokenizers.get(name, tokenizer) != tokenizer:
            yield f"the tokenizer of {name} is another"
    shapes = {name: list(tensor.shape) for name, tensor in saved.state.items()}
    wanted = {
        name: list(tensor.shape)
        for name, tensor in build_model(training.job.model, training.preprocessor).state_dict().items()
    }
    apart = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    for name in apart[:5]:
        yield f"{name} is {shapes.get(name, 'not there')} in it and {wanted.get(name, 'not there')} in the model"
    if len(apart) > 5:
        yield f"{len(apart) - 5} tensors more"
