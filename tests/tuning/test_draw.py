"""The next trial's settings follow from the job and the trials so far, and from nothing else."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.search import draws
from ray_mm.errors import UsageError
from ray_mm.tuning.draw import next_settings, require_method
from ray_mm.tuning.table import State, Table
from tests.tuning.searches import LR, make_table, tune_job, validation

SEARCH: dict[str, Any] = {
    "train.optimizer.lr": LR,
    "model.fusion": {"choice": [{"method": "gated", "dim": 16}, {"method": "concat", "dim": 16}]},
    "train.epochs": {"log_integer": [2, 64]},
}


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna", reason="the extra optuna is not installed")


def test_random_trials_are_those_of_the_job_whatever_became_of_the_earlier_ones(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [[0.5], []], [State.DONE, State.DIVERGED])
    expected = list(itertools.islice(draws(table.job), 3))
    assert [*(trial.settings for trial in table.trials), next_settings(table.job, table)] == expected


def test_without_optuna_its_method_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    require_method(tune_job(tmp_path))
    with pytest.raises(UsageError, match=r"pip install 'ray_mm\[optuna\]'"):
        require_method(tune_job(tmp_path, method="optuna"))


def test_optuna_draws_the_same_after_an_interruption(optuna: Any, tmp_path: Path) -> None:
    job = tune_job(tmp_path, SEARCH, method={"name": "optuna", "startup": 2}, trials=9)
    states = [State.DONE, State.STOPPED, State.DIVERGED, State.BEGUN]
    table = make_table(job, [[0.5], [0.6, 0.7], [], [0.4]], states)
    assert [trial.settings for trial in table.trials[:2]] == list(itertools.islice(draws(job), 2))
    drawn = next_settings(job, table)
    assert drawn.keys() == SEARCH.keys()
    assert drawn["model.fusion"] in SEARCH["model.fusion"]["choice"]
    assert next_settings(job, table) == drawn
    other = Table(tune_job(tmp_path, SEARCH, method={"name": "optuna", "startup": 2}, trials=9, seed=7), table.folder)
    assert next_settings(other.job, other) != drawn


def test_optuna_looks_where_it_was_good(optuna: Any, tmp_path: Path) -> None:
    job = tune_job(tmp_path, {"train.optimizer.lr": LR}, method={"name": "optuna", "startup": 6}, trials=40)
    table = make_table(job, [])
    for number in range(1, 25):
        lr = float(next_settings(job, table)["train.optimizer.lr"])  # type: ignore[arg-type]
        table.begin({"train.optimizer.lr": lr})
        table.add_validation(number, validation(1, 1 - abs(math.log10(lr) + 2) / 4))
        table.settle(number, State.DONE)
    far = [abs(math.log10(trial.settings["train.optimizer.lr"]) + 2) for trial in table.trials]  # type: ignore[arg-type]
    assert sum(far[-9:]) / 9 < 0.5 * sum(far[:6]) / 6
