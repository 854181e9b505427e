"""The trials of a search → one HTML file."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ray_mm import figures
from ray_mm.config.search import num_combinations, told
from ray_mm.config.tune import AshaMethod, OptunaMethod
from ray_mm.evaluation.report.frame import style, template
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.storage import write_atomic
from ray_mm.tuning.report.plots import curves_plot, key_plot, short_name, value_text
from ray_mm.tuning.table import State, Table, Trial

_HERE = Path(__file__).parent
_WORDS = {
    State.DONE: "trained",
    State.STOPPED: "stopped",
    State.FAILED: "failed",
    State.DIVERGED: "diverged",
    State.BEGUN: "interrupted",
}


def write_report(path: Path, table: Table) -> None:
    """Writes the report, whole or not at all."""
    write_atomic(path, render(table))


def render(table: Table) -> str:
    """The report as HTML; the table has a best trial."""
    job, best = table.job, table.best()
    assert best is not None
    return template("search.html", _HERE).render(
        name=job.name,
        style=style(_HERE / "search.css"),
        lead=_lead(table, best),
        tiles=_tiles(table, best),
        facts=_facts(table),
        key_plots=[{"key": key, "markup": key_plot(table, key)} for key in job.search],
        curves=curves_plot(table),
        best_number=best.number,
        metric=figures.label(job.metric),
        keys=[{"key": key, "name": short_name(key)} for key in job.search],
        rows=[_row(table, trial, trial is best) for trial in table.ranked()],
        reasons=_reasons(table),
        has_stopped=bool(table.count(State.STOPPED)),
        has_failed=any(trial.validations and not trial.counts for trial in table.trials),
    )


def _value(table: Table, value: float) -> str:
    return percent(value) if table.job.higher_is_better else figure(value)


def _best_value(table: Table, trial: Trial) -> float:
    return float(table.best_line(trial)[table.job.metric])


def _lead(table: Table, best: Trial) -> str:
    line = table.best_line(best)
    return (
        f"Trial {best.number} is the best of {len(table.trials)}: {figures.label(table.job.metric)} "
        f"{_value(table, line[table.job.metric])} after epoch {line['epoch']}, with {told(best.settings)}."
    )


def _tiles(table: Table, best: Trial) -> list[dict[str, str]]:
    counted = [trial for trial in table.trials if trial.counts]
    median = statistics.median(_best_value(table, trial) for trial in counted)
    stopped, failed = table.count(State.STOPPED), table.count(State.FAILED, State.DIVERGED)
    epochs = sum(len(trial.validations) for trial in table.trials)
    told_of = [f"{stopped} stopped early"] * bool(stopped) + [f"{failed} failed"] * bool(failed)
    tiles = [
        {
            "name": f"Best {figures.label(table.job.metric)}",
            "text": _value(table, _best_value(table, best)),
            "note": f"trial {best.number}; of the validation that chose it",
        },
        {
            "name": "Median",
            "text": _value(table, median),
            "note": f"of {len(counted)} trials",
        },
        {"name": "Trials", "text": f"{len(table.trials):,}", "note": ", ".join(told_of) or "all trained to the end"},
    ]
    if "train.epochs" not in table.job.search:
        whole = len(table.trials) * table.job.train.train.epochs
        tiles.append({"name": "Epochs", "text": f"{epochs:,}", "note": f"of {whole:,} for all trials in full"})
    return tiles


def _facts(table: Table) -> list[dict[str, str]]:
    job, method = table.job, table.job.method
    notes = {"random": "every trial to its end"}
    if isinstance(method, AshaMethod):
        notes["asha"] = f"one in {method.reduction} goes on, from epoch {method.grace} on"
    if isinstance(method, OptunaMethod):
        notes["optuna"] = f"TPE after {method.startup} trials at random"
    combinations = num_combinations(job)
    validation = job.train.data.validation
    return [
        {"name": "Method", "text": method.name, "note": notes[method.name]},
        {
            "name": "Keys",
            "text": f"{len(job.search)} searched",
            "note": "" if combinations is None else f"{combinations:,} combinations",
        },
        {
            "name": "Validation",
            "text": validation if isinstance(validation, str) else str(validation and validation.path),
            "note": "",
        },
        {
            "name": "Seed",
            "text": str(job.seed),
            "note": f"of the trainings: {job.train.seed}" if "seed" not in job.search else "",
        },
    ]


def _row(table: Table, trial: Trial, best: bool) -> dict[str, Any]:
    line = table.best_line(trial) if trial.validations else {}
    return {
        "number": trial.number,
        "best": best,
        "value": _value(table, line[table.job.metric]) if line else "–",
        "epoch": line.get("epoch", "–"),
        "epochs": len(trial.validations),
        "state": _WORDS[trial.state],
        "css": "stopped" if trial.state is State.STOPPED else "failed" if not trial.counts else "",
        "reason": trial.reason,
        "settings": [value_text(trial.settings[key]) for key in table.job.search],
    }


def _reasons(table: Table) -> list[dict[str, Any]]:
    groups = (("Why {} stopped", (State.STOPPED,)), ("Why {} failed", (State.FAILED, State.DIVERGED)))
    found = []
    for title, states in groups:
        rows = [trial for trial in table.trials if trial.state in states]
        if rows:
            was = "one trial was" if len(rows) == 1 else f"{len(rows)} trials were"
            who = was if State.STOPPED in states else was.rsplit(" ", 1)[0]
            found.append({"title": title.format(who), "rows": rows})
    return found
