"""What all parts of a job file share: closed, frozen, documented per field."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from ray_mm.config.meaning import meanings

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class Config(BaseModel):
    """A section of a job file. Unknown keys are errors; values can't change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, meaning in meanings(cls).items():
            properties[name]["description"] = meaning
        return found


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _parse_size(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():  # 1e9
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"expected a size such as 256MB or 64MiB, found {value!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


Size = Annotated[int, BeforeValidator(_parse_size, json_schema_input_type=int | str), Field(gt=0)]
"""Bytes, written as a number or with a unit: ``256MB``, ``64MiB``."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
"""A name of a job, a field or a split: letters, digits, ``_`` and ``-``; it starts with a letter."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class _LocationMark:
    """Tells a path from other texts."""


Location = Annotated[str, Field(min_length=1), _LocationMark()]
"""A file or folder; a relative path starts at the folder in which the command runs."""

C = TypeVar("C", bound=Config)


def map_locations(config: C, change: Callable[[str], str]) -> C:
    """The same config with every ``Location`` in it, at any depth, changed; the config itself where none is."""
    update: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = changed = getattr(config, name)
        if isinstance(value, Config):
            changed = map_locations(value, change)
        elif isinstance(value, tuple) and any(isinstance(inner, Config) for inner in value):
            is_location = _is_location((*info.metadata, info.annotation))
            changed = tuple(
                map_locations(inner, change)
                if isinstance(inner, Config)
                else _map_texts(inner, change)
                if is_location
                else inner
                for inner in value
            )
        elif _is_location((*info.metadata, info.annotation)):
            changed = _map_texts(value, change)
        if changed != value:  # what is left alone stays unset where it was
            update[name] = changed
    return config.model_copy(update=update) if update else config


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map_texts(inner, change) for inner in value)
    return {key: _map_texts(inner, change) for key, inner in value.items()} if isinstance(value, dict) else value


def _is_location(marks: tuple[Any, ...]) -> bool:
    # In "Location | None" the mark is one level further in.
    return any(isinstance(mark, _LocationMark) or _is_location(get_args(mark)) for mark in marks)


class _PerWorker(Config):
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs that Ray reserves for each worker. Unset: one, or less where Ray Data would otherwise have none."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for each worker."""


class Resources(_PerWorker):
    """What a run may use. The same job scales by changing these numbers alone."""

    workers: int = Field(default=1, ge=1)
    """Processes that work side by side, such as the scoring actors of an evaluation."""

    @property
    def range(self) -> tuple[int, int]:
        """Workers, at the least and at the most."""
        return self.workers, self.workers


class WorkerRange(Config):
    """As many workers as find room: fewer when a machine goes, more when one comes."""

    min: int = Field(default=1, ge=1)
    """Fewest workers: below, the training waits for machines."""
    max: int = Field(ge=1)
    """Most workers."""

    @model_validator(mode="after")
    def _ascends(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}; lower the one or raise the other")
        return self


def _form(value: Any) -> str:
    return "range" if isinstance(value, (dict, WorkerRange)) else "number"


class TrainResources(_PerWorker):
    """What a training may use. The same job scales by changing these numbers alone."""

    workers: Annotated[
        Annotated[int, Field(ge=1), Tag("number")] | Annotated[WorkerRange, Tag("range")], Discriminator(_form)
    ] = 1
    """Train workers. A range such as ``{min: 2, max: 8}``: as many as find room, while machines go and come."""

    @property
    def range(self) -> tuple[int, int]:
        """Workers, at the least and at the most."""
        return (self.workers.min, self.workers.max) if isinstance(self.workers, WorkerRange) else (self.workers,) * 2


class BadSamples(Config):
    """How many samples may be quarantined before the run stops. The stricter of the two limits holds."""

    max_count: int = Field(default=10_000, ge=0)
    """Distinct samples over the whole run."""
    max_rate: Fraction = 0.05
    """Share of the samples of an epoch, judged when at least 100 samples have been seen."""
