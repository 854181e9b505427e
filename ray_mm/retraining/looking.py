"""New shards, or new tables → what is in each. A table is first written into tars, below the night's folder, and then looked at
as tars that came in are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_mm.config.preprocess import PreprocessJob, SplitByHash
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.source import source_of
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.order import stable_hash
from ray_mm.errors import LeaseLost, OutputFolderError, RayMMError, StopRequested, StorageError
from ray_mm.preprocessing.in_place import plan_in_place
from ray_mm.preprocessing.statistics import Moments, RunningMoments
from ray_mm.retraining.arrivals import Incoming, listed
from ray_mm.retraining.contents import write_hashes
from ray_mm.retraining.jobs import incoming_fields, index_job, unchanged
from ray_mm.retraining.validation import Look, broken_promise, look
from ray_mm.run_folder import open_run_folder
from ray_mm.storage import local_path, sha256_file

Run = Callable[[PreprocessJob], dict[str, Any]]
"""Runs a stage."""
_ALL = "all"
_NOT_THE_TABLES = (StorageError, OutputFolderError, LeaseLost, StopRequested)
"""What keeps a table from being written whatever is in it."""


def look_at(
    job: RetrainJob, arrived: Sequence[Incoming], folder: Path, first: Dataset, run: Run
) -> tuple[list[Look], dict[str, list[str]]]:
    """Looks into what has come.

    Args:
        job: of the retraining.
        arrived: shards or tables that are new.
        folder: of the night.
        first: the first training dataset.
        run: runs what writes tables into tars.

    Returns:
        What is in each, and the tars of each; a shard is its own.
    """
    there = {info.url: info for info in listed(job.incoming)}
    still = set(unchanged({each.url: each.version for each in arrived}, there))
    looks = [Look(url=each.url, reason="was changed or removed") for each in arrived if each.url not in still]
    promised = {each.url: each.sha256 for each in arrived if each.sha256 is not None}
    tars: dict[str, list[str]] = {}
    unreadable: dict[str, Mapping[str, int]] = {}
    for number, each in enumerate(arrived):
        if each.url not in still:
            continue
        if job.incoming.tables is None:
            tars[each.url] = [each.url]
            continue
        if each.sha256 is not None and (digest := sha256_file(local_path(each.url))) != each.sha256:
            looks.append(Look(url=each.url, reason=broken_promise(digest, each.sha256)))
            continue
        packing = pack_job(job, each.url, folder / "packed" / f"{number:06d}", first)
        try:
            unreadable[each.url] = run(packing)["metrics"]["num_unusable"]
        except _NOT_THE_TABLES:
            raise
        except RayMMError as error:
            looks.append(Look(url=each.url, reason=str(error)))
            continue
        dataset = open_dataset(local_path(packing.output) / _ALL)
        tars[each.url] = [dataset.location(shard) for shard in range(len(dataset.shards))]
    inputs = sorted(job.train.model.fields)
    if tars:
        indexing = index_job(job, [tar for found in tars.values() for tar in found], folder / "data", first)
        # What is found is kept there, and used again when the tars are indexed.
        open_run_folder(indexing)
        found = {one.url: one for one in look(plan_in_place(indexing), inputs, _test_hashes(job, inputs), promised)}
        looks += [merged(url, [found[tar] for tar in tars[url]], unreadable.get(url, {})) for url in tars]
    return looks, tars


def pack_job(job: RetrainJob, table: str, output: Path, first: Dataset) -> PreprocessJob:
    """What writes a table into tars."""
    given = job.incoming
    fields, _ = incoming_fields(job, first)
    return PreprocessJob(
        kind="preprocess",
        name=job.name,
        table=table,
        root=given.root,
        fields=fields,
        columns={name: column for name, column in given.columns.items() if name in fields},
        key=given.key,
        splits=SplitByHash(fractions={_ALL: 1.0}),
        on_missing="absent",
        seed=job.seed,
        output=str(output),
    )


def merged(url: str, parts: Sequence[Look], unreadable: Mapping[str, int]) -> Look:
    """What is in all tars of a table, or in the one of a shard.

    Args:
        url: of the table, or of the shard.
        parts: its tars.
        unreadable: field → cells that were left absent when the tars were written.
    """
    if len(parts) == 1 and not unreadable:
        return parts[0].model_copy(update={"url": url})
    reasons = [part.reason for part in parts if part.reason is not None]
    if reasons:
        return Look(url=url, reason=reasons[0])
    classes: dict[str, dict[str, int]] = {}
    for part in parts:
        for name, counts in part.classes.items():
            classes[name] = dict(Counter(classes.get(name, {})) + Counter(counts))
    contents = [part.content for part in parts]
    return Look(
        url=url,
        num_samples=sum(part.num_samples for part in parts),
        splits=_added(part.splits for part in parts),
        present=_added(part.present for part in parts),
        unreadable=_added([*(part.unreadable for part in parts), unreadable]),
        classes=classes,
        moments=_moments(parts),
        num_test_duplicates=sum(part.num_test_duplicates for part in parts),
        content=None if None in contents else f"{stable_hash(*(str(each) for each in contents)):032x}",
    )


def _added(counts: Any) -> dict[str, int]:
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return {name: count for name, count in total.items() if count}


def _moments(parts: Sequence[Look]) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for name in sorted({name for part in parts for name in part.moments}):
        running = RunningMoments()
        for part in parts:
            if name in part.moments:
                running.merge(part.moments[name])
        if (moments := running.moments()) is not None:
            found[name] = moments
    return found


def _test_hashes(job: RetrainJob, inputs: Sequence[str]) -> Path | None:
    """The hashes of the frozen test set; None where they are not wanted."""
    if job.validation.max_test_duplicates >= 1:
        return None
    frozen = open_dataset(source_of(job.frozen_test).path)
    path = local_path(job.output) / "frozen" / f"{stable_hash(frozen.manifest.digest, *inputs):032x}"
    write_hashes(path, frozen, inputs)
    return path
