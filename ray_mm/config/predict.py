"""``kind: predict``: a checkpoint or an artifact, and a dataset → a prediction per sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_mm.config.base import BadSamples, Config, Location, Name, Resources
from ray_mm.config.cache import CacheConfig
from ray_mm.config.source import AnySource

PREDICT_SETTLED = ("checkpoint", "data", "batch_size", "rows_per_file")
"""Keys that may not change between two runs in the same folder: the files there were made with them. The last digits of a sum of
floats may depend on the size of the batch."""


class PredictJob(Config):
    """Says of every sample of a dataset what a model makes of it. The dataset needs no label; one that is there is not read."""

    kind: Literal["predict"]
    name: Name
    """Of the run, as its results show it."""
    checkpoint: Location
    """A train run (its best checkpoint is taken), a checkpoint folder, a compress run or an artifact folder; or a model
    by its name in a registry, ``registry:ROOT#NAME@champion``."""
    data: AnySource
    """The dataset: its folder, or a section that says which part of it."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per forward pass."""
    rows_per_file: int = Field(default=100_000, ge=1)
    """Samples per file. A run that was interrupted goes on behind the last whole one."""
    bad_samples: BadSamples = BadSamples()
    """When too many unreadable samples stop the run."""
    cache: CacheConfig = CacheConfig()
    """What is kept on the machine's own disk."""
    resources: Resources = Resources()
    """What the run may use; ``workers`` is the number of predicting actors."""
    output: Location
    """Folder for ``predictions/`` and ``result.json``. Running the same job again continues it."""
