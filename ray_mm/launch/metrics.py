"""``ray-mm metrics RUNS``: folders of runs → figures for Prometheus, read anew whenever somebody asks.

Nothing of it runs in a training: it reads what every run writes anyhow, wherever that runs, and also says how schedules stand.

    ray_mm_run                         1 for every run, with its kind, name and status
    ray_mm_run_updated_time_seconds    when it last wrote something
    ray_mm_train, ray_mm_validation    the newest figures of metrics.jsonl
    ray_mm_result                      the figures of result.json
    ray_mm_schedule_…                  when a schedule comes, and what became of its last run
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_mm.errors import UsageError
from ray_mm.launch.due import ScheduleState, next_due, utc_now
from ray_mm.training.tracking import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_TAIL_BYTES = 256 << 10
_DEPTH = 4
_MOST_RUNS = 2000
_NOT_FIGURES = ("kind", "step", "epoch", "time")
_SCHEDULE = ".schedule.json"


class RunsCollector:
    """Figures of all runs below a folder. A file that can't be read is counted, and keeps nothing else from being told.

    Args:
        runs: the folder, or one run.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' client asks for it."""
        from prometheus_client.core import GaugeMetricFamily as Gauge

        of_run = ["run"]
        run = Gauge(
            "ray_mm_run", "A run; status: that of its result, or unfinished.", labels=["run", "kind", "name", "status"]
        )
        updated = Gauge("ray_mm_run_updated_time_seconds", "When it last wrote something, since 1970.", labels=of_run)
        seconds = Gauge("ray_mm_run_seconds", "What a run that has ended took.", labels=of_run)
        step = Gauge("ray_mm_train_step", "Optimizer steps that are done.", labels=of_run)
        epoch = Gauge("ray_mm_train_epoch", "The epoch, from 1.", labels=of_run)
        train = Gauge("ray_mm_train", "Newest figure of the training.", labels=["run", "figure"])
        validation = Gauge("ray_mm_validation", "Newest figure of the validation.", labels=["run", "figure"])
        result = Gauge("ray_mm_result", "Figure of the run's result.", labels=["run", "figure"])
        aside = Gauge(
            "ray_mm_quarantined_members", "Members that could not be read, and are kept aside.", labels=of_run
        )
        unreadable = 0
        for folder in find_runs(self._runs):
            label = self._label(folder)
            try:
                job, outcome, lines = (
                    _read(folder / "job.json"),
                    _read(folder / "result.json"),
                    read_metrics(folder, _TAIL_BYTES),
                )
            except (OSError, ValueError):
                unreadable += 1
                continue
            status = str(outcome.get("status", "unfinished"))
            run.add_metric([label, str(job.get("kind")), str(job.get("name")), status], 1)
            updated.add_metric([label], _updated(folder))
            if isinstance(outcome.get("seconds"), (int, float)):
                seconds.add_metric([label], outcome["seconds"])
            for name, value in _numbers(outcome.get("metrics")):
                result.add_metric([label, name], value)
            newest = {line.get("kind"): line for line in lines if isinstance(line, dict)}
            for kind, family in (("train", train), ("validation", validation)):
                for name, value in _numbers(newest.get(kind)):
                    if name not in _NOT_FIGURES:
                        family.add_metric([label, name], value)
            for name, family in (("step", step), ("epoch", epoch)):
                reached = newest.get("train", {}).get(name)
                if isinstance(reached, (int, float)):
                    family.add_metric([label], reached)
            with contextlib.suppress(OSError):
                aside.add_metric(
                    [label], sum(entry.name.endswith(".json") for entry in os.scandir(folder / "quarantine"))
                )
        schedules, damaged = self._schedules()
        problems = Gauge("ray_mm_unreadable_files", "Files of runs and schedules that could not be read.")
        problems.add_metric([], unreadable + damaged)
        yield from (run, updated, seconds, step, epoch, train, validation, result, aside, *schedules, problems)

    def _schedules(self) -> tuple[list[Metric], int]:
        from prometheus_client.core import GaugeMetricFamily as Gauge

        labels = ["schedule"]
        comes = Gauge(
            "ray_mm_schedule_next_time_seconds", "When it comes next, or came and is due, since 1970.", labels=labels
        )
        running = Gauge("ray_mm_schedule_running", "1 while a run has begun and not ended.", labels=labels)
        ended = Gauge("ray_mm_schedule_last_end_time_seconds", "When its last run ended, since 1970.", labels=labels)
        status = Gauge("ray_mm_schedule_last_exit_status", "Exit status of its last run.", labels=labels)
        damaged = 0
        for path in sorted(_files(self._runs, _SCHEDULE)):
            try:
                state = ScheduleState.model_validate_json(path.read_text(encoding="utf-8"))
                due = next_due(state, utc_now())
            except (OSError, ValueError, TypeError):
                damaged += 1
                continue
            label = [self._label(path.with_name(path.name.removesuffix(_SCHEDULE)))]
            comes.add_metric(label, due.planned.timestamp())
            running.add_metric(label, state.running is not None)
            last = state.runs[-1] if state.runs else None
            if last is not None and last.ended is not None and last.exit_status is not None:
                ended.add_metric(label, last.ended.timestamp())
                status.add_metric(label, last.exit_status)
        return [comes, running, ended, status], damaged

    def _label(self, folder: Path) -> str:
        return folder.name if folder == self._runs else folder.relative_to(self._runs).as_posix()


def find_runs(runs: Path) -> list[Path]:
    """Folders of runs in and below a folder; not those within a run, such as the trials of a search."""
    found: list[Path] = []
    for folder, below, files in os.walk(runs):
        depth = len(Path(folder).relative_to(runs).parts)
        if "job.json" in files:
            found.append(Path(folder))
            below.clear()
        elif depth >= _DEPTH:
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
        if len(found) >= _MOST_RUNS:
            break
    return found


def exposition(runs: Path) -> str:
    """All figures in Prometheus' text format.

    Raises:
        UsageError: there is no such folder.
    """
    from prometheus_client import generate_latest

    return generate_latest(_registry(runs)).decode()


def serve_metrics(runs: Path, host: str, port: int) -> tuple[Any, Any]:
    """Answers Prometheus at ``http://HOST:PORT/metrics``.

    Args:
        runs: folder of runs.
        host: address to listen at.
        port: likewise; 0: a free one.

    Returns:
        The server and its thread.

    Raises:
        UsageError: there is no such folder, or the port is taken.
    """
    from prometheus_client import start_http_server

    try:
        return start_http_server(port, host, _registry(runs))
    except OSError as error:
        raise UsageError(
            f"--port {port}: {host} can't be listened at ({error.strerror}); choose another port."
        ) from None


def _registry(runs: Path) -> Any:
    from prometheus_client import CollectorRegistry

    if not runs.is_dir():
        raise UsageError(f"{runs}: no such folder; name the one that the runs' folders lie in.")
    registry = CollectorRegistry()
    registry.register(RunsCollector(runs))
    return registry


def _files(runs: Path, suffix: str) -> Iterator[Path]:
    for folder, below, files in os.walk(runs):
        if "job.json" in files or len(Path(folder).relative_to(runs).parts) >= _DEPTH:
            below.clear()
        yield from (Path(folder) / name for name in files if name.endswith(suffix))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no mapping")
    return content


def _updated(folder: Path) -> float:
    times = [0.0]
    for name in ("job.json", "result.json", METRICS_FILE, ".seconds"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def _numbers(content: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", value
