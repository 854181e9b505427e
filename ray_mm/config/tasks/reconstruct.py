"""A task without a label: say again what is seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_mm.config.base import Config, Name


class ReconstructTask(Config):
    """Say again what is seen, from a part of it: an autoencoder, whose encoders then begin another task (``train.init_from``)
    that has few labels. Masked as in MAE (arXiv 2111.06377), with ``noise`` as the denoising autoencoders of Vincent et al.
    (ICML 2008)."""

    type: Literal["reconstruct"] = "reconstruct"
    fields: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """The inputs that are said again, from all inputs. Unset: all of them."""
    mask: float = Field(default=0.5, ge=0, lt=1)
    """Share of every input that is hidden in training: patches of a picture or clip, pieces in time of a recording or series,
    values of a vector, words of a text, squares of the ground with their points."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of noise that is added in training to what is not hidden, in those of the data. Not to texts."""

    @model_validator(mode="after")
    def _fields_differ(self) -> ReconstructTask:
        for name in self.fields or ():
            if (self.fields or ()).count(name) > 1:
                raise ValueError(f"fields: {name!r} stands there twice; leave one of them out")
        return self

    @property
    def needs_class_counts(self) -> bool:
        """There are no classes."""
        return False

    def fields_of(self, inputs: Iterable[str]) -> tuple[str, ...]:
        """Those that are reconstructed, sorted, of a model with these input fields."""
        return tuple(sorted(inputs if self.fields is None else self.fields))
