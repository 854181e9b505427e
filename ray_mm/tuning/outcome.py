"""A finished search → ``result.json``, ``best.yaml`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ray_mm import figures
from ray_mm.config.read import read_value
from ray_mm.config.search import trial_content
from ray_mm.config.tune import TuneJob
from ray_mm.errors import RayMMError
from ray_mm.run_folder import RunFolder
from ray_mm.storage import write_atomic
from ray_mm.tuning.report.render import write_report
from ray_mm.tuning.table import State, Table, Trial

BEST_JOB = "best.yaml"
_WINNER = "winner"
"""Folder, below that of the search, that the best job trains into."""


def write_outcome(folder: RunFolder, table: Table) -> dict[str, Any]:
    """Writes what a search has found.

    Returns:
        The content of ``result.json``.

    Raises:
        RayMMError: no trial was trained.
    """
    job, best = table.job, table.best()
    if best is None:
        reasons = {trial.reason for trial in table.trials}
        raise RayMMError(f"none of the {len(table.trials)} trials was trained: {'; '.join(sorted(reasons))}")
    line = table.best_line(best)
    write_atomic(folder.path / BEST_JOB, best_job(job, table, best))
    metrics = {
        "best_trial": best.number,
        job.metric: line[job.metric],
        "best_epoch": line["epoch"],
        "num_trials": len(table.trials),
        "num_stopped": table.count(State.STOPPED),
        "num_failed": table.count(State.FAILED, State.DIVERGED),
        "num_epochs": sum(len(trial.validations) for trial in table.trials),
    }
    write_report(folder.path / "report.html", table)
    run = table.run(best)
    checkpoint = run / ("best" if (run / "best").is_dir() else "last")
    return folder.write_result(
        "done",
        metrics,
        metric=job.metric,
        best={"settings": best.settings, "job": str(folder.path / BEST_JOB), "checkpoint": str(checkpoint)},
        trials=[_row(table, trial) for trial in table.ranked()],
    )


def best_job(job: TuneJob, table: Table, best: Trial) -> str:
    """The best trial as a job file: what the train job says, with its settings, and an output of its own."""
    line = table.best_line(best)
    content = trial_content(job, best.settings, f"{job.output}/{_WINNER}")
    file = Path(job.output) / BEST_JOB
    return (
        f"# ray-mm run {file}\n"
        f"# Trial {best.number} of the search {job.name}: {figures.label(job.metric)} "
        f"{figures.text(job.metric, line[job.metric])} after epoch {line['epoch']}, the best of {len(table.trials)} trials.\n"
        + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    )


class _Dumper(yaml.SafeDumper):
    """PyYAML writes YAML 1.1; a text that our YAML 1.2 would take for something else is put in quotes."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    try:
        same = read_value(value) == value
    except (yaml.YAMLError, ValueError):
        same = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if same else '"')


_Dumper.add_representer(str, _text)


def _row(table: Table, trial: Trial) -> dict[str, Any]:
    line = table.best_line(trial) if trial.validations else {}
    return {
        "trial": trial.number,
        "state": trial.state.value,
        "value": line.get(table.job.metric),
        "best_epoch": line.get("epoch"),
        "epochs": len(trial.validations),
        "settings": trial.settings,
        "reason": trial.reason,
    }
