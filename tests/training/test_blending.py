"""Gradient-Blending: the weights of the losses, what they change, and that a resumed training has them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.data.fields import presence_name
from ray_mm.errors import UsageError
from ray_mm.models.losses import loss_per_sample
from ray_mm.training.blending import LEAST_OVERFIT, blending_weights
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.state import read_state
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, newest, train
from tests.training.together import Start, train_together

FIELDS = ("series", "vector")
BLENDING: dict[str, Any] = {"train.gradient_blending": {}}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, (part, count) in enumerate({"train": 43, "validation": 21}.items()):
        kinds = (*FIELDS, "label", "number")
        make_dataset(tmp_path / part, count, kinds, seed=seed, missing={"series": 0.3, "label": 0.2})
    return tmp_path


def without_dropout(folder: Path, run: str = "run", **overrides: Any) -> Any:
    settings: dict[str, Any] = {
        "model.fields": {name: {"dropout": 0.0} for name in FIELDS},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.modality_dropout": 0.0,
        "train.clip_norm": None,
    }
    return make_training(folder, run, FIELDS, **settings | overrides)


def test_a_loss_counts_the_more_the_more_it_gained_and_the_less_it_overfitted() -> None:
    start = ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
    # Gains 1, ½, 1; overfitting ½, ½, 1: 4 : 2 : 1.
    assert blending_weights(start, ([0.5, 1.0, 0.0], [1.0, 1.5, 1.0]), [1 / 3] * 3) == pytest.approx(
        [4 / 7, 2 / 7, 1 / 7]
    )
    # What had overfitted before does not count again.
    later = ([0.5, 1.0, 0.0], [1.0, 1.5, 1.0])
    assert blending_weights(later, ([0.0, 0.5, -1.0], [0.75, 1.25, 0.5]), [1 / 3] * 3) == pytest.approx(
        [0.25 / 0.25**2 / 10, 0.25 / 0.25**2 / 10, 0.5 / 0.5**2 / 10]
    )
    # One that got worse counts nothing; one that did not overfit, as if it did a little.
    assert blending_weights(start, ([1.0, 1.0, 1.5], [1.0, 3.0, 1.6]), [1 / 3] * 3) == pytest.approx(
        [1 / LEAST_OVERFIT**2 / 140, 0.0, 0.4 / LEAST_OVERFIT**2 / 140]
    )
    # Where nothing can be said, they stay.
    before = [0.2, 0.3, 0.5]
    assert blending_weights(start, ([1.0, None, 1.0], [1.0, None, 1.0]), before) == before
    assert blending_weights(start, ([1.0, 1.0, 1.0], [2.5, 2.0, 3.0]), before) == before


def test_the_gradient_is_that_of_all_losses_by_their_weights(data: Path) -> None:
    training = without_dropout(data, **BLENDING)
    weights = {"weights": [0.5, 0.2, 0.3]}
    learner = Learner(training, Ranks(0, 1, torch.device("cpu")), blending=weights)
    batch = next(batches(training))
    found: list[dict[str, torch.Tensor]] = []

    def keep(*_: object) -> None:
        found.append({name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None})

    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.optimizer.register_step_pre_hook(keep)
    learner.train(batch)

    learner.model.load_state_dict(before)
    learner.model.zero_grad()
    tensors, task = batch.tensors, training.job.model.task
    counted = tensors[presence_name("label")].float()
    assert 0 < counted.sum() < len(counted)
    subsets = [frozenset({"series"}), frozenset({"vector"}), frozenset(FIELDS)]
    total = torch.zeros(())
    for subset, output, weight in zip(subsets, learner.model(tensors, subsets), weights["weights"], strict=True):
        losses = loss_per_sample(task, output, tensors, training.preprocessor) * counted
        if len(subset) == 1:
            losses = losses * tensors[presence_name(next(iter(subset)))]
        total = total + weight * losses.sum() / counted.sum()
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in learner.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[0][name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_the_weights_change_after_so_many_epochs_and_are_told(data: Path) -> None:
    told = {}
    for every in (1, 2):
        settings = {"train.epochs": 4, "train.gradient_blending": {"every_epochs": every}}
        training = without_dropout(data, f"every-{every}", **settings)
        train(training)
        lines = list(read_metrics(training.run))
        names = ["blend_weight/series", "blend_weight/vector", "blend_weight"]
        told[every] = [[line[name] for name in names] for line in lines if "blend_weight" in line]
        alone = [line for line in lines if line["kind"] == "validation"]
        assert all(line["loss_alone/series"] > 0 and line["loss_alone/vector"] > 0 for line in alone)
    for weights in (*told[1], *told[2]):
        assert sum(weights) == pytest.approx(1, abs=2e-4) and min(weights) >= 0
    equal = pytest.approx([1 / 3] * 3, abs=1e-4)
    assert told[1][0] == equal and told[1][1] != equal and told[1][2] != told[1][1]
    assert told[2][0] == told[2][1] == equal and told[2][2] == told[2][3] != equal


def test_it_is_the_same_for_two_ranks_in_parts_and_after_a_resume(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**BLENDING, "train.epochs": 3, "train.checkpoints.every_steps": 1}
    whole = without_dropout(data, "whole", **settings)
    train(whole)
    items = whole.schedule.items_per_epoch
    # In the midst of an epoch, and of its validation.
    for place, stop in enumerate((items + 2, 2 * items - 1)):
        resumed = without_dropout(data, f"resumed-{place}", **settings)
        with pytest.raises(Killed):
            train(resumed, stop_before=stop)
        train(resumed)
        assert curve(resumed) == curve(whole)
        assert read_state(newest(resumed)).blending == read_state(newest(whole)).blending
    two = without_dropout(data, "two", **settings)
    divided = without_dropout(data, "divided", **settings, **{"train.parallel": "fsdp"})
    parts = without_dropout(data, "parts", **settings, **{"train.micro_batches": 3})
    train(parts)
    train_together([Start(two, 2), Start(divided, 2)], tmp_path / "rendezvous")
    for other in (two, divided, parts):
        assert curve(other) == pytest.approx(curve(whole), abs=1e-4)
    plain = without_dropout(data, "plain", **{"train.epochs": 3})
    train(plain)
    assert curve(plain) != pytest.approx(curve(whole), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"data.validation": None}, r"weighs the fields by what a validation says"),
        ({"train.gradient_modulation": {}}, r"two ways to the same end"),
        ({"model.fields": {"vector": {}}}, r"compares the fields with each other, and this model has one"),
        ({"model.task": {"type": "retrieve", "towers": None}}, r"the task retrieve has none"),
        ({"train.gradient_blending": {"every_epochs": 0}}, r"every_epochs"),
    ],
)
def test_where_it_means_nothing_it_is_refused(data: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        without_dropout(data, **{**BLENDING, **settings})


def test_a_number_is_learned_so_too(data: Path) -> None:
    training = without_dropout(data, **{**BLENDING, "model.task": {"type": "regress", "label": "number"}})
    train(training)
    assert len(curve(training)) == training.schedule.num_steps + training.schedule.epochs
