"""A result → short texts and tables, for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_mm import figures
from ray_mm.progress import duration
from ray_mm.storage import local_path
from ray_mm.training import explain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ray_mm.data.quarantine import Quarantined
    from ray_mm.launch.jobs import Status
    from ray_mm.training.explain import Examined

_PLACES = ("report.html", "history.html", "best.yaml", "predictions.parquet", "predictions", "best", "artifact")
"""What a run may leave in its folder that one looks for first."""

_MAX_TRIALS = 20
_MAX_CLASSES = 20


def read_result(output: str) -> dict[str, Any]:
    """``result.json`` of a run's folder; empty where there is none."""
    try:
        content = json.loads((local_path(output) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def result_parts(result: Mapping[str, Any], output: str) -> Iterator[RenderableType]:
    """What a run came to, and where its files are."""
    metrics = result.get("metrics") or {}
    if result:
        yield _headline(result)
    yield from _figures(metrics)
    match result.get("kind"):
        case "preprocess":
            yield from _preprocess_tables(metrics)
        case "compress":
            # Of a refusal, the error tells what the gate said.
            yield from _compress_tables(metrics, with_gate=result.get("status") != "refused")
        case "tune":
            yield from _trial_table(result)
        case "predict":
            yield from _predicted_table(result)
        case "retrain":
            yield from _night_parts(result)
    ways = metrics.get("ways")
    if isinstance(ways, Mapping) and ways:
        yield _table_of(ways, "searched by, among")
    subsets = metrics.get("subsets")
    # Of one subset, all fields, the figures stand above.
    if isinstance(subsets, Mapping) and (len(subsets) > 1 or not ways) and subsets:
        yield _table_of(subsets, "with only these fields")
    tasks = metrics.get("tasks")
    for name, of_task in tasks.items() if isinstance(tasks, Mapping) else ():
        yield f"{name}:"
        yield from _figures(of_task)
        if len(of_task.get("subsets") or {}) > 1:
            yield _table_of(of_task["subsets"], f"{name} with only these fields")
    for part, title in (("fields", "field, in the best validation"), ("baselines", "a model of this field alone")):
        rows = metrics.get(part)
        # In other kinds of result these may be something else.
        if result.get("kind") == "train" and isinstance(rows, Mapping) and rows:
            yield _table_of(rows, title)
    yield from _places(local_path(output), tasks if isinstance(tasks, Mapping) else ())


def _headline(result: Mapping[str, Any]) -> str:
    run, seconds = f"{result.get('kind')} {result.get('name')}", result.get("seconds", 0)
    if result.get("status") == "unchanged":
        return f"{run}: finished already (it took {seconds:.1f} s); nothing was done"
    return f"{run}: {result.get('status')} in {seconds:.1f} s"


def _figures(metrics: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    intervals = metrics.get("interval") or {}
    for name, value in metrics.items():
        if not isinstance(value, (Mapping, list)):
            row = [figures.label(name), figures.text(name, value)]
            if name in intervals:
                low, high = (figures.text(name, edge) for edge in intervals[name])
                row.append(f"95% interval {low} to {high}")
            table.add_row(*row)
    if table.row_count:
        yield table


def _preprocess_tables(metrics: Mapping[str, Any]) -> Iterator[RenderableType]:
    counts, absent, unusable = (metrics.get(key) or {} for key in ("num_samples", "num_absent", "num_unusable"))
    if counts:
        yield titled_table("samples", ("split", "samples"), [(split, f"{n:,}") for split, n in counts.items()])
    if absent:
        rows = [(field, f"{n:,}", f"{unusable.get(field, 0):,}") for field, n in absent.items()]
        yield titled_table("fields", ("field", "samples without it", "cells that can't be used"), rows)


def _compress_tables(metrics: Mapping[str, Any], with_gate: bool) -> Iterator[RenderableType]:
    checks = metrics.get("checks")
    if checks and with_gate:
        rows = [
            (
                check["criterion"],
                figures.text("", check["measured"]),
                f"{'≤' if check['at_most'] else '≥'} {figures.plain(check['limit'])}",
                "met" if check["passed"] else "missed",
            )
            for check in checks
        ]
        yield titled_table("gate", ("criterion", "measured", "limit", ""), rows)
    latencies = metrics.get("latency")
    if latencies:
        speedups = metrics.get("speedups_p50") or {}
        rows = [
            (
                batch_size,
                f"{found['original_p50_ms']:.2f} ms",
                f"{found['artifact_p50_ms']:.2f} ms",
                figures.text("speedup_p50", speedups.get(batch_size)),
            )
            for batch_size, found in latencies.items()
        ]
        yield titled_table("median latency", ("batch size", "original", "compressed", "speed-up"), rows)


def _predicted_table(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """How often each class was predicted, the most frequent first."""
    counts, total = result.get("classes") or {}, (result.get("metrics") or {}).get("num_predicted")
    if any(isinstance(of_task, Mapping) for of_task in counts.values()):
        for task, of_task in counts.items():
            yield f"{task}:"
            yield from _predicted_table({**result, "classes": of_task})
        return
    ranked = sorted(counts.items(), key=lambda one: -one[1])
    rows = [(name, f"{count:,}", figures.percent(count / total)) for name, count in ranked[:_MAX_CLASSES] if total]
    if rows:
        most = f"the {_MAX_CLASSES} of {len(ranked):,} classes predicted most"
        yield titled_table("predicted" if len(rows) == len(ranked) else most, ("class", "samples", "share"), rows)


def _trial_table(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The best trials, and why others ended before they should."""
    trials, metric = result.get("trials") or [], str(result.get("metric"))
    keys = list(trials[0]["settings"]) if trials else []
    rows = [
        (
            str(trial["trial"]),
            figures.text(metric, trial["value"]),
            str(trial["epochs"]),
            trial["state"],
            *(_setting(trial["settings"].get(key)) for key in keys),
        )
        for trial in trials[:_MAX_TRIALS]
    ]
    names = [".".join(key.split(".")[-2:]) for key in keys]
    if rows:
        title = "trials" if len(trials) <= _MAX_TRIALS else f"the best {_MAX_TRIALS} of {len(trials):,} trials"
        yield titled_table(title, ("trial", figures.label(metric), "epochs", "", *names), rows)
    failed = [(str(trial["trial"]), trial["reason"]) for trial in trials if trial["state"] in ("failed", "diverged")]
    if failed:
        yield titled_table("failed", ("trial", "why"), failed)


def _night_parts(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What a night came to: why, and what both models reached."""
    metrics, names = result.get("metrics") or {}, {"frozen": "frozen test set", "newest": "newest window"}
    metric = str(metrics.get("metric"))
    rows = []
    for where, models in (metrics.get("scores") or {}).items():
        for task, value in (models.get("challenger") or {}).items():
            before = (models.get("champion") or {}).get(task)
            name = names.get(where, where) + (f", {task}" if task else "")
            rows.append((name, figures.text(metric, before), figures.text(metric, value)))
    if rows:
        yield titled_table(figures.label(metric), ("", "champion", "challenger"), rows)
    yield f"{result.get('reason')}; in use: {_in_use(result.get('champion'))}"
    yield f"report: {result.get('report')}"


def _in_use(version: Any) -> str:
    return "no version yet" if version is None else f"version {version}"


def _setting(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, list)) else figures.text("", value)


def _places(folder: Path, tasks: Iterable[str] = ()) -> Iterator[str]:
    yield f"output: {folder}"
    datasets = sorted(path.parent.name for path in folder.glob("*/dataset.json"))
    for place in [*_PLACES, *(f"{task}/report.html" for task in tasks), *datasets]:
        if (folder / place).exists():
            yield f"        {folder / place}"
    quarantine = folder / "quarantine"
    if quarantine.is_dir() and any(quarantine.iterdir()):
        yield f"        {quarantine}: samples that can't be read, and why"
    if (folder / "unusable.jsonl").is_file():
        yield f"        {folder / 'unusable.jsonl'}: cells that can't be used, and why"


def listed_quarantine(of: str, runs: Path) -> Iterator[RenderableType]:
    """What was set aside; the errors are those of ``open_quarantine``.

    Args:
        of: a run, its quarantine, or a dataset.
        runs: of a dataset: where its runs lie.
    """
    from ray_mm.data.replay import datasets_at, open_quarantine

    members = open_quarantine(of, runs)
    if datasets_at(of):
        places = [str(member.path.parent.parent.relative_to(local_path(runs))) for member in members]
        yield _quarantine_table([(member, (place,)) for member, place in zip(members, places, strict=True)], ("run",))
    else:
        yield _quarantine_table([(member, ()) for member in members], ())
    yield from _about_dataset(of, runs)


def replayed_quarantine(of: str, runs: Path) -> Iterator[RenderableType]:
    """What became of it; arguments and errors are those of ``listed_quarantine``."""
    from ray_mm.data.replay import replay_quarantine

    def verdict(reason: str | None, before: str) -> str:
        return "can be read" if reason is None else "as before" if reason == before else reason

    rows = [
        (one.member, tuple(verdict(reason, one.member.error.reason) for reason in (one.kept, one.now)))
        for one in replay_quarantine(of, runs)
    ]
    yield _quarantine_table(rows, ("as kept", "in its shard now"))
    yield from _about_dataset(of, runs)


def _about_dataset(of: str, runs: Path) -> Iterator[RenderableType]:
    """Where runs on a dataset were looked for, and what was left out when it was made; nothing where ``of`` is none."""
    from ray_mm.data.replay import datasets_at, left_out, quarantines_in

    if not datasets_at(of):
        return
    count = len(quarantines_in(runs))
    where = f"{local_path(runs)}{'' if runs.is_dir() else ', which is not there'}"
    yield f"looked into {count:,} quarantine{'' if count == 1 else 's'} below {where}; --runs names another folder"
    found = left_out(of)
    if found:
        yield ""
        what, place = ("cells", "row") if found[0].row is not None else ("members", "shard")
        rows = [(one.shard if one.row is None else f"{one.row:,}", one.key, one.field, one.reason) for one in found]
        title = f"{what} that preprocess left out, in all splits; to try them again, run that job with another output"
        yield titled_table(title, (place, "key", "field", "reason"), rows)


def _quarantine_table(members: Sequence[tuple[Quarantined, Sequence[str]]], more: Sequence[str]) -> RenderableType:
    """Quarantined members, a row each.

    Args:
        members: each with its cells of further columns.
        more: names of these columns.
    """
    from rich.table import Table

    if not members:
        return "nothing was quarantined"
    table = Table("dataset", "shard", "key", "field", "reason", *more, box=None, pad_edge=False)
    for member, cells in members:
        error = member.error
        table.add_row(member.dataset, error.shard, error.key, error.field, error.reason, *cells)
    return table


def _table_of(rows: Mapping[str, Mapping[str, Any]], title: str) -> RenderableType:
    from rich.table import Table

    columns = [name for name, value in next(iter(rows.values())).items() if not isinstance(value, (Mapping, list))]
    table = Table(title, box=None, pad_edge=False)
    for column in columns:
        table.add_column(figures.label(column), justify="right")
    for name, values in rows.items():
        table.add_row(name, *(figures.text(column, values.get(column)) for column in columns))
    return table


def examined_parts(found: Examined) -> Iterator[RenderableType]:
    """The stages of a training, each alone, which of them limits it, and how long it will take."""
    measured, diagnosis = found.measured, found.diagnosis
    yield ""
    table = [
        (
            row.stage,
            "–" if row.samples_per_s is None else figures.rate(row.samples_per_s),
            row.per,
            "" if row.bytes_per_s is None else f"{figures.size(row.bytes_per_s)}/s",
            row.told,
        )
        for row in explain.rows(measured)
    ]
    title = f"{found.name}: each stage alone, about {found.seconds:g} s each"
    yield titled_table(title, ("stage", "samples", "per", "bytes", ""), table)
    yield explain.sentence(measured, diagnosis)
    yield (
        f"about {figures.rate(diagnosis.predicted)} in all: {duration(diagnosis.epoch_s)} an epoch, {duration(diagnosis.run_s)} "
        "the run"
    )
    for note in explain.notes(measured):
        yield f"- {note}"


def titled_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A table of texts; columns of numbers are set right."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(header):
        numeric = all(row[column][:1].isdigit() or row[column] in ("", "–") for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A title of the table itself would be broken at the width of a narrow one.
    return Group(Text(title, style="bold"), table)


def status_table(statuses: Iterable[Status]) -> RenderableType:
    """How submitted jobs stand."""
    from rich.table import Table

    table = Table("id", "state", "started", "seconds", "message", box=None, pad_edge=False)
    for status in statuses:
        started = status.started.strftime("%Y-%m-%d %H:%M:%S") if status.started else "–"
        seconds = f"{status.seconds:,.0f}" if status.seconds is not None else "–"
        table.add_row(status.id, status.state.lower(), started, seconds, status.message)
    return table
