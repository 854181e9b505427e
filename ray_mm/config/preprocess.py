"""``kind: preprocess``: a table of paths and values, or tars that are there already → a dataset per split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_mm.config.base import Config, Fraction, Location, Name, Resources, Size
from ray_mm.config.fields import FieldSpec, LabelField, has_streams, is_mask
from ray_mm.config.schedule import JobSchedule


class SplitByColumn(Config):
    """A column of the table names each row's split."""

    by: Literal["column"] = "column"
    column: str
    """The column. Each of its values becomes a dataset of that name."""


class SplitByHash(Config):
    """A hash decides. All rows with the same value in ``group`` go to the same split, so nothing leaks."""

    by: Literal["hash"] = "hash"
    group: str | None = None
    """The column that must not be divided, such as a speaker or a recording. Unset: every row on its own."""
    fractions: dict[Name, Fraction] = Field(default={"train": 0.8, "validation": 0.1, "test": 0.1})
    """Share of the groups for each split; they add up to 1."""

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: dict[str, float]) -> dict[str, float]:
        if abs(sum(fractions.values()) - 1.0) > 1e-6:
            raise ValueError(f"fractions must add up to 1, found {sum(fractions.values()):g}")
        return fractions


Patterns = Location | Annotated[tuple[Location, ...], Field(min_length=1)]
"""Tars: files, folders, globs and braces such as ``clips-{000..127}.tar``; local, ``s3://``, ``gs://`` or ``https://``."""

PICKLED = ("pkl", "pickle", "pt", "pth")
"""Suffixes of members that could only be read by unpickling them, which runs whatever code is in them."""


class PreprocessJob(Config):
    """Makes a dataset for every split: writes shards from a table, or refers to tars where they are."""

    kind: Literal["preprocess"]
    name: Name
    """Of the datasets, as everything that reads them shows it."""
    table: Location | None = None
    """CSV, JSON lines (.jsonl) or Parquet: one row per sample."""
    shards: Patterns | dict[Name, Patterns] | None = None
    """Instead of a table: WebDataset tars, which stay where they are; only an index of them is written. Either patterns,
    whose samples ``splits`` divides by the hash of their keys; or split → patterns."""
    members: dict[Name, str | tuple[str, ...]] = Field(default={})
    """For ``shards``: field → suffix of its members, such as ``jpg`` or ``rgb.png``; of several the first that a sample has is
    taken. Unset: the field's name, and suffixes that begin with it and a dot."""
    root: Location | None = None
    """Folder that paths in the table are relative to. Unset: the table's own folder."""
    fields: dict[Name, FieldSpec] = Field(min_length=1)
    """The fields of a sample. A field is read from the column of its name unless ``columns`` says otherwise."""
    columns: dict[Name, str | tuple[str, ...]] = Field(default={})
    """Field → column, where they differ; for a ``vector`` a list of columns. The ``streams`` of a series name their own."""
    key: str | None = None
    """Column with a unique name per sample, without dots. Unset: the row's number, from 1."""
    splits: Annotated[SplitByColumn | SplitByHash, Field(discriminator="by")] = SplitByHash()
    """How rows are divided into train, validation, test."""
    shard_size: Size = 256_000_000
    """Target size of a shard, such as 256MB."""
    on_missing: Literal["error", "absent"] = "error"
    """A file that is not there, or that is not what its field says: stop and list them, or leave the field absent in that
    sample and count it. An empty cell is always an absent field."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split and of the order of samples in the shards."""
    resources: Resources | None = None
    """``workers`` shards are written at once, each by a task that reserves ``cpus_per_worker``. Unset: a shard per CPU."""
    schedule: JobSchedule | None = None
    """When it is run, by ``ray-mm schedule`` or what ``ray-mm render`` writes. Unset: whenever somebody runs it."""
    output: Location
    """Folder that gets one dataset per split."""

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> PreprocessJob:
        if (self.table is None) == (self.shards is None):
            raise ValueError("a job has either a table or shards")
        foreign = _FOR_TABLES if self.table is None else ("members",)
        for key in foreign:
            # Not whether it was written: a job that was resolved has every default written out.
            if getattr(self, key) != type(self).model_fields[key].get_default():
                raise ValueError(f"{key} is for {'a table' if self.table is None else 'shards'}; remove it")
        if self.table is None and (isinstance(self.splits, SplitByColumn) or self.splits.group is not None):
            raise ValueError(
                "splits: tars have no columns; divide by hash without a group, or name the shards of each split"
            )
        if isinstance(self.shards, dict) and self.splits != SplitByHash():
            raise ValueError("splits: shards say already which split they are of; remove splits")
        return self

    @model_validator(mode="after")
    def _columns_name_fields(self) -> PreprocessJob:
        for field, column in self.columns.items():
            if field not in self.fields:
                raise ValueError(f"columns.{field}: no such field; fields are {', '.join(sorted(self.fields))}")
            self._require_no_streams("columns", field)
            if isinstance(column, tuple) and self.fields[field].type != "vector":
                raise ValueError(f"columns.{field}: only a vector takes a list of columns")
        return self

    @model_validator(mode="after")
    def _cells_hold_texts_and_labels(self) -> PreprocessJob:
        for field, spec in self.fields.items() if self.table is not None else ():
            if spec.type in ("text", "label") and spec.path is not None:
                raise ValueError(
                    f"fields.{field}.path: a {spec.type} of a table is the value of its cell; remove the path"
                )
            if spec.type == "label" and spec.written_as == "name":
                raise ValueError(
                    f"fields.{field}.written_as: classes of a table are written as numbers; remove the key"
                )
        return self

    @model_validator(mode="after")
    def _masks_say_what_they_are(self) -> PreprocessJob:
        for field, spec in self.fields.items():
            if not isinstance(spec, LabelField):
                continue
            if not is_mask(spec):
                own = next((key for key in ("like", "height", "width") if getattr(spec, key) is not None), None)
                if own is not None:
                    raise ValueError(
                        f"fields.{field}.{own} is of a label with target: mask, and this one has target: {spec.target}; remove it"
                    )
            elif spec.classes is None:
                raise ValueError(
                    f"fields.{field}.classes: a mask holds numbers, and nothing says what they mean; list the classes in the "
                    "order of their numbers"
                )
            elif spec.like is not None and (spec.like not in self.fields or self.fields[spec.like].type != "image"):
                images = ", ".join(sorted(name for name, other in self.fields.items() if other.type == "image"))
                raise ValueError(f"fields.{field}.like: {spec.like!r} is no image field; there are {images or 'none'}")
        return self

    @model_validator(mode="after")
    def _members_name_fields(self) -> PreprocessJob:
        for field in self.members:
            if field not in self.fields:
                raise ValueError(f"members.{field}: no such field; fields are {', '.join(sorted(self.fields))}")
            self._require_no_streams("members", field)
        for field in self.fields if self.shards is not None else ():
            for suffix in self.suffixes(field) or ():
                if suffix.rpartition(".")[2].lower() in PICKLED:
                    key = f"members.{field}" if field in self.members else f"fields.{field}.streams"
                    raise ValueError(
                        f"{key}: .{suffix} members are pickled; reading one runs the code in it, so they are never "
                        "loaded. Convert them to .npy or .npz"
                    )
        return self

    def _require_no_streams(self, key: str, field: str) -> None:
        if has_streams(self.fields[field]):
            raise ValueError(
                f"{key}.{field}: fields.{field}.streams says with member which {key} it is made of; remove {key}.{field}"
            )

    def columns_of(self, field: str) -> tuple[str, ...]:
        """The columns of a table that a field is made of."""
        spec, given = self.fields[field], self.columns.get(field, field)
        if has_streams(spec):
            return spec.members
        return given if isinstance(given, tuple) else (given,)

    def suffixes(self, field: str) -> tuple[str, ...] | None:
        """The suffixes that ``members`` or its streams name for a field, without a dot before them; None where none are."""
        spec = self.fields[field]
        if has_streams(spec):
            return spec.members
        given = self.members.get(field)
        names = (given,) if isinstance(given, str) else given
        return None if names is None else tuple(name.removeprefix(".") for name in names)


_FOR_TABLES = ("root", "columns", "key", "shard_size")
