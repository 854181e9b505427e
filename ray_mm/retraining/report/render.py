"""A night → its page; all nights → the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_mm import figures
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.tasks import HIGHER_IS_BETTER
from ray_mm.evaluation.report.frame import style, template
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.progress import duration
from ray_mm.retraining.clock import written
from ray_mm.retraining.night import Night
from ray_mm.retraining.outcome import End
from ray_mm.retraining.registry import Registry
from ray_mm.retraining.report.plots import bars_plot, scores_plot
from ray_mm.storage import write_atomic

_HERE = Path(__file__).parent
_MAX_NIGHTS = 365
_MAX_LISTED = 200
_PLACES = {"frozen": "frozen test set", "newest": "newest window"}
WORDS = {
    "promoted": "promoted",
    "refused": "challenger refused",
    "stopped": "stopped",
    "skipped": "nothing to do",
    "abandoned": "given up",
    None: "under way",
}


def write_night(path: Path, job: RetrainJob, night: Night, end: End, found: Mapping[str, Any]) -> None:
    """Writes the page of a night, whole or not at all.

    Args:
        path: of the page.
        job: of the retraining.
        night: with all its notes.
        end: how it ended.
        found: what ``outcome.figures_of`` says.
    """
    arrived, looked, planned = (night.note(name) for name in ("01-arrivals", "02-look", "05-plan"))
    facts = night.facts
    rejected = [{"url": url, "reason": reason} for url, reason in looked.get("rejected", {}).items()]
    rejected += [{"url": each["url"], "reason": each["reason"]} for each in arrived.get("refused", [])]
    notes = {path.stem: night.note(path.stem) for path in (night.folder / "steps").glob("*_on_*.json")}
    reports = [
        {
            "name": f"{'champion' if '-champion' in name else 'challenger'}, {_PLACES[name.rpartition('_')[2]]}",
            "path": _relative(note["report"], path.parent),
        }
        for name, note in sorted(notes.items())
        if note.get("report")
    ]
    content = template("night.html", _HERE).render(
        style=style(_HERE / "retrain.css"),
        name=job.name,
        day=written(facts.until)[:10],
        kicker=f"Night {written(facts.until)[:10]}",
        status=end.status,
        lead=f"{_sentence(end.reason)}",
        tiles=[
            {"name": "Outcome", "text": WORDS[end.status].capitalize(), "note": planned.get("begins_with", "")},
            {"name": "New samples", "text": f"{found['num_samples']:,}", "note": f"in {found['num_shards']:,} shards"},
            {
                "name": "Set aside",
                "text": f"{len(rejected):,}",
                "note": "shards; see below" if rejected else "no shard",
            },
            {"name": "Took", "text": duration(facts.seconds), "note": _starts(facts.starts)},
        ],
        facts=[
            {"name": "Data interval", "text": f"{_time(facts.since)} to {_time(facts.until)}"},
            {"name": "Compared with", "text": "no champion" if facts.champion is None else f"version {facts.champion}"},
            {"name": "Id", "text": facts.id},
            *_lost(planned.get("lost", [])),
        ],
        scores=_score_rows(found),
        gates=_check_rows(night.note("11-gates").get("checks", [])),
        checks=_check_rows(looked.get("checks", [])),
        rejected=rejected[:_MAX_LISTED],
        num_rejected=len(rejected),
        durations=[
            {"name": name.replace("_", " "), "text": f"{seconds:,.1f} s"} for name, seconds in night.durations().items()
        ],
        reports=reports,
    )
    write_atomic(path, content)


def write_history(path: Path, job: RetrainJob, nights: Sequence[Night], registry: Registry) -> None:
    """Writes the page of all nights, whole or not at all.

    Args:
        path: of the page.
        job: of the retraining.
        nights: all, in order.
        registry: of the models.
    """
    rows = [_row(night, path.parent) for night in nights[-_MAX_NIGHTS:]]
    trained = [row for row in rows if row["scores"]]
    metric = next((str(row["metric"]) for row in reversed(trained)), "")
    count = {status: sum(night.facts.status == status for night in nights) for status in WORDS}
    champion = registry.champion()
    told = [f"{number} {WORDS[status]}" for status, number in count.items() if number]
    consumed = sum(int(night.facts.figures.get("num_consumed", 0)) for night in nights)
    last = next((row for row in reversed(trained) if row["status"] == "promoted"), None)
    content = template("history.html", _HERE).render(
        style=style(_HERE / "retrain.css"),
        name=job.name,
        lead=f"{len(nights):,} nights: {', '.join(told)}." if nights else "No night yet.",
        tiles=[
            {
                "name": "Champion",
                "text": "none" if champion is None else f"version {champion}",
                "note": f"before: {_version(registry.previous())}",
            },
            {
                "name": f"Its {figures.label(metric)}" if metric else "Its figure",
                "text": _value(metric, _first(last, "frozen", "challenger")) if last else "–",
                "note": "on the frozen test set, on the night it won",
            },
            {
                "name": "Promotions",
                "text": f"{count['promoted']:,}",
                "note": f"{count['refused']:,} {'challenger' if count['refused'] == 1 else 'challengers'} refused",
            },
            {"name": "Samples taken", "text": f"{consumed:,}", "note": "each once, by the watermark"},
        ],
        metric=metric,
        plots=[
            {"markup": scores_plot(trained, metric, where), "caption": caption} for where, caption in _PLACES.items()
        ]
        if trained
        else [],
        volumes=[
            {"markup": bars_plot(rows, "num_samples", "new samples"), "caption": "new samples that were found good"},
            {"markup": bars_plot(rows, "seconds", "seconds"), "caption": "seconds, over all commands of a night"},
        ]
        if rows
        else [],
        rows=list(reversed(rows)),
        events=[vars(event) for event in reversed(registry.history())],
    )
    write_atomic(path, content)


def _row(night: Night, output: Path) -> dict[str, Any]:
    facts = night.facts
    found = facts.figures
    metric = str(found.get("metric", ""))
    scores = found.get("scores") or {}
    report = night.folder / "report.html"
    return {
        "day": written(facts.until)[:10],
        "time": written(facts.until)[11:16],
        "status": facts.status or "open",
        "word": WORDS.get(facts.status, str(facts.status)),
        "reason": facts.failed or facts.reason,
        "num_samples": found.get("num_samples", 0),
        "num_set_aside": found.get("num_quarantined", 0) + found.get("num_refused", 0),
        "metric": metric,
        "scores": scores,
        "cells": [
            {
                "before": _value(metric, _first_of(scores, where, "champion")),
                "now": _value(metric, _first_of(scores, where, "challenger")),
            }
            for where in ("frozen", "newest")
        ],
        "version": "" if facts.promoted is None else str(facts.promoted),
        "seconds": facts.seconds,
        "took": duration(facts.seconds),
        "starts": facts.starts,
        "report": _relative(str(report), output) if report.exists() else "",
    }


def _first(row: Mapping[str, Any] | None, where: str, who: str) -> float | None:
    return None if row is None else _first_of(row["scores"], where, who)


def _first_of(scores: Mapping[str, Any], where: str, who: str) -> float | None:
    """The figure of the one task; of several that of the first."""
    values = scores.get(where, {}).get(who, {})
    return next(iter(values.values()), None)


def _score_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    metric, scores = found["metric"], found["scores"]
    rows = []
    for where, title in _PLACES.items():
        for task in scores.get(where, {}).get("challenger", {}):
            before, now = (scores[where].get(who, {}).get(task) for who in ("champion", "challenger"))
            name = f"{title}, {task + ' ' if task else ''}{figures.label(metric)}"
            rows.append({"name": name, "before": _value(metric, before), "now": _value(metric, now)})
    return rows


def _check_rows(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": check["criterion"],
            "measured": "not measured"
            if check["measured"] is None
            else figures.plain(check["measured"]).replace("-", "−"),
            "limit": f"{'≤' if check['at_most'] else '≥'} {check['limit']:g}".replace("-", "−"),
            "passed": check["passed"],
        }
        for check in checks
    ]


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return percent(value) if metric in HIGHER_IS_BETTER else figure(value)


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def _time(seconds: float | None) -> str:
    return "the beginning" if seconds is None else written(seconds).replace("T", " ").replace("Z", " UTC")


def _lost(nights: Sequence[str]) -> list[dict[str, str]]:
    if not nights:
        return []
    return [{"name": "Not replayed, as their shards are gone or changed", "text": ", ".join(nights)}]


def _starts(count: int) -> str:
    return "in one go" if count == 1 else f"in {count} starts"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _relative(path: str, folder: Path) -> str:
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return path
