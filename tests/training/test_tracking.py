"""Metrics are on file at once, and a resumed training takes back what it will do again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_mm.training.tracking import METRICS_FILE, Tracker, read_metrics


def test_lines_are_on_file_before_the_tracker_is_closed(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.write("train", 1, {"epoch": 1, "loss": 0.5})
    (line,) = read_metrics(tmp_path)
    assert abs(line.pop("time") - time.time()) < 600
    assert line == {"kind": "train", "step": 1, "epoch": 1, "loss": 0.5}
    tracker.close()


def test_a_run_without_metrics_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_line_that_was_cut_short_is_left_out_and_not_joined_to_the_next(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.write("train", 1, {"loss": 0.5})
    tracker.close()
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"kind": "train", "step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    tracker = Tracker(tmp_path, 1)
    tracker.write("train", 2, {"loss": 0.4})
    tracker.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_the_last_lines_can_be_read_alone(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    for step in range(1, 100):
        tracker.write("train", step, {"loss": 0.25})
    tracker.close()
    whole = read_metrics(tmp_path)
    size = len((tmp_path / METRICS_FILE).read_bytes())
    found = read_metrics(tmp_path, last_bytes=500)
    assert 5 < len(found) < 15 and found == whole[-len(found) :]
    assert read_metrics(tmp_path, last_bytes=size) == read_metrics(tmp_path, last_bytes=2 * size) == whole
    assert len(read_metrics(tmp_path, last_bytes=size - 1)) == 98
    assert read_metrics(tmp_path, last_bytes=3) == []


def test_a_line_and_a_point_have_the_same_names_and_values(tmp_path: Path) -> None:
    values = {"epoch": 1, "loss": 0.5, "data_wait": 0.25, "queued_batches": 2.0, "first_batch_s": 1.5}
    tracker = Tracker(tmp_path, 0)
    tracker.write("train", 1, values)
    tracker.close()
    (line,) = read_metrics(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    points = {tag.removeprefix("train/"): board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]}
    del line["time"]
    assert points == values and line == {"kind": "train", "step": 1, **values}


def test_what_lies_past_the_step_that_is_resumed_from_is_taken_back(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    for step in range(1, 6):
        tracker.write("train", step, {"loss": 1 / step})
    tracker.write("validation", 5, {"loss": 0.3})
    tracker.close()
    again = Tracker(tmp_path, 3)
    again.write("train", 4, {"loss": 0.44})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, 0.44),
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, pytest.approx(0.44)),
    ]
