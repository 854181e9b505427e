"""A tune job: every key and value is looked at before anything starts, and the same job draws the same trials."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.load import load_job, placed
from ray_mm.config.search import Settings, draws, num_combinations, num_trials, told, trial_content, trial_job, value_at
from ray_mm.config.tune import AshaMethod, Space, TuneJob
from ray_mm.errors import JobFileError
from tests.config.jobs import SMALLEST

TRAIN = """\
kind: train
name: fit
data: {train: data/train, validation: data/validation}
model:
  fields: {image: {}}
  task: {type: classify, label: label}
output: runs/fit
"""
TUNE = """\
kind: tune
name: find
job: train.yaml
search:
  train.optimizer.lr: {log_uniform: [1e-4, 1e-2]}
  model.fusion.method: {choice: [concat, gated]}
method: random
output: runs/find
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.yaml").write_text(TRAIN)
    return tmp_path


def load(folder: Path, text: str = TUNE, **overrides: Any) -> TuneJob:
    (folder / "tune.yaml").write_text(text)
    job = load_job(folder / "tune.yaml", overrides)
    assert isinstance(job, TuneJob)
    return job


def searching(folder: Path, search: dict[str, Any], **overrides: Any) -> TuneJob:
    return load(folder, yaml.safe_dump(yaml.safe_load(TUNE) | {"search": search}, sort_keys=False), **overrides)


def first(job: TuneJob, count: int) -> list[Settings]:
    return list(itertools.islice(draws(job), count))


def test_the_train_job_is_read_from_beside_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    job = load(folder)
    assert job.train == load_job(folder / "train.yaml")
    assert (job.metric, job.higher_is_better, num_trials(job)) == ("accuracy", True, 16)
    for metric, better in (("macro_f1", True), ("loss", False)):
        other = load(folder, **{"job.train.best_metric": metric})
        assert (other.metric, other.higher_is_better) == (metric, better)
    # As it is kept in the run's folder it is whole, and the same.
    assert load_job(json.loads(json.dumps(job.model_dump(mode="json")))) == job


def test_keys_of_the_train_job_and_of_the_search_can_be_overridden(folder: Path) -> None:
    job = load(folder, **{"job.train.epochs": 3, "search.train.optimizer.lr.log_uniform": [0.1, 1]})
    assert job.train.train.epochs == 3
    assert job.search["train.optimizer.lr"] == Space(log_uniform=(0.1, 1))
    assert load(folder, **{"search.seed": {"choice": [1]}}).search["seed"].choice == (1,)
    (folder / "other.yaml").write_text(TRAIN.replace("fit", "other"))
    assert load(folder, job=str(folder / "other.yaml")).train.name == "other"


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            "train.optimizer.lrr: {choice: [1]}",
            r":5: search\.train\.optimizer\.lrr: unknown key 'lrr'; did you mean 'lr'\?",
        ),
        ("trian.optimizer.lr: {choice: [1]}", r":5: .* unknown key 'trian'; did you mean 'train'\?"),
        ("train.optimizer.lr: {choice: [0.1, -1]}", r":5: search\.train\.optimizer\.lr: .* greater than 0; found -1\."),
        ("train.optimizer.lr: {uniform: [0, 1]}", r":5: search\.train\.optimizer\.lr: .* greater than 0; found 0\.0\."),
        ("train.modality_dropout: {uniform: [0, 1]}", r":5: .* less than 1; found 1\.0\."),
        ("model.fusion.dim: {integer: [64, 65]}", r":5: search\.model\.fusion\.dim: .* multiple of 8; found 65\."),
        (
            "train.optimizer.lr: {log_unifrom: [1, 2]}",
            r":5: .* unknown key 'log_unifrom'; did you mean 'log_uniform'\?",
        ),
        ("train.optimizer.lr: {uniform: [1, 0.5]}", r":5: .* from a lower to a higher number; found 1 and 0\.5\."),
        ("train.optimizer.lr: {log_uniform: [0, 1]}", r":5: .* above 0, found 0; raise it, or use uniform\."),
        ("train.epochs: {log_integer: [0, 5]}", r":5: .* above 0, found 0; raise it, or use integer\."),
        ("train.optimizer.lr: {}", r":5: .* takes one of choice, grid, .*; found nothing\."),
        ("train.optimizer.lr: {choice: [1], grid: [2]}", r":5: .* found choice and grid\."),
        ("train.optimizer.lr: {choice: []}", r":5: .* at least 1 item"),
        (
            "data.validation: {choice: [a]}",
            r":5: .* data\.validation can't be searched over: trials are compared by it\.",
        ),
        ("train: {choice: [{}]}", r":5: .* train\.best_metric can't be searched over"),
        ("output: {choice: [a]}", r":5: .* output can't be searched over: every trial has a folder of its own"),
        ("resources.workers: {choice: [2]}", r":5: .* resources can't be searched over"),
        ("model.fusion.heads: {choice: [2]}", r":5: .* key 'heads' belongs to another kind of this section"),
        (
            "train.optimizer.momentum: {choice: [0.9]}",
            r":5: search\.train\.optimizer\.momentum: with train\.optimizer\.momentum=0\.9, train\.optimizer: momentum 0\.9 is",
        ),
        (
            "model.fusion.method: {choice: [cross_attention, gated]}\n  model.fusion.heads: {choice: [2]}",
            r":6: .*key 'heads' belongs to another kind of this section",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder: Path, search: str, message: str) -> None:
    text = TUNE[: TUNE.index("  train")] + f"  {search}\n" + TUNE[TUNE.index("\nmethod") + 1 :]
    with pytest.raises(JobFileError, match=message) as caught:
        load(folder, text)
    assert str(caught.value).startswith(f"{folder / 'tune.yaml'}:")


def test_trials_that_can_not_be_are_told_though_each_value_is_right(folder: Path) -> None:
    search = {
        "train.optimizer.name": {"choice": ["muon", "adamw"]},
        "train.optimizer.momentum": {"choice": [None, 0.9]},
    }
    with pytest.raises(
        JobFileError, match=r"search: trial \d, with .*name=adamw, .*momentum=0\.9, is no valid training: .*"
    ) as e:
        searching(folder, search)
    assert "Choose whole sections where keys depend on each other." in str(e.value)
    whole = {"train.optimizer": {"choice": [{"name": "adamw"}, {"name": "muon", "momentum": 0.9}]}}
    assert {
        trial_job(job, each, "x").train.optimizer.name for job in [searching(folder, whole)] for each in draws(job)
    } == {
        "adamw",
        "muon",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {}}, r"tune\.yaml:\d: search: .* at least 1 item"),
        ({"method": "ashaa"}, r"must be one of random, asha, optuna; found 'ashaa'\. Did you mean 'asha'\?"),
        ({"method": {"name": "asha", "grace": 10}}, r"method\.grace 10 is not less than the 10 epochs of a trial"),
        ({"method": {"name": "asha", "grac": 1}}, r"method\.grac: unknown key 'grac'; did you mean 'grace'\?"),
        ({"method": "optuna", "search": {"seed": {"grid": [1, 2]}}}, "use choice with optuna"),
        ({"method": "asha", "search": {"train.epochs": {"choice": [4, 8]}}}, "trials of different lengths can't be"),
        ({"trials": 3, "search": {"seed": {"grid": [1, 2, 3, 4]}}}, "trials: 3 are fewer than the 4 combinations"),
        ({"job": "absent.yaml"}, r"absent\.yaml: no such job file"),
        ({"job": "tune.yaml"}, "job: a search is over a train job; found kind 'tune'"),
        ({"job": SMALLEST["train"]}, "job.data.validation is missing: trials are compared by their validation"),
    ],
)
def test_what_does_not_fit_together_is_told(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        load(folder, yaml.safe_dump(yaml.safe_load(TUNE) | change, sort_keys=False))


def test_a_mistake_in_the_train_job_is_told_with_its_own_file_and_line(folder: Path) -> None:
    (folder / "train.yaml").write_text(TRAIN.replace("label: label", "lable: label"))
    with pytest.raises(JobFileError, match=r"train\.yaml:6: model\.task\.lable: unknown key 'lable'"):
        load(folder)
    (folder / "train.yaml").write_text(TRAIN)
    file = str(folder / "tune.yaml")
    load(folder)
    assert (
        placed("data.train: no such dataset.", file, {}) == f"{folder / 'train.yaml'}:3: data.train: no such dataset."
    )
    inline = yaml.safe_dump(yaml.safe_load(TUNE) | {"job": yaml.safe_load(TRAIN)}, sort_keys=False)
    line = inline[: inline.index("train: data/train")].count("\n") + 1
    load(folder, inline)
    assert placed("data.train: no such dataset.", file, {}) == f"{file}:{line}: data.train: no such dataset."


def test_the_same_job_draws_the_same_trials_and_another_seed_others(folder: Path) -> None:
    drawn = first(load(folder), 8)
    assert drawn == first(load(folder), 8)
    assert drawn[:4] == first(load(folder, trials=4), 4), "a trial does not depend on how many there are"
    assert drawn != first(load(folder, seed=1), 8)
    assert all(1e-4 <= settings["train.optimizer.lr"] <= 1e-2 for settings in drawn)  # type: ignore[operator]
    assert len({settings["train.optimizer.lr"] for settings in drawn}) == 8


def test_a_draw_stays_what_it_is(folder: Path) -> None:
    assert told(first(load(folder), 1)[0]) == "train.optimizer.lr=0.002407, model.fusion.method=gated"


def test_of_a_finite_search_every_combination_is_drawn_once(folder: Path) -> None:
    search = {"seed": {"integer": [0, 2]}, "model.fusion.method": {"choice": ["concat", "gated"]}}
    job = searching(folder, search, trials=50)
    assert num_combinations(job) == num_trials(job) == 6
    found = [tuple(settings.values()) for settings in draws(job)]
    assert sorted(found) == sorted(itertools.product([0, 1, 2], ["concat", "gated"]))  # type: ignore[type-var]
    assert found != sorted(found), "in no order"  # type: ignore[type-var]


def test_grids_are_gone_through_with_every_draw(folder: Path) -> None:
    grids = {"seed": {"grid": [1, 2, 3]}, "train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}}
    job = searching(folder, grids, trials=6)
    drawn = first(job, 6)
    assert [settings["seed"] for settings in drawn] == [1, 2, 3, 1, 2, 3]
    assert len({settings["train.optimizer.lr"] for settings in drawn}) == 2
    assert num_trials(searching(folder, {"seed": {"grid": [1, 2, 3]}})) == 3


def test_a_trial_says_what_the_train_job_says_and_what_it_sets(folder: Path) -> None:
    job = searching(folder, {"data.train.fraction": {"choice": [0.5]}, "train.schedule.warmup": {"choice": [0.2]}})
    content = trial_content(job, {"data.train.fraction": 0.5, "train.schedule.warmup": 0.2}, "there")
    assert content["data"]["train"] == {"path": "data/train", "fraction": 0.5}
    assert content["train"] == {"schedule": {"name": "cosine", "warmup": 0.2}}
    assert (content["output"], content["name"], "seed" in content) == ("there", "fit", False)
    assert trial_job(job, {}, "there").model_copy(update={"output": "runs/fit"}) == job.train


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 10), st.floats(1e-6, 10))
def test_a_value_lies_within_its_range(place: float, low: float, width: float) -> None:
    for name in ("uniform", "log_uniform"):
        found = value_at(Space.model_validate({name: (low, low + width)}), place)
        assert isinstance(found, float) and low <= found <= low + width


def test_whole_numbers_are_all_drawn_and_small_ones_more_often_in_a_log_range() -> None:
    places = [n / 1000 for n in range(1000)]
    even = [value_at(Space(integer=(1, 4)), place) for place in places]
    assert [even.count(value) for value in (1, 2, 3, 4)] == [250] * 4
    log = [value_at(Space(log_integer=(1, 8)), place) for place in places]
    assert set(log) == set(range(1, 9)) and log.count(1) > 2 * log.count(8)


def test_methods_have_settings(folder: Path) -> None:
    assert load(folder, method="asha").method == AshaMethod(grace=1, reduction=3)
    assert load(folder, method={"name": "asha", "grace": 2}).method == AshaMethod(grace=2)
