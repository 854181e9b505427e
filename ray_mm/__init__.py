"""Train one fusion model over image, text, audio, sensor series and point clouds in WebDataset tars, on Ray.

    import ray_mm
    ray_mm.run("jobs/avdigits/train.yaml", overrides={"train.epochs": 3})
    ray_mm.load("runs/avdigits/train").predict({"image": "seven.png"})

Nothing heavy is imported until one of these is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_mm.version import __version__

if TYPE_CHECKING:
    from ray_mm.predictor import Predictor

__all__ = ["__version__", "load", "run"]


def run(
    job: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, address: str | None = None
) -> dict[str, Any]:
    """Runs a job here, or on the cluster at ``address``, and returns the content of its ``result.json``.

    Args:
        job: a job file, or its content.
        overrides: dotted key → value, such as ``{"train.epochs": 3}``.
        address: of a Ray cluster. None: a private Ray on this machine.

    Raises:
        UsageError: the job is wrong; nothing was started.
        GateRefused: a compress job's gate said no.
        RayMMError: the run failed.
    """
    from ray_mm.running import run_job

    return run_job(job, overrides, address)


def load(path: str | Path) -> Predictor:
    """Loads a checkpoint or an artifact for prediction, without Ray.

    Args:
        path: a train run (its best checkpoint), a checkpoint folder, a compress run or an artifact folder; or the name of a
            model in a registry, such as ``registry:runs/registry#driving@champion``.

    Raises:
        CheckpointError: nothing there that can be loaded.
    """
    from ray_mm.predictor import load_predictor

    return load_predictor(path)
