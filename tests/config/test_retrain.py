"""A retrain job: short where defaults do, closed where something can't be meant, its train job in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.load import load_job, placed, settled_keys
from ray_mm.config.retrain import RetrainJob
from ray_mm.errors import JobFileError
from tests.config.jobs import SMALLEST

BASE: dict[str, Any] = SMALLEST["retrain"]["base"]


def loaded(source: Any, overrides: dict[str, Any] | None = None) -> RetrainJob:
    job = load_job(source, overrides)
    assert isinstance(job, RetrainJob)
    return job


def refusal(overrides: dict[str, Any]) -> str:
    with pytest.raises(JobFileError) as caught:
        load_job(SMALLEST["retrain"], overrides)
    return str(caught.value)


def test_patterns_alone_are_arrivals_by_listing() -> None:
    for given in ("incoming", ["a-{0..9}.tar", "s3://b/in"]):
        arrivals = loaded({**SMALLEST["retrain"], "arrivals": given}).incoming
        assert arrivals.by == "listing" and arrivals.shards == (given if isinstance(given, str) else tuple(given))


def test_the_train_job_is_read_from_its_file_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(json.dumps(BASE))
    file = tmp_path / "retrain.yaml"
    file.write_text(json.dumps({**SMALLEST["retrain"], "base": "train.yaml"}))
    assert loaded(file).train == loaded(SMALLEST["retrain"]).train
    assert loaded(file, {"base.train.epochs": 3}).train.train.epochs == 3
    (tmp_path / "other.yaml").write_text(json.dumps({**BASE, "seed": 9}))
    assert loaded(file, {"base": str(tmp_path / "other.yaml")}).train.seed == 9
    # What a stage says of a key is put where the key stands.
    assert placed("data.train: is gone", str(file), {}).startswith(f"{tmp_path / 'train.yaml'}:")
    (tmp_path / "train.yaml").write_text(json.dumps(SMALLEST["evaluate"]))
    with pytest.raises(JobFileError, match="base: a retraining repeats a train job; found kind 'evaluate'"):
        load_job(file)


def test_a_resolved_job_is_the_same_job() -> None:
    job = loaded(SMALLEST["retrain"])
    assert loaded(job.model_dump(mode="json")) == job
    assert settled_keys(job) == ("holdout", "seed")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"arrival": "x"}, "unknown key 'arrival'; did you mean 'arrivals'?"),
        ({"arrivals": {"shards": "in", "min_sample": 3}}, "unknown key 'min_sample'"),
        ({"holdout": 0}, "holdout"),
        ({"replay": 1}, "replay"),
        (
            {"base.train.baselines": True, "base.model.fields.text": {}},
            "base.train.baselines: a night trains one model",
        ),
        ({"base.train.init_from": "runs/x"}, "base.train.init_from and warm_start both say"),
        (
            {"gates.metric": "rmse"},
            "'rmse' is no figure by which models of the task classify are compared; those are accuracy",
        ),
        ({"gates.metric": "f1"}, "'f1' is no figure"),
        ({"notify": {}}, "takes command or webhook"),
        (
            {"arrivals": {"shards": "in", "fields": {"sound": {"type": "audio"}}}},
            "arrivals.fields.sound: the model does not read it",
        ),
        ({"arrivals": {"shards": "in", "late_hours": 3}}, "late_hours is for by: event_time or manifest"),
        ({"arrivals": {"shards": "in", "time_zone": "Europe/Berlin"}}, "time_zone is for by: event_time or manifest"),
        ({"warm_start": None, "replay": 0.3}, "replay is for warm weights"),
        ({"evaluate.subsets": "full", "gates.newest.max_drop_subset": 0.1}, "evaluate.subsets: full scores none"),
        ({"lease_s": 1}, "lease_s"),
    ],
)
def test_what_can_not_be_meant_is_refused(overrides: dict[str, Any], message: str) -> None:
    assert message in refusal(overrides)


def test_weights_from_elsewhere_are_for_nights_that_are_always_fresh() -> None:
    job = loaded(SMALLEST["retrain"], {"base.train.init_from": "runs/pretrained", "warm_start": None})
    assert job.warm_start is None and job.train.train.initial is not None


def test_limits_have_the_words_of_their_measure() -> None:
    limits = {
        name: loaded(SMALLEST["retrain"], {"validation.drift": name}).validation.drift_limit
        for name in ("jensen_shannon", "psi", "chi_square")
    }
    assert limits == {"jensen_shannon": 0.1, "psi": 0.25, "chi_square": 0.999}
    given = loaded(SMALLEST["retrain"], {"validation.max_drift": 0.3}).validation
    assert given.drift_limit == given.shift_limit == 0.3
