"""``train.baselines``: one model per field alone, each with the budget of the model of all fields, and how they compare.

<run>/baselines/<field>/      a training's folder like any other: it can be evaluated and compressed

Joint training can end below the best field alone (Wang et al. 2020, arXiv 1905.12681), and only this comparison shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from ray_mm.config.fusions import FilmFusion
from ray_mm.config.source import train_sources
from ray_mm.config.train import InitConfig, TrainJob
from ray_mm.data.manifest import open_dataset
from ray_mm.figures import label, text
from ray_mm.progress import notice
from ray_mm.run_folder import add_to_result
from ray_mm.session import ray_session


def run_baselines(job: TrainJob, result: dict[str, Any], train: Callable[[TrainJob], dict[str, Any]]) -> dict[str, Any]:
    """Trains every field alone, those that are not done yet, and says how the model of all fields compares.

    Args:
        job: with ``train.baselines``, whose own training is done.
        result: its ``result.json``.
        train: trains a job, or says that nothing was left to do.

    Returns:
        The result, with ``baselines`` among its metrics: field → the figures of its own model.
    """
    figure = job.metric if job.data.validation is not None else "train_loss"
    found = {}
    with ray_session():
        for field in sorted(job.model.fields):
            notice(f"baseline {field!r}: a model that has this field alone.")
            metrics = train(baseline_job(job, field))["metrics"]
            found[field] = {name: metrics[name] for name in (figure, "best_step", "steps", "train_loss")}
    metrics = {**result["metrics"], "baselines": found}
    add_to_result(job, {"metrics": metrics})
    notice(comparison(figure, metrics, job.higher_is_better and figure == job.metric))
    return {**result, "metrics": metrics}


def baseline_job(job: TrainJob, field: str) -> TrainJob:
    """The training of one field alone: the same samples, steps and settings, without what needs another field."""
    fusion = job.model.fusion
    if isinstance(fusion, FilmFusion):
        fusion = fusion.model_copy(update={"condition": None})
    parts = ("encoders", f"encoders.{field}", "fusion", "head")
    optimizer = job.train.optimizer
    train = {
        "baselines": False,
        # There is no other field to fall back on.
        "modality_dropout": 0.0,
        "gradient_modulation": None,
        "gradient_blending": None,
        "profile": None,
        "freeze": {part: share for part, share in job.train.freeze.items() if part in parts},
        "optimizer": optimizer.model_copy(
            update={"parts": {part: factor for part, factor in optimizer.parts.items() if part in parts}}
        ),
        "augment": _augment_of(job, field),
        "init_from": _initial_of(job, parts),
    }
    changed = job.model_copy(
        update={
            "name": f"{job.name[:40]}-{field}"[:64],
            "model": job.model.model_copy(update={"fields": {field: job.model.fields[field]}, "fusion": fusion}),
            "train": job.train.model_copy(update=train),
            "output": str(PurePosixPath(job.output) / "baselines" / field),
        }
    )
    # Checked like any other.
    return TrainJob.model_validate(changed.model_dump())


def comparison(figure: str, metrics: dict[str, Any], higher_is_better: bool) -> str:
    """One paragraph: the figure of the model of all fields, of each field's own model, and whether joining them was worth it."""
    alone = {field: float(of[figure]) for field, of in metrics["baselines"].items()}
    together = float(metrics[figure])
    best = (max if higher_is_better else min)(alone, key=lambda field: alone[field])
    listed = ", ".join(f"{field} alone {text(figure, value)}" for field, value in alone.items())
    found = f"{label(figure)}: all fields {text(figure, together)}; {listed}."
    gain = together - alone[best] if higher_is_better else alone[best] - together
    if len(alone) > 1 and gain <= 0:
        found += (
            f" All together are no better than {best} alone: try another model.fusion, train.modality_dropout, a lower rate for "
            f"encoders.{best} (train.optimizer.parts), or leave the others out."
        )
    return found


def _initial_of(job: TrainJob, parts: tuple[str, ...]) -> InitConfig | None:
    config = job.train.initial
    if config is None or config.parts is None:
        return config
    # A fusion of all fields is no fusion of one.
    kept = tuple(part for part in config.parts if part in parts and part != "fusion")
    return config.model_copy(update={"parts": kept}) if kept else None


def _augment_of(job: TrainJob, field: str) -> Any:
    augment = job.train.augment
    if augment is None:
        return None
    changes: dict[str, Any] = {"fields": {name: what for name, what in augment.fields.items() if name == field}}
    if augment.cutmix is not None and _type_of(job, field) not in ("image", "video"):
        # There is no picture to cut from; mixing of another kind is as strong a change.
        changes |= {"cutmix": None, "mixup": augment.mixup or augment.cutmix}
    return augment.model_copy(update=changes)


def _type_of(job: TrainJob, field: str) -> str:
    # As in a training: of several datasets the first one says what the fields are.
    return open_dataset(train_sources(job.data.train)[0].path).manifest.fields[field].type
