"""Everything that turns members or plain values into a model's input: it travels in every checkpoint and artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec
from ray_mm.data.fields import merge_fields
from ray_mm.data.manifest import Dataset, Statistics
from ray_mm.errors import DatasetError
from ray_mm.version import CHECKPOINT_FORMAT


class Preprocessor(Config):
    """The content of ``preprocessor.json``."""

    format: Literal["ray_mm.preprocessor"] = "ray_mm.preprocessor"
    version: int = CHECKPOINT_FORMAT
    fields: dict[str, FieldSpec]
    """The model's input fields and its label, complete."""
    tokenizers: dict[str, str] = Field(default={})
    """Text field → the tokenizer, as the JSON of the ``tokenizers`` library."""
    statistics: dict[str, Statistics] = Field(default={})
    """Field → mean and standard deviation of the training data."""


def preprocessor_for(dataset: Dataset, overrides: Mapping[str, FieldSpec], names: Iterable[str]) -> Preprocessor:
    """The preprocessor of some of a dataset's fields.

    Args:
        dataset: where tokenizers and statistics come from: the training split.
        overrides: ``data.fields`` of the job.
        names: the fields that the model uses, its label included.

    Raises:
        DatasetError: a field that the dataset does not have.
    """
    fields = merge_fields(dataset.manifest.fields, overrides)
    names = sorted(names)
    for name in names:
        if name not in fields:
            raise DatasetError(f"{dataset.root}: has no field {name!r}; its fields are {', '.join(sorted(fields))}.")
    return Preprocessor(
        fields={name: fields[name] for name in names},
        tokenizers={name: dataset.tokenizer(name) for name in names if fields[name].type == "text"},
        statistics={name: dataset.manifest.statistics[name] for name in names if name in dataset.manifest.statistics},
    )


def check_dataset_fits(dataset: Dataset, preprocessor: Preprocessor) -> None:
    """Checks that a dataset holds what a model reads: its fields, with the same types, channels and classes.

    Raises:
        DatasetError: with every difference.
    """
    found = dataset.manifest.fields
    differences = []
    for name, spec in sorted(preprocessor.fields.items()):
        if name not in found:
            differences.append(f"has no field {name!r}")
        elif found[name].type != spec.type:
            differences.append(f"{name} is {found[name].type}, the model reads {spec.type}")
        else:
            differences += [
                f"{name}.{key} is {getattr(found[name], key)!r}, the model has {getattr(spec, key)!r}"
                for key in _MUST_AGREE[spec.type]
                if getattr(found[name], key) != getattr(spec, key)
            ]
    if differences:
        raise DatasetError(f"{dataset.root} does not fit the model: {'; '.join(differences)}.")


_MUST_AGREE: dict[str, tuple[str, ...]] = {
    "image": (),
    "text": (),  # the model's own tokenizer is used, whatever the dataset has
    "audio": (),
    "video": (),
    "series": ("channels",),
    "points": ("channels",),
    "vector": ("size",),
    "label": ("target", "classes"),
}
