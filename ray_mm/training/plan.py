"""What every worker of a run is told. Small: it travels to all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ray_mm.config.train import TrainJob
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import Samples


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
    """

    job: TrainJob
    run: Path
    train: Samples
    validation: Samples | None
    preprocessor: Preprocessor
    schedule: Schedule

    @property
    def data_digest(self) -> str:
        """Of all data together: the order of every epoch depends on it."""
        found = [samples.digest for samples in (self.train, self.validation) if samples is not None]
        return hashlib.sha256("\0".join(found).encode()).hexdigest()

    @property
    def quarantine(self) -> Path:
        """Where bad samples are kept."""
        return self.run / "quarantine"
