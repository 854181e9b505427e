"""The table of a search survives its process, and knows which trial is the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_mm.errors import OutputFolderError
from ray_mm.storage import write_atomic
from ray_mm.tuning.table import State, Table
from tests.tuning.searches import make_table, tune_job, validation


def test_a_table_comes_back_as_it_was_with_the_validations_of_the_runs(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [[0.5, 0.7], [0.9], []], [State.DONE, State.STOPPED, State.BEGUN])
    lines = [validation(1, 0.5), {"kind": "train", "step": 1}, validation(2, 0.6), validation(2, 0.7)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "val'
    write_atomic(table.run(table.trial(1)) / "metrics.jsonl", text)
    again = Table(table.job, table.folder)
    assert again.trials == table.trials
    assert [line["accuracy"] for line in again.trial(1).validations] == [0.5, 0.7], (
        "of an epoch that came twice, the later"
    )
    assert again.trial(2).reason == "because" and again.trial(2).epoch == 1
    assert again.trial(3).folder == "trials/0003"


def test_the_best_is_the_best_of_those_that_can_be_used(tmp_path: Path) -> None:
    curves = [[0.5, 0.8, 0.7], [0.9], [0.85, 0.2], [0.1]]
    table = make_table(tune_job(tmp_path), curves, [State.DONE, State.DIVERGED, State.DONE, State.STOPPED])
    best = table.best()
    assert best is not None and best.number == 3
    assert table.best_line(best)["epoch"] == 1
    assert [trial.number for trial in table.ranked()] == [3, 1, 4, 2]
    assert table.count(State.DONE, State.STOPPED) == 3


def test_of_equals_the_one_with_the_lower_loss_is_the_best_as_in_a_training(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [[], []])
    for number, loss in ((1, 0.3), (2, 0.2)):
        table.add_validation(number, validation(1, 0.9, loss))
    assert [trial.number for trial in table.ranked()] == [2, 1]


def test_values_are_those_after_as_many_epochs(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [[0.5, 0.4, 0.9], []])
    first, second = table.trials
    assert [table.value_after(first, epoch) for epoch in (1, 2, 3, 4)] == [0.5, 0.5, 0.9, None]
    assert (table.value_after(first), table.value_after(second)) == (0.9, None)
    job = tune_job(tmp_path / "loss", **{"job.train.best_metric": "loss"})
    assert Table(job, tmp_path).value_after(first) == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read"),
        ('{"format": "ray_mm.trials", "version": 9, "trials": []}', "has version 9, this ray_mm reads version 1"),
        ('{"format": "ray_mm.trials", "version": 1, "trials": [{"number": 1}]}', "can't be read"),
    ],
)
def test_a_table_that_can_not_be_read_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "trials.json").write_text(content)
    with pytest.raises(OutputFolderError, match=message):
        Table(tune_job(tmp_path), tmp_path)
