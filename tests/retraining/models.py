"""Small checkpoints and their lineage."""

from __future__ import annotations

from pathlib import Path

from ray_mm.checkpoint import save_checkpoint
from ray_mm.retraining.registry import Lineage
from tests.models.batches import model_config, preprocessor_of, seeded_model

CONFIG = model_config(["vector"])


def write_checkpoint(folder: Path, accuracy: float = 0.5) -> Path:
    """A checkpoint of a tiny model; another accuracy makes other files."""
    folder.mkdir(parents=True)
    model = seeded_model(CONFIG)
    save_checkpoint(folder, model.state_dict(), CONFIG, preprocessor_of(CONFIG), {"accuracy": accuracy})
    return folder


def lineage(run: str, parent: int | None = None) -> Lineage:
    """Of a run."""
    return Lineage(run, "driving", "sha256:data", "abc123", {"accuracy": 0.5}, parent)
