"""The jobs of a night, made from the retrain job, what has come, and the champion."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.fields import FieldSpec, has_streams
from ray_mm.config.preprocess import PreprocessJob, SplitByHash
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.source import TrainSource, train_sources
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.part import part_of
from ray_mm.errors import DatasetError, ObjectMissingError
from ray_mm.storage import local_path
from ray_mm.storage.remote import ObjectInfo, stat

TRAIN, NEWEST = "train", "newest"
"""Splits of a night's samples."""


@dataclass(frozen=True)
class Old:
    """A dataset that was there before this night.

    Attributes:
        source: as a train job names it.
        num_samples: of it, as many as the train job reads.
    """

    source: TrainSource
    num_samples: int


def incoming_fields(job: RetrainJob, first: Dataset) -> tuple[dict[str, FieldSpec], dict[str, tuple[str, ...]]]:
    """What is in the new shards: the fields that the model reads, and the suffixes of their members, where they need to be named.

    Args:
        job: of the retraining.
        first: the first training dataset, whose fields they are unless the job says otherwise.

    Raises:
        DatasetError: it lacks a field.
    """
    given = job.incoming
    fields: dict[str, FieldSpec] = {}
    members: dict[str, tuple[str, ...]] = {}
    for name in sorted(job.train.model.read_fields):
        spec = given.fields.get(name) or first.manifest.fields.get(name)
        if spec is None:
            raise DatasetError(
                f"base.data.train: {first.root} has no field {name!r}, which the model needs; its fields are "
                f"{', '.join(sorted(first.manifest.fields))}."
            )
        fields[name] = spec
        suffixes = given.members.get(name) or first.manifest.members.get(name, ())
        suffixes = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
        named = name in given.members or any(
            suffix != name and not suffix.startswith(f"{name}.") for suffix in suffixes
        )
        if named and not has_streams(spec):
            members[name] = suffixes
    return fields, members


def index_job(job: RetrainJob, shards: Sequence[str], output: Path, first: Dataset) -> PreprocessJob:
    """What makes datasets of new shards, where they lie."""
    fields, members = incoming_fields(job, first)
    return PreprocessJob(
        kind="preprocess",
        name=job.name,
        shards=tuple(shards),
        fields=fields,
        members=dict(members),
        splits=SplitByHash(fractions={TRAIN: 1 - job.holdout, NEWEST: job.holdout}),
        on_missing="absent",
        seed=job.seed,
        output=str(output),
    )


def old_data(job: RetrainJob, nights: Sequence[Path], there: Mapping[str, ObjectInfo]) -> tuple[list[Old], list[str]]:
    """What was trained on before.

    Args:
        job: of the retraining.
        nights: folders of the nights that moved the watermark, in order.
        there: shards that a listing found.

    Returns:
        The datasets, those of the train job first; and the nights whose samples can't be had any more, because a shard is gone
        or has changed.
    """
    found, lost = [], []
    for source in train_sources(job.train.data.train):
        known = open_dataset(source.path).manifest
        part = part_of(source, known.num_samples, known.fields, known.presence, known.label_counts)
        found.append(Old(source, part.num_samples))
    for night in nights:
        try:
            dataset = open_dataset(night / "data" / TRAIN)
        except DatasetError:
            lost.append(night.name)
            continue
        if all(
            _is_there(dataset.location(number), shard.version, there) for number, shard in enumerate(dataset.shards)
        ):
            found.append(Old(TrainSource(path=str(dataset.root)), dataset.manifest.num_samples))
        else:
            lost.append(night.name)
    return found, lost


def held_out_before(nights: Sequence[Path], there: Mapping[str, ObjectInfo]) -> list[str]:
    """Shards of which earlier nights held samples out, those that are still what they were.

    Args:
        nights: their folders; one whose indexes are gone has none.
        there: shards that a listing found.
    """
    found: list[str] = []
    for night in nights:
        with contextlib.suppress(DatasetError):
            dataset = open_dataset(night / "data" / NEWEST)
            versions = {dataset.location(number): shard.version for number, shard in enumerate(dataset.shards)}
            found += unchanged(versions, there)
    return found


def train_job(job: RetrainJob, data: Path, old: Sequence[Old], champion: Path | None, output: Path) -> TrainJob:
    """The training of a challenger.

    Args:
        job: of the retraining.
        data: the dataset of the new samples.
        old: what was trained on before, the train job's own datasets first.
        champion: whose weights it begins with; None: fresh ones, and all data as it comes.
        output: folder of the run.
    """
    content: dict[str, Any] = job.train.model_dump(mode="json")
    content["output"] = str(output)
    num_new = open_dataset(data).manifest.num_samples
    sources = [each.source.model_dump(mode="json") for each in old] + [{"path": str(data)}]
    shares = _shares(job, old)
    num_old, are_weighted = sum(shares), any(each.source.weight is not None for each in old)
    wanted = num_new * job.replay / (1 - job.replay)
    scale = 1.0 if are_weighted else None
    if champion is not None:
        warm = job.warm_start
        assert warm is not None, "without it, weights are fresh"
        content["train"]["init_from"] = {
            "checkpoint": str(champion),
            "parts": ["encoders", "fusion", "head"],
            "shrink": warm.shrink,
            "perturb": warm.perturb,
        }
        if not wanted:
            sources = sources[-1:]
            scale = None
        elif num_old > wanted:
            scale = wanted / num_old
            content["data"]["epoch_samples"] = content["data"]["epoch_samples"] or round(num_new + wanted)
    if scale is not None:
        for share, source in zip([*(scale * share for share in shares), float(num_new)], sources, strict=True):
            source["weight"] = share
    content["data"]["train"] = sources
    return TrainJob.model_validate_json(json.dumps(content), strict=True)


def _shares(job: RetrainJob, old: Sequence[Old]) -> list[float]:
    """How much of the old samples is drawn from each dataset. Where the train job weights its own, they share what they have
    together by these weights."""
    own = old[: len(train_sources(job.train.data.train))]
    weights = [float(each.num_samples) if each.source.weight is None else each.source.weight for each in own]
    scale = sum(each.num_samples for each in own) / sum(weights)
    return [*(scale * weight for weight in weights), *(float(each.num_samples) for each in old[len(own) :])]


def evaluate_job(job: RetrainJob, checkpoint: Path, data: Any, output: Path) -> EvaluateJob:
    """The evaluation of one of two models on one of two datasets."""
    settings = job.evaluate
    return EvaluateJob(
        kind="evaluate",
        name=job.name,
        checkpoint=str(checkpoint),
        data=data,
        batch_size=settings.batch_size,
        subsets=settings.subsets,
        bad_samples=settings.bad_samples,
        resources=settings.resources,
        output=str(output),
    )


def compress_job(job: RetrainJob, checkpoint: Path, output: Path) -> CompressJob:
    """The compression of a challenger; calibrated with the first training dataset."""
    assert job.compress is not None
    return CompressJob(
        kind="compress",
        name=job.name,
        checkpoint=str(checkpoint),
        calibration_data=train_sources(job.train.data.train)[0].path,
        data=job.frozen_test,
        quantize=job.compress.quantize,
        latency=job.compress.latency,
        gate=job.compress.gate,
        resources=job.compress.resources,
        output=str(output),
    )


def lost_source(job: Mapping[str, Any], nights: Path) -> str | None:
    """A dataset of a night that a training was planned with, and that can't be had any more; None: all are there.

    Args:
        job: the train job, as a mapping.
        nights: the folder of all nights.
    """
    for source in job["data"]["train"]:
        path = source["path"] if isinstance(source, Mapping) else source
        if not path.startswith(f"{nights}/"):  # what the train job itself names does not come and go
            continue
        try:
            dataset = open_dataset(path)
        except DatasetError:
            return str(path)
        if not all(_is_there(dataset.location(n), shard.version, {}) for n, shard in enumerate(dataset.shards)):
            return str(path)
    return None


def is_gone(url: str, version: str) -> bool:
    """Whether a shard is not what it was."""
    return not _is_there(url, version, {})


def unchanged(shards: Mapping[str, str], there: Mapping[str, ObjectInfo]) -> list[str]:
    """Those of some shards (→ version) that are still what they were."""
    return [url for url, version in shards.items() if _is_there(url, version, there)]


def _is_there(location: str, version: str, there: Mapping[str, ObjectInfo]) -> bool:
    info = there.get(location)
    if info is None:
        try:
            info = stat(location if "://" in location else str(local_path(location)))
        except ObjectMissingError:
            return False
    return info.version == version
