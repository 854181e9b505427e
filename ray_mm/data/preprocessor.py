"""Everything that turns members or plain values into a model's input: it travels in every checkpoint and artifact."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec
from ray_mm.data.fields import merge_fields
from ray_mm.data.fit import require_fit
from ray_mm.data.manifest import Dataset, Statistics
from ray_mm.data.pretrained import FoundModel, Pretrained
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
    pretrained: dict[str, Pretrained] = Field(default={})
    """Field with a pretrained encoder → what rebuilds it, but for its weights."""

    def first_id(self, name: str) -> int:
        """What a text's tokenizer calls 0 is this number in a batch, where 0 stands for no token."""
        return 1 if name in self.pretrained else 0

    def only(self, names: Iterable[str]) -> Preprocessor:
        """The same for some of the fields, such as a model's inputs without its label."""
        return self.model_copy(update={"fields": {name: self.fields[name] for name in names}})

    def with_pretrained(self, found: Mapping[str, FoundModel]) -> Preprocessor:
        """The same with what the pretrained encoders of some fields need."""
        texts = {name: model.tokenizer for name, model in found.items() if model.tokenizer is not None}
        return self.model_copy(
            update={
                "fields": self.fields | {name: model.spec for name, model in found.items()},
                "tokenizers": self.tokenizers | texts,
                "pretrained": self.pretrained | {name: model.pretrained for name, model in found.items()},
            }
        )


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


def check_dataset_fits(dataset: Dataset, preprocessor: Preprocessor, may_lack: Collection[str] = ()) -> list[str]:
    """``data.fit.require_fit`` for a dataset and a model's preprocessor; returns the fields that are lacking.

    Raises:
        DatasetError: with every difference.
    """
    return require_fit(str(dataset.root), dataset.manifest.fields, preprocessor.fields, may_lack)
