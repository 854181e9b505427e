"""``kind: evaluate``: a checkpoint or an artifact, and a dataset → metrics, predictions and a report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_mm.config.base import BadSamples, Config, Location, Name, Resources
from ray_mm.config.cache import CacheConfig
from ray_mm.config.source import AnySource


class EvaluateJob(Config):
    """Scores a model on a dataset, with every subset of its fields."""

    kind: Literal["evaluate"]
    name: Name
    """Of the run, as its reports and results show it."""
    checkpoint: Location
    """A train run (its best checkpoint is taken), a checkpoint folder, a compress run or an artifact folder; or a model
    by its name in a registry, ``registry:ROOT#NAME@champion``."""
    data: AnySource
    """The dataset: its folder, or a section that says which part of it."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per forward pass."""
    subsets: Literal["all", "full"] = "all"
    """``all``: every non-empty subset of the input fields. ``full``: only all fields together."""
    examples: int = Field(default=12, ge=0, le=100)
    """How many of the worst and of the best samples the report shows."""
    bad_samples: BadSamples = BadSamples()
    """When too many unreadable samples stop the run."""
    cache: CacheConfig = CacheConfig()
    """What is kept on the machine's own disk."""
    resources: Resources = Resources()
    """What the run may use; ``workers`` is the number of scoring actors."""
    output: Location
    """Folder for ``result.json``, ``predictions.parquet`` and ``report.html``."""
