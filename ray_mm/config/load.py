"""A job file → a job, or an error that names the file, the line and the nearest valid key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.explain import Source, explain, nearest
from ray_mm.config.predict import PREDICT_SETTLED, PredictJob
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.config.read import KeyPath, first_line, read_mapping, read_value
from ray_mm.config.retrain import RETRAIN_SETTLED, RetrainJob
from ray_mm.config.search import check_search
from ray_mm.config.train import SETTLED, TrainJob
from ray_mm.config.tune import TUNE_SETTLED, Space, TuneJob
from ray_mm.errors import JobFileError

StageJob = PreprocessJob | TrainJob | EvaluateJob | PredictJob | CompressJob | TuneJob
"""A job of one stage."""
Job = StageJob | RetrainJob
JOB_KINDS: dict[str, type[Job]] = {
    "preprocess": PreprocessJob,
    "train": TrainJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
    "compress": CompressJob,
    "tune": TuneJob,
    "retrain": RetrainJob,
}
_TRAIN_KEYS = {"tune": "job", "retrain": "base"}
"""Kind → the key under which its train job stands, or the name of its file."""


def load_job(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Job:
    """Reads and validates a job.

    Args:
        source: a YAML file, or the same content as a mapping.
        overrides: dotted key → value, such as ``{"train.optimizer.lr": 1e-4}``.

    Raises:
        JobFileError: the file can't be read, or a key or value is wrong.
    """
    lines: dict[KeyPath, int] = {}
    if isinstance(source, Mapping):
        content, name = dict(source), "job"
    else:
        content, lines = read_mapping(Path(source))
        name = str(source)
    overrides = _with_train_job(content, overrides or {}, None if isinstance(source, Mapping) else Path(source).parent)
    overridden: dict[KeyPath, Any] = {}
    for dotted, value in overrides.items():
        overridden[_set(content, dotted, value)] = value
    where = Source(name, lines, overridden)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in JOB_KINDS:
        found = f"found {kind!r}." if "kind" in content else "the key is missing."
        near = nearest(kind, list(JOB_KINDS)) if isinstance(kind, str) else None
        hint = f" Did you mean {near!r}?" if near else ""
        raise JobFileError(f"{where.at(('kind',))}: kind must be one of {', '.join(JOB_KINDS)}; {found}{hint}")
    try:
        # As JSON, because strict JSON is what a job file means: no text where a number is wanted, no true for 1, but
        # lists for tuples. A path given from Python becomes its text.
        job = JOB_KINDS[kind].model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise JobFileError(explain(error, JOB_KINDS[kind], where)) from None
    except (TypeError, ValueError) as error:
        raise JobFileError(f"{name}: holds something that JSON can't say ({first_line(error)}).") from None
    if isinstance(job, TuneJob):
        check_search(job, where)
    return job


def settled_keys(job: Job) -> tuple[str, ...]:
    """Keys that may not change when a job goes on in its folder."""
    match job:
        case TrainJob():
            return SETTLED
        case PredictJob():
            return PREDICT_SETTLED
        case TuneJob():
            return TUNE_SETTLED
        case RetrainJob():
            return RETRAIN_SETTLED
        case _:
            return ()


def _with_train_job(content: dict[str, Any], overrides: Mapping[str, Any], folder: Path | None) -> Mapping[str, Any]:
    """Puts the train job of a search or a retraining, where it is a file of its own, into its place; before keys in it are
    overridden.

    Args:
        content: of the job file; changed.
        overrides: of it.
        folder: of the job file.

    Returns:
        The overrides that are left.

    Raises:
        JobFileError: that file is wrong by itself.
    """
    key = _TRAIN_KEYS.get(str(content.get("kind")), "")
    given = overrides.get(key, content.get(key))
    if not key or not isinstance(given, str):
        return overrides
    # One that is named on the command line starts where the command is given.
    file = Path(given) if key in overrides or folder is None else folder / given
    train, _ = read_mapping(file)
    if train.get("kind") != "train":
        what = "a search is over" if key == "job" else "a retraining repeats"
        raise JobFileError(f"{file}: {key}: {what} a train job; found kind {train.get('kind')!r}.")
    load_job(file)
    content[key] = train
    return {name: value for name, value in overrides.items() if name != key}


def placed(message: str, file: str, overrides: Mapping[str, Any]) -> str:
    """A message about a key, or about what a key names, with the file and the line of the key before it.

    Args:
        message: such as ``data.train: …``, or ``/data/train: …``; others come back as they are.
        file: the job file.
        overrides: dotted key → value.
    """
    try:
        content, lines = read_mapping(Path(file))
    except JobFileError:
        return message
    overridden: dict[KeyPath, Any] = {_set(content, dotted, value): value for dotted, value in overrides.items()}
    source = Source(file, lines, overridden)
    head = re.match(r"([a-z_]\w*(?:\.\w+)*)(?: \([a-z]+\))?: ", message)
    if head is not None:
        path: KeyPath = tuple(head[1].split("."))
        if path[0] in content:
            return f"{source.at(path)}: {message}"
        key = _TRAIN_KEYS.get(str(content.get("kind")), "")
        train = content.get(key)
        if isinstance(train, str):
            return placed(message, str(Path(file).parent / train), {})
        return f"{source.at((key, *path))}: {message}" if isinstance(train, Mapping) and path[0] in train else message
    for path, text in _texts(content):
        # Job files name places relative to the working directory; messages name them in full.
        if len(path) > 1 or path[0] not in ("kind", "name", "output"):
            place = text if "://" in text else str(Path(text).expanduser().absolute())
            if message.startswith((f"{place}: ", f"{place} ")):
                return f"{source.at(path)}: {'.'.join(map(str, path))}: {message}"
    return message


def _texts(content: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(content, str) and content:
        yield path, content
    elif isinstance(content, (Mapping, list)):
        for key, inner in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _texts(inner, (*path, key))


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """``["train.epochs=3"]`` → ``{"train.epochs": 3}``; values are YAML.

    Raises:
        JobFileError: an assignment without ``=``, or a value that is not YAML.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise JobFileError(f"--set takes KEY=VALUE, such as train.epochs=3; found {assignment!r}.")
        try:
            overrides[key] = read_value(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            shown = value if len(value) <= 60 else f"{value[:60]}…"
            raise JobFileError(f"--set {key}: the value {shown!r} is not YAML ({first_line(error)}).") from None
    return overrides


def job_schema(kind: str | None = None) -> dict[str, Any]:
    """JSON Schema of one kind of job file, or of all of them.

    Raises:
        JobFileError: no such kind.
    """
    if kind is None:
        union = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ray_mm job"} | union.json_schema()
    if kind not in JOB_KINDS:
        raise JobFileError(f"no job kind {kind!r}; kinds are {', '.join(JOB_KINDS)}.")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | JOB_KINDS[kind].model_json_schema()


def _set(content: dict[str, Any], dotted: str, value: Any) -> tuple[str, ...]:
    """Sets a key; its path."""
    path = tuple(dotted.split("."))
    if path[0] == "search" and len(path) > 2:  # what stands below it are dotted keys themselves
        end = len(path) - (path[-1] in Space.model_fields)
        path = ("search", ".".join(path[1:end]), *path[end:])
    *parents, last = path
    section = content
    for parent in parents:
        inner = section.get(parent)
        # A copy: the caller's mapping must not change under them.
        section[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[parent]
    section[last] = value
    return path
