"""Who becomes the champion: everything met, nothing assumed."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mm.config.load import load_job
from ray_mm.config.retrain import Gates, Limits, RetrainJob
from ray_mm.retraining.gates import Scores, figures_of, judge
from tests.config.jobs import SMALLEST

LOOSE = Gates(frozen=Limits(min_gain=-1), newest=Limits(min_gain=-1))


def task(**settings: Any) -> Any:
    job = load_job(SMALLEST["retrain"], {f"base.model.task.{key}": value for key, value in settings.items()})
    assert isinstance(job, RetrainJob)
    return job.train.model.task


def accuracy(value: float | None, **subsets: float) -> dict[str, Any]:
    return {"accuracy": value, "subsets": {name: {"accuracy": each} for name, each in subsets.items()}}


def missed(
    scores: dict[str, Scores], gates: Gates = LOOSE, of: Any = None, compressed: bool | None = None
) -> list[str]:
    return [check.criterion for check in judge(scores, gates, of or task(), compressed).missed]


def both(challenger: Any, champion: Any) -> dict[str, Scores]:
    return {"frozen": Scores(challenger, champion), "newest": Scores(challenger, champion)}


def test_a_gain_that_is_asked_for_must_be_there_to_the_digit() -> None:
    gates = Gates(frozen=Limits(min_gain=0.01), newest=Limits(min_gain=-0.02))
    assert missed(both(accuracy(0.98), accuracy(0.97)), gates) == []
    assert missed(both(accuracy(0.97), accuracy(0.97)), gates) == ["frozen: accuracy, gain"]
    assert missed(both(accuracy(0.95), accuracy(0.97)), gates) == ["frozen: accuracy, gain"]
    assert missed(both(accuracy(0.94), accuracy(0.97)), gates) == ["frozen: accuracy, gain", "newest: accuracy, gain"]


def test_every_subset_is_judged_and_one_that_was_not_measured_is_missed() -> None:
    gates = Gates(frozen=Limits(min_gain=-1, max_drop_subset=0.05), newest=Limits(min_gain=-1))
    before = accuracy(0.9, image=0.8, text=0.6, **{"image+text": 0.9})
    assert missed(both(accuracy(0.9, image=0.75, text=0.7), before), gates) == []
    assert missed(both(accuracy(0.9, image=0.74, text=0.7), before), gates) == [
        "frozen: accuracy, drop with only image"
    ]
    assert missed(both(accuracy(0.9, image=0.8), before), gates) == ["frozen: accuracy, drop with only text"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "much"])
def test_what_is_no_number_is_missed(value: Any) -> None:
    assert missed(both(accuracy(value), accuracy(0.5))) == ["frozen: accuracy, gain", "newest: accuracy, gain"]
    assert missed(both(accuracy(0.5), accuracy(value))) == ["frozen: accuracy, gain", "newest: accuracy, gain"]
    assert missed(both(accuracy(value), None)) == ["frozen: accuracy is measured", "newest: accuracy is measured"]


def test_a_dataset_that_was_not_scored_is_missed() -> None:
    assert missed({"frozen": Scores(accuracy(0.9), accuracy(0.5))}) == ["newest: accuracy is measured"]


def test_the_first_challenger_is_judged_by_itself() -> None:
    gates = Gates(frozen=Limits(at_least=0.8), newest=Limits(min_gain=0.5))
    assert missed(both(accuracy(0.8), None), gates) == []
    assert missed(both(accuracy(0.79), None), gates) == ["frozen: accuracy"]


def test_errors_are_relative_and_the_lowest_is_best() -> None:
    regress = task(type="regress", label="label")
    gates = Gates(frozen=Limits(min_gain=-0.1, at_least=2.5), newest=Limits(min_gain=0.1))
    assert missed(both({"rmse": 1.8}, {"rmse": 2.0}), gates, regress) == []
    assert missed(both({"rmse": 2.19}, {"rmse": 2.0}), gates, regress) == ["newest: rmse, gain"]
    assert missed(both({"rmse": 2.6}, {"rmse": 3.0}), gates, regress) == ["frozen: rmse"]
    other = gates.model_copy(update={"metric": "mae"})
    assert missed(both({"rmse": 9.0, "mae": 1.0}, {"rmse": 1.0, "mae": 2.0}), other, regress) == []


def test_each_of_several_tasks_must_be_met() -> None:
    tasks = {"kind": {"type": "classify", "label": "label"}, "far": {"type": "regress", "label": "distance"}}
    content = {**SMALLEST["retrain"], "base": {**SMALLEST["retrain"]["base"]}}
    content["base"]["model"] = {"fields": {"image": {}}, "task": {"type": "several", "tasks": tasks}}
    job = load_job(content)
    assert isinstance(job, RetrainJob)
    before = {"tasks": {"kind": {"accuracy": 0.9}, "far": {"rmse": 1.0}}}
    now = {"tasks": {"kind": {"accuracy": 0.95}, "far": {"rmse": 2.5}}}
    gates = Gates(frozen=Limits(min_gain=-0.1), newest=Limits(min_gain=-9))
    assert missed(both(now, before), gates, job.train.model.task) == ["frozen: far rmse, gain"]
    assert figures_of(now, gates, job.train.model.task) == {"kind": 0.95, "far": 2.5}
    lost = {"tasks": {"kind": {"accuracy": 0.95}}}
    assert missed(both(lost, before), gates, job.train.model.task) == [
        "frozen: far rmse, gain",
        "newest: far rmse, gain",
    ]


def test_a_compression_that_was_refused_is_missed() -> None:
    assert missed(both(accuracy(0.9), accuracy(0.9)), compressed=True) == []
    assert missed(both(accuracy(0.9), accuracy(0.9)), compressed=False) == ["compression"]


def test_figures_are_told_by_task() -> None:
    assert figures_of({"accuracy": 0.5}, Gates(), task()) == {"": 0.5}
    assert figures_of({"accuracy": float("nan")}, Gates(), task()) == {"": None}
