"""A result → short texts and tables, for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_mm.storage import local_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ray_mm.data.quarantine import Quarantined
    from ray_mm.launch.submit import Status

_PLACES = ("report.html", "predictions.parquet", "best", "artifact")
"""What a run may leave in its folder that one looks for first."""


def read_result(output: str) -> dict[str, Any]:
    """``result.json`` of a run's folder; empty where there is none."""
    try:
        content = json.loads((local_path(output) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def result_parts(result: Mapping[str, Any], output: str) -> Iterator[RenderableType]:
    """The metrics of a run, and where its files are."""
    from rich.table import Table

    if result:
        yield f"{result.get('kind')} {result.get('name')}: {result.get('status')} in {result.get('seconds', 0):.1f} s"
    metrics = result.get("metrics") or {}
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in metrics.items():
        if not isinstance(value, (Mapping, list)):
            table.add_row(name.replace("_", " "), _text(value))
    if table.row_count:
        yield table
    subsets = metrics.get("subsets")
    if isinstance(subsets, Mapping) and subsets:
        yield _subset_table(subsets)
    folder = local_path(output)
    yield f"output: {folder}"
    for place in [*_PLACES, *sorted(path.parent.name for path in folder.glob("*/dataset.json"))]:
        if (folder / place).exists():
            yield f"        {folder / place}"


def quarantine_table(members: Sequence[tuple[Quarantined, Sequence[str]]], more: Sequence[str]) -> RenderableType:
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


def _subset_table(subsets: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table

    columns = [name for name, value in next(iter(subsets.values())).items() if not isinstance(value, (Mapping, list))]
    table = Table("fields", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for subset, values in subsets.items():
        table.add_row(subset, *(_text(values.get(column)) for column in columns))
    return table


def titled_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A table of texts; columns of numbers are set right."""
    from rich.table import Table

    rows = list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, name in enumerate(header):
        numeric = all(row[column][:1].isdigit() or row[column] in ("", "–") for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def status_table(statuses: Iterable[Status]) -> RenderableType:
    """How submitted jobs stand."""
    from rich.table import Table

    table = Table("id", "state", "started", "seconds", "message", box=None, pad_edge=False)
    for status in statuses:
        started = status.started.strftime("%Y-%m-%d %H:%M:%S") if status.started else "–"
        seconds = f"{status.seconds:,.0f}" if status.seconds is not None else "–"
        table.add_row(status.id, status.state.lower(), started, seconds, status.message)
    return table


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
