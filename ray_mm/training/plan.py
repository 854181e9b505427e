"""What every worker of a run is told. Small: it travels to all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ray_mm.config.fields import LabelField
from ray_mm.config.tasks import labels_of
from ray_mm.config.train import TrainJob
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import Samples


@dataclass(frozen=True)
class Initial:
    """Where the first weights of some parts of a model come from.

    Attributes:
        path: a checkpoint's folder, absolute.
        moved: part of the model → prefix of its weights in the model, and in the checkpoint.
        shrink: what trained weights from there are multiplied by.
        perturb: what fresh weights are multiplied by before they are added to these.
    """

    path: Path
    moved: Mapping[str, tuple[str, str]]
    shrink: float = 1.0
    perturb: float = 0.0

    @property
    def fields(self) -> list[str]:
        """Inputs whose encoders come from there."""
        return [part.partition(".")[2] for part in self.moved if part.startswith("encoders.")]


@dataclass(frozen=True)
class Training:
    """What every worker of a run is told.

    Attributes:
        job: validated.
        run: the run's folder, on a disk that every node sees.
        train: the samples of an epoch.
        validation: the samples of a validation.
        preprocessor: of the model's fields and its label.
        schedule: the whole training.
        class_counts: label → samples of each class that an epoch draws, on average; of one with any number of classes the share
            of its samples that have each. Only of those whose task asks.
        initial: what it begins with; None: fresh weights, or it has begun already.
    """

    job: TrainJob
    run: Path
    train: Samples
    validation: Samples | None
    preprocessor: Preprocessor
    schedule: Schedule
    class_counts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    initial: Initial | None = None

    @property
    def data_digest(self) -> str:
        """Of all data together: the order of every epoch depends on it."""
        found = [samples.digest for samples in (self.train, self.validation) if samples is not None]
        return hashlib.sha256("\0".join(found).encode()).hexdigest()

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Label that is predicted → its classes; of a number none."""
        labels = {name: self.preprocessor.fields[name] for name in labels_of(self.job.model.task)}
        return {name: spec.classes or () for name, spec in labels.items() if isinstance(spec, LabelField)}

    @property
    def quarantine(self) -> Path:
        """Where bad samples are kept."""
        return self.run / "quarantine"
