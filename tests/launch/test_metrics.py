"""Figures for Prometheus are those of the runs' files, and what Grafana draws is there to be drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ray_mm.config.schedule import JobSchedule
from ray_mm.errors import UsageError
from ray_mm.launch.due import begun, ended, first_state, next_due, write_state
from ray_mm.launch.metrics import exposition, find_runs, serve_metrics

ROOT = Path(__file__).parents[2]
METRICS = ROOT / "cluster" / "metrics"
NIGHTLY = JobSchedule(cron="0 4 * * *", timezone="Europe/Berlin")
NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, a third within one of them, and a schedule."""
    done, going = tmp_path / "digits" / "evaluate", tmp_path / "digits" / "train"
    for folder in (done, going, going / "trials" / "1", going / "quarantine"):
        folder.mkdir(parents=True)
    (done / "job.json").write_text(json.dumps({"kind": "evaluate", "name": 'a "name" \\ with\nmore'}))
    metrics = {"accuracy": 0.5, "f1": {"macro": 0.25}, "by_class": [1, 2], "none": None, "yes": True}
    (done / "result.json").write_text(json.dumps({"status": "done", "seconds": 12.5, "metrics": metrics}))
    for folder in (going, going / "trials" / "1"):
        (folder / "job.json").write_text(json.dumps({"kind": "train", "name": "digits"}))
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": 10, "time": 1.0, "epoch": 1, "loss": 2.0, "data_wait": 0.5},
        {"kind": "validation", "step": 10, "time": 2.0, "epoch": 1, "loss": 1.5, "accuracy": 0.75},
        {"kind": "train", "step": 20, "time": 3.0, "epoch": 2, "loss": float("nan"), "data_wait": 0.25},
    ]
    (going / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    for name in ("a.json", "a.bin", "b.json"):
        (going / "quarantine" / name).write_text("{}")
    first = first_state(NIGHTLY, NOW - timedelta(days=1))
    run = begun(first, next_due(first, NOW), NOW)
    write_state(tmp_path / "digits" / "night.schedule.json", ended(run, 1, NOW, interrupted=False))
    return tmp_path


def figures(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Figure → values of its labels, the run or the schedule first → value."""

    def first(label: str) -> tuple[bool, str]:
        return label not in ("run", "schedule"), label

    return {
        family.name: {
            tuple(sample.labels[name] for name in sorted(sample.labels, key=first)): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


def test_what_runs_and_schedules_say_is_told(runs: Path) -> None:
    found = figures(exposition(runs))
    assert found["ray_mm_run"] == {
        ("digits/evaluate", "evaluate", 'a "name" \\ with\nmore', "done"): 1,
        ("digits/train", "train", "digits", "unfinished"): 1,
    }
    assert found["ray_mm_result"] == {("digits/evaluate", "accuracy"): 0.5, ("digits/evaluate", "f1.macro"): 0.25}
    assert found["ray_mm_run_seconds"] == {("digits/evaluate",): 12.5}
    assert found["ray_mm_train"] == {("digits/train", "data_wait"): 0.25}
    assert found["ray_mm_validation"] == {("digits/train", "loss"): 1.5, ("digits/train", "accuracy"): 0.75}
    assert (found["ray_mm_train_step"], found["ray_mm_train_epoch"]) == (
        {("digits/train",): 20},
        {("digits/train",): 2},
    )
    assert found["ray_mm_quarantined_members"] == {("digits/train",): 2}
    assert found["ray_mm_schedule_last_exit_status"] == {("digits/night",): 1}
    assert found["ray_mm_schedule_running"] == {("digits/night",): 0}
    assert found["ray_mm_schedule_last_end_time_seconds"] == {("digits/night",): NOW.timestamp()}
    assert found["ray_mm_unreadable_files"] == {(): 0}


def test_what_can_not_be_read_is_counted_and_hides_nothing_else(runs: Path) -> None:
    (runs / "digits" / "night.schedule.json").write_text("{")
    (runs / "digits" / "evaluate" / "result.json").write_text("[")
    found = figures(exposition(runs))
    assert found["ray_mm_unreadable_files"] == {(): 2}
    assert set(found["ray_mm_run"]) == {("digits/train", "train", "digits", "unfinished")}
    with pytest.raises(UsageError, match="no such folder"):
        exposition(runs / "nothing")


def test_a_run_is_a_folder_of_runs_as_well_and_those_within_one_are_its_own(runs: Path) -> None:
    assert find_runs(runs) == [runs / "digits" / "evaluate", runs / "digits" / "train"]
    assert set(figures(exposition(runs / "digits" / "train"))["ray_mm_train_step"]) == {("train",)}


def test_prometheus_is_answered(runs: Path) -> None:
    server, thread = serve_metrics(runs, "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
            assert 'ray_mm_train_step{run="digits/train"} 20.0' in answer.read().decode()
        with pytest.raises(UsageError, match="choose another port"):
            serve_metrics(runs, "127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_shows_them_once(runs: Path) -> None:
    command = [sys.executable, "-m", "ray_mm", "metrics", str(runs)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    told, again = figures(done.stdout), figures(exposition(runs))
    assert told == again


def known_names(runs: Path) -> set[str]:
    """Every figure of ours, and those of Ray that its own dashboards draw."""
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels

    rays = set(re.findall(r"\bray_\w+", Path(str(panels.__file__)).read_text()))
    return set(figures(exposition(runs))) | rays


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ray|ray_mm)_[a-z_]+\b", re.sub(r'"[^"]*"', '""', expression)))


def test_what_grafana_draws_is_told_and_its_panels_do_not_overlap(runs: Path) -> None:
    board = json.loads((METRICS / "grafana.json").read_text())
    known, covered = known_names(runs), set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & covered, panel["title"]
        covered |= cells
        assert panel["type"] == "row" or panel["targets"]
        for target in panel.get("targets", []):
            used = names_in(target["expr"])
            assert used and used <= known, (panel["title"], used - known)
            assert target["expr"].count("(") == target["expr"].count(")")
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run"]


def test_alerts_are_about_figures_that_are_told_and_name_a_page_that_is_there(runs: Path) -> None:
    known = known_names(runs)
    (group,) = yaml.safe_load((METRICS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        used = names_in(rule["expr"])
        assert used and used <= known, rule["alert"]
        page = re.search(r"docs/\w+\.md", rule["annotations"]["summary"])
        assert page is not None and (ROOT / page[0]).exists()
    config = yaml.safe_load((METRICS / "prometheus.yml").read_text())
    assert [(METRICS / name).exists() for name in config["rule_files"]] == [True]
    assert {job["job_name"] for job in config["scrape_configs"]} == {"ray_mm", "ray"}
