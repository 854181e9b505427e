"""Which samples a job reads: a dataset, or a part of it; for a training also several of them, mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ray_mm.config.base import Config, Location, Name


class Source(Config):
    """A dataset, or a part of it. In a job file the folder alone will do."""

    path: Location
    """Folder of the dataset."""
    require: tuple[Name, ...] = ()
    """Only samples that have all of these fields."""
    where: dict[Name, tuple[str, ...]] = Field(default={})
    """Class label → the classes that are read; samples of other classes, or without that label, are left out."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Only this share of the samples that are left, always the same ones: for a quick run. Unset: all."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many of the samples that are left, always the same ones. Unset: all."""

    @model_validator(mode="after")
    def _one_size(self) -> Source:
        if self.fraction is not None and self.limit is not None:
            raise ValueError("fraction and limit exclude each other; remove one of them")
        return self


class TrainSource(Source):
    """One of the datasets of a training."""

    weight: float | None = Field(default=None, gt=0)
    """Its share of an epoch's samples, relative to the weights of the other datasets. Unset: its number of samples."""


class Balance(Config):
    """How often each class is drawn. Samples without the label are not drawn."""

    label: Name
    """A class label of the dataset."""
    method: Literal["equal", "square_root", "temperature"] = "equal"
    """``equal``: every class as often as the others. ``square_root``: in proportion to the square root of its number of
    samples. ``temperature``: to its number of samples to the power of 1/``temperature``."""
    temperature: float | None = Field(default=None, ge=1)
    """Only for ``method: temperature``. 1: as often as in the data; the higher, the more equal."""

    @model_validator(mode="after")
    def _temperature_fits(self) -> Balance:
        if (self.temperature is not None) != (self.method == "temperature"):
            raise ValueError("temperature belongs to method: temperature; set both or neither")
        return self

    @property
    def power(self) -> float:
        """A class of n samples is drawn in proportion to n to this power."""
        match self.method:
            case "equal":
                return 0.0
            case "square_root":
                return 0.5
            case "temperature":
                assert self.temperature is not None
                return 1 / self.temperature


def _form(value: Any) -> str:
    return "section" if isinstance(value, (dict, Config)) else "folder"


def _form_or_list(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else _form(value)


_Folder = Annotated[Location, Tag("folder")]
_TrainSource = Annotated[_Folder | Annotated[TrainSource, Tag("section")], Discriminator(_form)]

AnySource = Annotated[_Folder | Annotated[Source, Tag("section")], Discriminator(_form)]
"""The folder of a dataset, or a section that says which part of it."""

TrainSources = Annotated[
    _Folder
    | Annotated[TrainSource, Tag("section")]
    | Annotated[tuple[_TrainSource, ...], Field(min_length=1), Tag("list")],
    Discriminator(_form_or_list),
]
"""The folder of a dataset, a section that says which part of it, or a list of these."""


def source_of(given: str | Source) -> Source:
    """A folder as a section."""
    return given if isinstance(given, Source) else Source(path=given)


def train_sources(given: str | TrainSource | tuple[str | TrainSource, ...]) -> tuple[TrainSource, ...]:
    """All that is given as sections."""
    each = given if isinstance(given, tuple) else (given,)
    return tuple(one if isinstance(one, TrainSource) else TrainSource(path=one) for one in each)


def train_keys(sources: Sequence[TrainSource]) -> list[str]:
    """How messages name them: by their keys in the job."""
    return ["data.train" if len(sources) == 1 else f"data.train.{number}" for number in range(len(sources))]
