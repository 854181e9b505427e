"""A job → what it would find, without torch or Ray, and without Arrow where it names no cache: an answer in a second or less.

What a run checks first, as far as small files say it; the run itself checks all of it again, and more.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import assert_never

from ray_mm.config.augment import check_augment, check_pairs
from ray_mm.config.base import map_locations
from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.explain import no_column
from ray_mm.config.fields import FieldSpec
from ray_mm.config.load import Job, settled_keys
from ray_mm.config.model import ModelConfig, check_model
from ray_mm.config.predict import PredictJob
from ray_mm.config.preprocess import PreprocessJob, SplitByColumn
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.schedule import at_changes, times
from ray_mm.config.search import draws, num_combinations, num_trials, told, trial_job
from ray_mm.config.source import Source, source_of, train_keys, train_sources
from ray_mm.config.tasks import labels_of
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import TuneJob
from ray_mm.data.fields import merge_fields
from ray_mm.data.fit import lacking_text, no_dataset, require_fit
from ray_mm.data.part import Part, nothing_left, part_of, require_balanced, selected_classes
from ray_mm.data.plan import Schedule
from ray_mm.data.seal import unsealed
from ray_mm.data.shards import find_shards
from ray_mm.errors import CheckpointError, DatasetError, ObjectMissingError, UsageError
from ray_mm.registered import on_this_machine, pinned
from ray_mm.run_folder import check_output
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.remote import join, located, read_object
from ray_mm.training.advice import course, imbalance, warnings
from ray_mm.training.precheck import begins_with_lines, cache_warnings
from ray_mm.version import CHECKPOINT_FORMAT, DATASET_FORMAT

_TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
_MODEL_PLACES = {"train": ("best", "last"), "compress": ("artifact",)}
_FIELDS: TypeAdapter[dict[str, FieldSpec]] = TypeAdapter(dict[str, FieldSpec])
_COUNTS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])
_CLASS_COUNTS: TypeAdapter[dict[str, dict[str, int]]] = TypeAdapter(dict[str, dict[str, int]])
_MOST_BEGUN = 20
"""Different models of a search that are held against what they begin with: each takes about as long as building it."""


def check_job(job: Job) -> list[str]:
    """Looks at what a job names.

    Args:
        job: validated.

    Returns:
        A line for everything that was found.

    Raises:
        UsageError: something is missing, or does not fit.
    """
    job = map_locations(job, pinned)
    check_output(job, settled_keys(job))
    return [*check_inputs(job), *_schedule(job)]


def check_inputs(job: Job) -> list[str]:
    """As ``check_job``, whatever lies in the job's output."""
    match job:
        case PreprocessJob():
            return list(_preprocess(job))
        case TrainJob():
            return list(_train(job))
        case EvaluateJob():
            return list(_scored(job.checkpoint, {"data": job.data}))
        case PredictJob():
            return list(_scored(job.checkpoint, {"data": job.data}, needs_label=False))
        case CompressJob():
            return list(_scored(job.checkpoint, {"data": job.data, "calibration_data": job.calibration_data}))
        case TuneJob():
            return list(_tune(job))
        case RetrainJob():
            return list(_retrain(job))
        case _:
            assert_never(job)


def _schedule(job: Job) -> Iterator[str]:
    if job.schedule is not None:
        now = datetime.now(timezone.utc)
        comes = next(times(job.schedule, now))
        yield f"schedule: {job.schedule.cron} in {job.schedule.timezone}; next {comes:%a %Y-%m-%d %H:%M %Z}"
        late, twice = at_changes(job.schedule, now)
        if late is not None:
            yield (
                f"warning: schedule: on {late:%Y-%m-%d} clocks go forward over that time: ray-mm schedule and cron run it at "
                f"{late:%H:%M} then, systemd and Kubernetes leave it out; a time after that hour is the same everywhere"
            )
        if twice is not None:
            yield (
                f"warning: schedule: on {twice:%Y-%m-%d} {twice:%H:%M} comes twice, because clocks go back: Kubernetes runs it "
                "twice, all others once; a time after that hour is the same everywhere"
            )


def _preprocess(job: PreprocessJob) -> Iterator[str]:
    if job.table is None:
        yield from _shards(job)
        return
    table = local_path(job.table)
    if table.suffix.lower() not in _TABLES:
        raise UsageError(f"table: {table} must end in .csv, .jsonl or .parquet.")
    if not table.is_file():
        raise UsageError(f"table: {table}: no such file.")
    if table.stat().st_size == 0:
        raise UsageError(f"table: {table}: the table is empty; expected a row per sample.")
    root = local_path(job.root) if job.root is not None else table.parent
    if not root.is_dir():
        raise UsageError(f"root: {root} is not a folder; paths in the table are relative to it.")
    yield f"table: {table}, {table.stat().st_size:,} bytes"
    header = _csv_header(table) if table.suffix.lower() == ".csv" else None
    if header is not None:
        for key, column in _columns(job):
            if column not in header:
                raise UsageError(f"{key}: {table} {no_column(column, header)}")
        yield f"columns: {', '.join(header)}"


def _shards(job: PreprocessJob) -> Iterator[str]:
    by_split = job.shards if isinstance(job.shards, dict) else {"": job.shards}
    for split, given in by_split.items():
        patterns = [given] if isinstance(given, str) else list(given or ())
        # A store is not asked: checking takes a fraction of a second, and needs no network.
        local = find_shards([pattern for pattern in patterns if not is_remote(pattern)])
        size = sum(shard.size for shard in local)
        key = f"shards.{split}" if split else "shards"
        yield f"{key}: {len(local):,} tars here, {size:,} bytes"
        for pattern in patterns:
            if is_remote(pattern):
                yield f"{key}: {pattern}, not looked at"


def _csv_header(table: Path) -> list[str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"table: {table} can't be read as CSV in UTF-8 ({error}).") from None


def _columns(job: PreprocessJob) -> Iterator[tuple[str, str]]:
    """Every column that the job names, and the key that names it."""
    for field in job.fields:
        for column in job.columns_of(field):
            yield (f"columns.{field}" if field in job.columns else f"fields.{field}"), column
    if job.key is not None:
        yield "key", job.key
    if isinstance(job.splits, SplitByColumn):
        yield "splits.column", job.splits.column
    elif job.splits.group is not None:
        yield "splits.group", job.splits.group


def _train(job: TrainJob) -> Iterator[str]:
    sources = train_sources(job.data.train)
    given: list[tuple[str, Source]] = list(zip(train_keys(sources), sources, strict=True))
    if job.data.validation is not None:
        given.append(("data.validation", source_of(job.data.validation)))
    first = _read_dataset(sources[0].path)
    fields = merge_fields(first["fields"], job.data.fields)
    check_model(job.model, fields)
    wanted = {name: fields[name] for name in job.model.read_fields}
    if job.train.augment is not None:
        check_augment(job.train.augment, job.model, fields)
        check_pairs(job.train.augment, job.data.batch_size, job.resources.range)
    parts, label_counts = [], []
    for key, source in given:
        found = _read_dataset(source.path)
        place = f"{key}: {located(source.path)}"
        _require_same_fields(job.model, first["fields"], found["fields"], place)
        require_fit(place, found["fields"], wanted)
        if job.data.balance is not None and key != "data.validation":
            require_balanced(job.data.balance.label, located(source.path), found["fields"], key)
        parts.append(_part(key, source, found))
        label_counts.append(found["label_counts"])
        yield _found(key, source.path, found, parts[-1])
    yield from begins_with_lines(job)
    yield from _course(job, parts[: len(sources)])
    for warning in imbalance(job, label_counts[: len(sources)]):
        yield f"warning: {warning}"
    for warning in cache_warnings(job, parts[: len(sources)], label_counts[: len(sources)]):
        yield f"warning: {warning}"


def _course(job: TrainJob, parts: Sequence[Part]) -> Iterator[str]:
    """How many steps it will take, where that can be told without looking at indexes, and what is hardly meant."""
    sources = train_sources(job.data.train)
    total = job.data.epoch_samples
    if total is None:
        if not all(part.is_exact for part in parts):
            return
        # Weights say how much of each there is in an epoch, and not how long that is.
        total = sum(part.num_samples for part in parts)
    schedule = Schedule(total, 0, job.data.batch_size, job.train.epochs)
    yield f"train: {course(schedule)}"
    same = False
    if job.data.validation is not None:
        validation = source_of(job.data.validation)
        same = any(_is_same(source, validation) for source in sources)
    for warning in warnings(schedule, same):
        yield f"warning: {warning}"


def _tune(job: TuneJob) -> Iterator[str]:
    """The train job itself in full, and whether each trial's model fits its dataset."""
    yield from _train(job.train)
    count = num_trials(job)
    fields: dict[str, dict[str, FieldSpec]] = {}
    begun: set[str] = set()
    for settings in itertools.islice(draws(job), count):
        trial = trial_job(job, settings, job.output)
        path = train_sources(trial.data.train)[0].path
        if path not in fields:
            fields[path] = _read_dataset(path)["fields"]
        try:
            check_model(trial.model, merge_fields(fields[path], trial.data.fields))
            # What the models of two trials begin with differs only where the models do.
            model = json.dumps(trial.model_dump(mode="json", include={"model": True, "train": {"init_from"}}))
            if trial.train.initial is not None and len(begun) < _MOST_BEGUN and model not in begun:
                begun.add(model)
                list(begins_with_lines(trial))
        except UsageError as error:
            raise UsageError(f"search: with {told(settings)}: {error}") from None
    combinations = num_combinations(job)
    some = "" if combinations is None else f" of {combinations:,} combinations"
    better = "higher" if job.higher_is_better else "lower"
    yield f"tune: {count:,} trials{some} by {job.method.name}, compared by {job.metric}: the {better} the better"
    if job.trials is not None and count < job.trials:
        yield f"warning: trials: {job.trials} are more than there are combinations; each is tried once"


def _retrain(job: RetrainJob) -> Iterator[str]:
    """The train job in full, and what models are compared on; a store is not asked."""
    yield from _train(job.train)
    sources = train_sources(job.train.data.train)
    frozen = source_of(job.frozen_test)
    if any(located(source.path) == located(frozen.path) for source in sources):
        raise UsageError(f"frozen_test: {located(frozen.path)} is also trained on; name samples that never are.")
    fields = merge_fields(_read_dataset(sources[0].path)["fields"], job.train.data.fields)
    content = _read_dataset(frozen.path)
    place = f"frozen_test: {located(frozen.path)}"
    require_fit(place, content["fields"], {name: fields[name] for name in job.train.model.read_fields})
    yield _found("frozen_test", frozen.path, content, _part("frozen_test", frozen, content))
    if job.champion is not None:
        folder, config, _ = _read_model(job.champion)
        alike = "the train job's model" if config == job.train.model else "another model than the train job's"
        yield f"champion: {folder}, {alike}"
    for pattern in job.incoming.patterns:
        is_one = not is_remote(pattern) and re.search(r"[*?\[{]", pattern) is None
        if is_one and not local_path(pattern).exists():
            raise UsageError(f"arrivals: {local_path(pattern)}: no such file or folder; make it, or correct its name.")
        yield f"arrivals: {pattern}, by {job.incoming.by}"


def _part(key: str, source: Source, content: dict[str, Any]) -> Part:
    """How much of a dataset takes part.

    Raises:
        DatasetError: a field or a class that it does not have, or nothing is left.
    """
    root = located(source.path)
    selected_classes(source, root, content["fields"], key)
    part = part_of(source, content["samples"], content["fields"], content["presence"], content["label_counts"])
    if part.num_samples == 0 and content["samples"]:
        raise nothing_left(root, key)
    return part


def _is_same(source: Source, other: Source) -> bool:
    keys = {"path", "weight"}
    return located(source.path) == located(other.path) and (
        source.model_dump(exclude=keys) == other.model_dump(exclude=keys)
    )


def _scored(checkpoint: str, datasets: dict[str, str | Source], needs_label: bool = True) -> Iterator[str]:
    folder, config, fields = _read_model(checkpoint)
    if not needs_label:
        fields = {name: spec for name, spec in fields.items() if name in config.fields}
    what = " ".join([config.task.type, *labels_of(config.task)])
    yield f"checkpoint: {folder}, {what} from {', '.join(sorted(config.fields))}"
    for key, given in datasets.items():
        source = source_of(given)
        content = _read_dataset(source.path)
        may_lack = sorted(config.fields) if key == "data" else []
        lacking = require_fit(f"{key}: {located(source.path)}", content["fields"], fields, may_lack)
        yield _found(key, source.path, content, _part(key, source, content))
        if lacking:
            yield f"{key}: {lacking_text(lacking)}"


def _require_same_fields(
    model: ModelConfig, train: dict[str, FieldSpec], other: dict[str, FieldSpec], place: str
) -> None:
    for name in sorted(model.read_fields):
        if name not in other:
            raise DatasetError(
                f"{place} has no field {name!r}, which the model needs; its fields are {', '.join(sorted(other))}."
            )
        if other[name].type != train[name].type:
            raise DatasetError(
                f"{place}: field {name!r} is of type {other[name].type}, in the first training dataset it is of type "
                f"{train[name].type}; choose another dataset, or make it again with that type."
            )


def _read_dataset(path: str) -> dict[str, Any]:
    """``dataset.json`` of a dataset, its ``fields`` validated."""
    root = located(path)
    file = join(root, "dataset.json")
    try:
        content = unsealed(_read_versioned(file, "ray_mm.dataset", DATASET_FORMAT, DatasetError), file)
    except ObjectMissingError:
        raise DatasetError(no_dataset(root)) from None
    try:
        return content | {
            "fields": _FIELDS.validate_python(content["fields"]),
            "samples": int(content["num_samples"]),
            "presence": _COUNTS.validate_python(content.get("presence", {})),
            "label_counts": _CLASS_COUNTS.validate_python(content.get("label_counts", {})),
        }
    except (ValidationError, KeyError, TypeError, ValueError):
        raise DatasetError(f"{file}: is damaged; make the dataset again.") from None


def _found(key: str, path: str, content: dict[str, Any], part: Part) -> str:
    fields = ", ".join(f"{name} ({spec.type})" for name, spec in sorted(content["fields"].items()))
    samples = f"{content['samples']:,} samples"
    if part.num_samples != content["samples"]:
        samples = f"{part.num_samples:,} of {samples}"
    return f"{key}: {located(path)}, {'' if part.is_exact else 'at most '}{samples} of {fields}"


def _read_model(path: str) -> tuple[Path, ModelConfig, dict[str, FieldSpec]]:
    """The folder of a checkpoint or an artifact, its model's config, and the fields that the model reads."""
    root = local_path(on_this_machine(path))
    kind = None
    if (root / "job.json").is_file():
        kind = _read_json(str(root / "job.json"), CheckpointError).get("kind")
    places = [root, *(root / name for name in _MODEL_PLACES.get(str(kind), ()))]
    folder = next((place for place in places if (place / "model.json").is_file()), None)
    if folder is None:
        what = f"the {kind} run has no model yet" if kind in _MODEL_PLACES else "no checkpoint there"
        raise CheckpointError(f"checkpoint: {root}: {what}; run the job that makes it.")
    content, preprocessor = (
        _read_versioned(str(folder / f"{name}.json"), f"ray_mm.{name}", CHECKPOINT_FORMAT, CheckpointError)
        for name in ("model", "preprocessor")
    )
    try:
        return folder, ModelConfig.model_validate(content["model"]), _FIELDS.validate_python(preprocessor["fields"])
    except (ValidationError, KeyError):
        raise CheckpointError(f"{folder}: model.json or preprocessor.json is damaged; train again.") from None


def _read_versioned(file: str, name: str, newest: int, error: type[UsageError]) -> dict[str, Any]:
    content = _read_json(file, error)
    if content.get("format") != name:
        raise error(f"{file}: has format {content.get('format')!r}, expected {name!r}.")
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise error(
            f"{file}: has format version {version!r}, this ray_mm reads versions 1 to {newest}; upgrade ray_mm."
        )
    return content


def _read_json(file: str, error: type[UsageError]) -> dict[str, Any]:
    try:
        content = json.loads(read_object(file))
    except ObjectMissingError:
        if error is DatasetError:
            raise
        raise error(f"{file}: is missing; the model is not whole.") from None
    except ValueError as reason:
        raise error(f"{file}: can't be read ({reason}).") from None
    if not isinstance(content, dict):
        raise error(f"{file}: holds no JSON object; it is damaged.")
    return content
