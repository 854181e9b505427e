"""One loss per sample, in the scale in which the model answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ray_mm.config.tasks import ClassifyTask, MultilabelTask, RegressTask
from ray_mm.models.losses import (
    ClassTerms,
    class_terms,
    loss_per_sample,
    other_label_name,
    own_share_name,
    sample_weights,
)
from tests.models.batches import STATISTICS, model_config, preprocessor_of

CLASSIFIES = preprocessor_of(model_config(["vector"]))
REGRESSES = preprocessor_of(model_config(["vector"], task="regress"))


def test_a_class_costs_its_negative_log_probability() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    loss = loss_per_sample(ClassifyTask(label="kind"), logits, {"kind": torch.tensor([0, 3])}, CLASSIFIES)
    torch.testing.assert_close(loss, torch.tensor([-math.log(0.7), math.log(4)]))


def test_label_smoothing_spreads_the_target() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
    task = ClassifyTask(label="kind", label_smoothing=0.2)
    loss = loss_per_sample(task, logits, {"kind": torch.tensor([0])}, CLASSIFIES)
    torch.testing.assert_close(loss, torch.tensor([-0.85 * math.log(0.7) - 0.15 * math.log(0.1)]))


def test_a_number_is_compared_in_standard_deviations() -> None:
    (mean,), (std,) = STATISTICS["amount"].mean, STATISTICS["amount"].std
    batch = {"amount": torch.tensor([mean, mean + 3 * std])}
    output = torch.tensor([0.5, 0.0])
    squared = loss_per_sample(RegressTask(label="amount"), output, batch, REGRESSES)
    torch.testing.assert_close(squared, torch.tensor([0.25, 9.0]))
    huber = loss_per_sample(RegressTask(label="amount", loss="huber"), output, batch, REGRESSES)
    torch.testing.assert_close(huber, torch.tensor([0.125, 2.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_in_full_precision(dtype: torch.dtype) -> None:
    loss = loss_per_sample(
        ClassifyTask(label="kind"), torch.zeros(2, 4, dtype=dtype), {"kind": torch.tensor([0, 1])}, CLASSIFIES
    )
    assert loss.dtype == torch.float32


def test_a_sample_without_a_label_has_no_weight() -> None:
    batch = {"weight": torch.tensor([1.0, 0.0, 1.0]), "kind.presence": torch.tensor([True, True, False])}
    assert sample_weights(ClassifyTask(label="kind"), batch).tolist() == [1.0, 0.0, 0.0]


# --- rare classes

CLASSES = ("a", "b", "c", "d")
COUNTS = (60.0, 30.0, 10.0, 0.0)


def _random(size: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are as frequent as ``COUNTS`` says."""
    random = torch.Generator().manual_seed(0)
    label = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS).long())
    return torch.randn(size, 4, generator=random), label


def _loss(task: ClassifyTask, logits: torch.Tensor, label: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    return loss_per_sample(task, logits, {"kind": label} | more, CLASSIFIES, class_terms(task, COUNTS, CLASSES))


def test_the_focal_loss_is_that_of_the_paper() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    label = torch.tensor([0, 3])
    found = _loss(ClassifyTask(label="kind", loss="focal"), logits, label)
    torch.testing.assert_close(found, torch.tensor([-(0.3**2) * math.log(0.7), 0.75**2 * math.log(4)]))
    found = _loss(ClassifyTask(label="kind", loss="focal", focal_gamma=0.5), logits, label)
    torch.testing.assert_close(found, torch.tensor([-(0.3**0.5) * math.log(0.7), 0.75**0.5 * math.log(4)]))


def test_a_smoothed_focal_loss_is_that_of_each_class_by_its_share() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
    task = ClassifyTask(label="kind", loss="focal", label_smoothing=0.2)
    wanted = -0.85 * 0.3**2 * math.log(0.7) - 0.15 * 0.9**2 * math.log(0.1)
    torch.testing.assert_close(_loss(task, logits, torch.tensor([0])), torch.tensor([wanted]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_a_focal_loss_has_a_gradient_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0], [0, 0, 0, 0]], requires_grad=True)
    task = ClassifyTask(label="kind", loss="focal", focal_gamma=gamma, label_smoothing=0.1)
    loss = _loss(task, logits, torch.zeros(3, dtype=torch.int64))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    assert loss[1] > 100 and logits.grad[1, 0] < -0.5, "certain and wrong is what it costs most"


def test_class_weights_come_to_torch_s_weighted_loss_over_an_epoch() -> None:
    logits, label = _random()
    given = {"a": 1.0, "b": 3.0, "c": 10.0, "d": 7.0}
    found = _loss(ClassifyTask(label="kind", class_weights=given), logits, label)
    torch.testing.assert_close(found.mean(), F.cross_entropy(logits, label, weight=torch.tensor([1.0, 3, 10, 7])))
    tenfold = ClassifyTask(label="kind", class_weights={name: 10 * weight for name, weight in given.items()})
    torch.testing.assert_close(_loss(tenfold, logits, label), found, msg="only their ratios matter")


def test_balanced_weights_are_n_over_the_number_of_classes_and_of_a_class_that_occurs() -> None:
    task = ClassifyTask(label="kind", class_weights="balanced")
    terms = class_terms(task, COUNTS, CLASSES)
    assert terms.adjustment is None and terms.weights is not None
    torch.testing.assert_close(terms.weights, torch.tensor([100 / (3 * 60), 100 / (3 * 30), 100 / (3 * 10), 0.0]))
    logits, label = _random()
    found = _loss(task, logits, label)
    plain = F.cross_entropy(logits, label, reduction="none")
    of_classes = torch.stack([plain[label == number].mean() for number in range(3)])
    torch.testing.assert_close(found.mean(), of_classes.mean(), msg="every class counts as much as the others")


def test_a_logit_adjustment_is_the_logarithm_of_the_share_of_a_class() -> None:
    logits, label = _random()
    found = _loss(ClassifyTask(label="kind", logit_adjustment=0.5), logits, label)
    # The class that is never drawn is taken as the rarest that is.
    adjusted = logits + 0.5 * torch.log(torch.tensor([0.6, 0.3, 0.1, 0.1]))
    torch.testing.assert_close(found, F.cross_entropy(adjusted, label, reduction="none"))


def test_what_learns_the_adjusted_loss_decides_as_if_all_classes_were_as_frequent() -> None:
    # One binary fact, seen by a class with the chance below; the best decision follows by hand, from Bayes.
    seen, prior = torch.tensor([[0.6, 0.4], [0.3, 0.7]]), torch.tensor([0.9, 0.1])
    decisions = {}
    for tau in (None, 1.0):
        task = ClassifyTask(label="kind", logit_adjustment=tau)
        terms = class_terms(task, (90.0, 10.0), ("a", "b"))
        logits = torch.zeros(2, 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = sum(
                prior[label] * seen[label, fact] * _one(task, logits[fact], label, terms)  # noqa: B023
                for label in range(2)
                for fact in range(2)
            )
            assert isinstance(loss, torch.Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        decisions[tau] = logits.argmax(dim=1).tolist()
    assert decisions == {None: [0, 0], 1.0: [0, 1]}


def _one(task: ClassifyTask, logits: torch.Tensor, label: int, terms: ClassTerms) -> torch.Tensor:
    return loss_per_sample(task, logits[None], {"kind": torch.tensor([label])}, CLASSIFIES, terms)[0]


EVERYTHING: dict[str, Any] = {
    "loss": "focal",
    "label_smoothing": 0.1,
    "class_weights": {"a": 1.0, "b": 2.0, "c": 6.0, "d": 1.0},
    "logit_adjustment": 1.0,
}


def test_all_of_it_together_and_mixed() -> None:
    logits, label = _random()
    other, share = label.flip(0), torch.linspace(0, 1, 100)
    task = ClassifyTask(label="kind", **EVERYTHING)
    found = _loss(task, logits, label, **{other_label_name("kind"): other, own_share_name("kind"): share})
    log_p = (logits + torch.log(torch.tensor([0.6, 0.3, 0.1, 0.1]))).log_softmax(dim=1)
    costs = -((1 - log_p.exp()) ** 2) * log_p
    weights = torch.tensor([1.0, 2, 6, 1]) / (0.6 * 1 + 0.3 * 2 + 0.1 * 6)

    def of(classes: torch.Tensor) -> torch.Tensor:
        target = 0.9 * F.one_hot(classes, 4) + 0.1 / 4
        return weights[classes] * (target * costs).sum(dim=1)

    torch.testing.assert_close(found, share * of(label) + (1 - share) * of(other))


def test_a_validation_knows_no_weights_and_no_adjustment() -> None:
    logits, label = _random()
    task = ClassifyTask(label="kind", class_weights="balanced")
    plain = F.cross_entropy(logits, label, reduction="none")
    torch.testing.assert_close(loss_per_sample(task, logits, {"kind": label}, CLASSIFIES), plain)
    assert class_terms(ClassifyTask(label="kind"), None, CLASSES) == ClassTerms()
    assert class_terms(RegressTask(label="amount"), None, ()) == ClassTerms()


# --- any number of classes per sample


def _several(task: MultilabelTask, logits: torch.Tensor, label: torch.Tensor, **more: Any) -> torch.Tensor:
    return loss_per_sample(task, logits, {"kind": label}, CLASSIFIES, **more)


def test_each_class_costs_its_binary_cross_entropy_and_they_count_alike() -> None:
    random = torch.Generator().manual_seed(0)
    logits, label = torch.randn(20, 4, generator=random), (torch.rand(20, 4, generator=random) < 0.4).float()
    wanted = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    torch.testing.assert_close(_several(MultilabelTask(label="kind"), logits, label), wanted.mean(1))
    task = MultilabelTask(label="kind", pos_weight={"b": 3.0})
    weights = torch.tensor([1.0, 3.0, 1.0, 1.0])
    wanted = F.binary_cross_entropy_with_logits(logits, label, reduction="none", pos_weight=weights)
    terms = class_terms(task, None, CLASSES)
    torch.testing.assert_close(_several(task, logits, label, terms=terms), wanted.mean(1))


def test_balanced_weights_are_the_lacking_by_the_having() -> None:
    task = MultilabelTask(label="kind", pos_weight="balanced")
    terms = class_terms(task, (0.5, 0.1, 0.0, 1.0), CLASSES)
    assert terms.weights is not None
    # With a class that nobody has, or everybody, there is nothing to balance.
    torch.testing.assert_close(terms.weights, torch.tensor([1.0, 9.0, 1.0, 1.0]))


def test_the_focal_loss_counts_what_is_predicted_well_less() -> None:
    p = torch.tensor([[0.9, 0.2]])
    task = MultilabelTask(label="kind", loss="focal", focal_gamma=2)
    found = _several(task, torch.logit(p), torch.tensor([[1.0, 0.0]]))
    wanted = (0.1**2 * -math.log(0.9) + 0.2**2 * -math.log(0.8)) / 2
    torch.testing.assert_close(found, torch.tensor([wanted]))


def test_a_mixed_label_costs_its_shares() -> None:
    logits, task = torch.tensor([[0.3, -1.2]]), MultilabelTask(label="kind", loss="focal")
    one, other = (_several(task, logits, torch.tensor([label])) for label in ([1.0, 0.0], [0.0, 0.0]))
    mixed = _several(task, logits, torch.tensor([[0.25, 0.0]]))
    torch.testing.assert_close(mixed, 0.25 * one + 0.75 * other)


@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
def test_certain_answers_have_a_finite_gradient(gamma: float | None) -> None:
    task = MultilabelTask(label="kind", loss="bce" if gamma is None else "focal", focal_gamma=gamma)
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    _several(task, logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]])).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
