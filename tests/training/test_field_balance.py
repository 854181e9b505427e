"""Shares of the gradient, and OGM-GE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.errors import UsageError
from ray_mm.training.field_balance import LOOK_EVERY, modulation_factors
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, train
from tests.training.together import Start, train_together

FIELDS = ("series", "vector")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(
        tmp_path / "train", 43, (*FIELDS, "label", "number"), num_shards=2, missing={"series": 0.3, "label": 0.2}
    )
    return tmp_path


def without_dropout(folder: Path, run: str = "run", **overrides: Any) -> Any:
    settings: dict[str, Any] = {
        "model.fields": {name: {"dropout": 0.0} for name in FIELDS},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.modality_dropout": 0.0,
        "train.clip_norm": None,
    }
    return make_training(folder, run, FIELDS, **settings | overrides)


def gradients(training: Any) -> list[dict[str, torch.Tensor]]:
    """What the optimizer gets in the first step, by field."""
    learner = Learner(training, Ranks(0, 1, torch.device("cpu")))
    found: list[dict[str, torch.Tensor]] = []

    def keep(*_: object) -> None:
        encoders = zip(learner.model.fields, learner.model.encoders, strict=True)
        found.append(
            {
                field: torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
                for field, encoder in encoders
            }
        )

    learner.optimizer.register_step_pre_hook(keep)
    learner.train(next(batches(training)))
    return found


def test_the_surest_field_keeps_least() -> None:
    low, high = modulation_factors([0.2, 0.6], alpha=0.5)
    assert low == 1.0 and high == pytest.approx(1 - math.tanh(0.5 * 3))
    # Of three, each is compared with the mean of the others; a field that no sample has is left out.
    assert modulation_factors([0.2, None, 0.4], 0.1) == pytest.approx([1.0, 1.0, 1 - math.tanh(0.2)])
    assert modulation_factors([0.2, 0.3, 0.7], 1.0) == pytest.approx([1.0, 1.0, 1 - math.tanh(0.7 / 0.25)])
    assert modulation_factors([0.3, None], 0.1) == [1.0, 1.0]
    assert modulation_factors([0.3, 0.0], 0.1) == [0.0, 1.0]


def test_the_gradient_of_the_surest_encoder_is_made_smaller_and_no_other(data: Path) -> None:
    (plain,) = gradients(without_dropout(data, "plain"))
    modulation = {"train.gradient_modulation": {"alpha": 0.5, "noise": False}}
    (held,) = gradients(without_dropout(data, "held", **modulation))
    factors = {field: float(held[field].norm() / plain[field].norm()) for field in FIELDS}
    assert max(factors.values()) == pytest.approx(1) and min(factors.values()) < 1 - math.tanh(0.5)
    for field, factor in factors.items():
        torch.testing.assert_close(held[field], plain[field] * factor)

    noise = {"train.gradient_modulation": {"alpha": 0.5}}
    (noisy,) = gradients(without_dropout(data, "noisy", **noise))
    (again,) = gradients(without_dropout(data, "again", **noise))
    for field in FIELDS:
        # About as large as the gradient itself was, and always the same.
        added = (noisy[field] - held[field]).norm() / plain[field].norm()
        assert 0.5 < added < 1.5
        torch.testing.assert_close(noisy[field], again[field], rtol=0, atol=0)

    # After its share of the training it is let alone.
    (after,) = gradients(without_dropout(data, "after", **{"train.gradient_modulation": {"until": 0.01}}))
    for field in FIELDS:
        torch.testing.assert_close(after[field], plain[field], rtol=0, atol=0)


def test_the_last_line_of_an_epoch_tells_shares_and_factors(data: Path) -> None:
    training = without_dropout(data, **{"train.freeze": {"encoders.vector": 0.5}, "train.gradient_modulation": {}})
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "train"]
    steps = training.schedule.num_steps // 2
    assert steps < LOOK_EVERY
    shares = {line["step"]: [line.get(f"gradient_share/{field}") for field in FIELDS] for line in lines}
    assert shares.pop(steps) == [1.0, 0.0]  # a frozen encoder has none
    last = shares.pop(2 * steps)
    assert sum(last) == pytest.approx(1, abs=1e-3) and min(last) > 0
    assert set(map(tuple, shares.values())) == {(None, None)}
    factors = [lines[-1][f"gradient_factor/{field}"] for field in FIELDS]
    assert 0 < min(factors) < 1 and max(factors) <= 1


def test_it_is_the_same_for_two_ranks_in_parts_and_after_a_resume(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train.gradient_modulation": {"alpha": 0.5}, "train.checkpoints.every_steps": 1}
    whole = without_dropout(data, "whole", **settings)
    train(whole)
    resumed = without_dropout(data, "resumed", **settings)
    with pytest.raises(Killed):
        train(resumed, stop_before=4)
    train(resumed)
    two = without_dropout(data, "two", **settings)
    parts = without_dropout(data, "parts", **settings, **{"train.micro_batches": 3})
    train(parts)
    train_together([Start(two, 2)], tmp_path / "rendezvous")
    for other in (resumed, two, parts):
        assert curve(other) == pytest.approx(curve(whole), abs=1e-5)
    told = [
        [line for line in read_metrics(training.run) if f"gradient_share/{FIELDS[0]}" in line]
        for training in (whole, two)
    ]
    for alone, together in zip(*told, strict=True):
        for figure in ("share", "factor"):
            for field in FIELDS:
                name = f"gradient_{figure}/{field}"
                assert together[name] == pytest.approx(alone[name], abs=2e-4)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model.task": {"type": "regress", "label": "number"}}, r"the task regress has no such class"),
        ({"train.parallel": "fsdp"}, r"gradient_modulation and parallel: fsdp"),
        ({"model.fields": {"vector": {}}}, r"compares the fields with each other, and this model has one"),
        ({"train.gradient_modulation": {"alpha": 0}}, r"alpha"),
    ],
)
def test_where_it_means_nothing_it_is_refused(data: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        without_dropout(data, **{"train.gradient_modulation": {}} | settings)
