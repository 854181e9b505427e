"""Any job → its result: of one stage, or a retraining, which is made of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mm.config.load import Job, load_job
from ray_mm.config.retrain import RetrainJob
from ray_mm.errors import UsageError
from ray_mm.stages import run_stage


def run_job(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    resume: str = "exact",
) -> dict[str, Any]:
    """Loads a job and runs it.

    Args:
        source: a job file, or its content.
        overrides: dotted key → value.
        address: of a Ray cluster. None: a private Ray on this machine.
        resume: ``exact``, or ``force``: a training goes on in its folder although settings have changed.

    Returns:
        The content of ``result.json``.

    Raises:
        UsageError: the job is wrong; nothing was started.
        GateRefused: the gate of a compression said no, or that of a retraining.
        RayMMError: the run failed.
    """
    return run_loaded(load_job(source, overrides), address, resume)


def run_loaded(job: Job, address: str | None = None, resume: str = "exact") -> dict[str, Any]:
    """Runs a loaded job; see ``run_job``."""
    if not isinstance(job, RetrainJob):
        return run_stage(job, address, resume)
    if resume != "exact":
        raise UsageError(f"--resume {resume}: a retraining goes on with its night by itself; leave the option out.")
    from ray_mm.retraining.retrain import run_retrain

    return run_retrain(job, address)
