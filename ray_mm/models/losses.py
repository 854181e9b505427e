"""Output and label → one loss per sample. Weights are the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from typing_extensions import assert_never

from ray_mm.config.tasks import ClassifyTask, MultilabelTask, RegressTask, TaskConfig
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.data.preprocessor import Preprocessor


@dataclass(frozen=True)
class ClassTerms:
    """What makes up for how often each class is drawn, in a training alone.

    Attributes:
        weights: of a sample of each class, float32 [C]; of several classes per sample, of having each. None: all count alike.
        adjustment: of the logits, float32 [C]; None: they stay as they are.
    """

    weights: Tensor | None = None
    adjustment: Tensor | None = None

    def to(self, device: torch.device) -> ClassTerms:
        """The same on a device."""
        return ClassTerms(*(None if each is None else each.to(device) for each in (self.weights, self.adjustment)))


def class_terms(task: TaskConfig, class_counts: Sequence[float] | None, classes: Sequence[str]) -> ClassTerms:
    """The class weights and the logit adjustment of a task.

    Weights are scaled so that they are 1 on average over the samples that an epoch draws, and a step divides by the number of
    its samples, not by the sum of their weights as ``torch.nn.CrossEntropyLoss`` does. Over an epoch both come to the same loss.
    In a step, dividing by the sum would let a batch of common classes count as much as one with rare ones, so that the weights
    were the weaker the smaller the batch; this way every step follows, on average, the gradient of the weighted loss of all
    samples, and neither batches, workers nor micro-batches change it.

    Args:
        task: what is predicted.
        class_counts: ``Training.class_counts`` [C]. None: not needed.
        classes: their names.
    """
    if isinstance(task, MultilabelTask):
        return ClassTerms(_positive_weights(task, class_counts, classes))
    if not isinstance(task, ClassifyTask) or not task.needs_class_counts:
        return ClassTerms()
    assert class_counts is not None and len(class_counts) == len(classes)
    share = torch.tensor(class_counts, dtype=torch.float64) / sum(class_counts)
    occurs = share > 0
    weights = adjustment = None
    if task.class_weights is not None:
        if task.class_weights == "balanced":
            weights = torch.where(occurs, 1 / share, 0.0)
        else:
            weights = torch.tensor([task.class_weights[name] for name in classes], dtype=torch.float64)
        weights = (weights / (weights * share).sum()).float()
    if task.logit_adjustment is not None:
        # A class that is never drawn is taken as the rarest that is: the logarithm of 0 could not be added.
        share = torch.where(occurs, share, share[occurs].min())
        adjustment = (task.logit_adjustment * share.log()).float()
    return ClassTerms(weights, adjustment)


def _positive_weights(task: MultilabelTask, shares: Sequence[float] | None, classes: Sequence[str]) -> Tensor | None:
    if isinstance(task.pos_weight, dict):
        return torch.tensor([task.pos_weight.get(name, 1.0) for name in classes])
    if task.pos_weight is None:
        return None
    assert shares is not None and len(shares) == len(classes)
    share = torch.tensor(shares, dtype=torch.float64)
    # A class that all have, or none, has nothing to be balanced with.
    return torch.where((share > 0) & (share < 1), (1 - share) / share, 1.0).float()


def loss_per_sample(
    task: TaskConfig,
    output: Tensor,
    batch: Mapping[str, Tensor],
    preprocessor: Preprocessor,
    terms: ClassTerms = ClassTerms(),
) -> Tensor:
    """The loss of each sample.

    Args:
        task: what is predicted, and how it is judged.
        output: of the model: logits [B, C], or standardised values [B].
        batch: holds the label: int64 [B], float32 [B, C], or float32 [B] in its own unit; of samples that are mixed of two and
            have one class each, also that of the other one (``other_label_name``) and the share of the first
            (``own_share_name``).
        preprocessor: the statistics of a number label.
        terms: in a training, of its classes. A validation has none: its loss is that of the samples as they are.

    Returns:
        float32 [B]. Where a sample has no label the value means nothing; see ``sample_weights``.
    """
    label = batch[task.label]
    match task:
        case ClassifyTask():
            loss = _of_class(task, output, label, terms)
            other = batch.get(other_label_name(task.label))
            if other is None:
                return loss
            return torch.lerp(_of_class(task, output, other, terms), loss, batch[own_share_name(task.label)])
        case MultilabelTask():
            return _of_classes(task, output, label, terms).mean(dim=-1)
        case RegressTask():
            statistics = preprocessor.statistics[task.label]
            target = (label - statistics.mean[0]) / statistics.std[0]
            measure = F.mse_loss if task.loss == "mse" else F.huber_loss
            return measure(output.float(), target, reduction="none")
        case _:
            assert_never(task)


def _of_class(task: ClassifyTask, output: Tensor, label: Tensor, terms: ClassTerms) -> Tensor:
    """The loss of each sample as one of a class, float32 [B].

    A class with probability p costs (1 − p)^γ · −ln p, where γ is 0 in the cross entropy. A smoothed label costs what its classes
    do, each by its share. The weight is that of the sample's own class, and holds for all of it.

    Args:
        task: which loss.
        output: logits [B, C].
        label: int64 [B].
        terms: of the classes.
    """
    logits = output.float()
    if terms.adjustment is not None:
        logits = logits + terms.adjustment
    if task.gamma == 0:
        loss = F.cross_entropy(logits, label, reduction="none", label_smoothing=task.label_smoothing)
    else:
        log_p = logits.log_softmax(dim=-1)
        # Of a certain class 1 − p is 0, where a power below 1 has no finite gradient.
        doubt = (-log_p.expm1()).clamp_min(torch.finfo(torch.float32).tiny)
        costs = doubt**task.gamma * -log_p
        loss = costs.gather(-1, label[:, None])[:, 0]
        if task.label_smoothing:
            loss = torch.lerp(loss, costs.mean(dim=-1), task.label_smoothing)
    return loss if terms.weights is None else loss * terms.weights[label]


def _of_classes(task: MultilabelTask, output: Tensor, label: Tensor, terms: ClassTerms) -> Tensor:
    """The loss of each class of each sample, float32 [B, C].

    To have a class that has probability p costs (1 − p)^γ · −ln p times its weight, to lack it p^γ · −ln(1 − p); γ is 0 in the
    binary cross entropy. A label between the two, of samples that are mixed, costs its shares of both.

    Args:
        task: which loss.
        output: logits [B, C].
        label: float32 [B, C].
        terms: of the classes.
    """
    logits = output.float()
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    having, lacking = -log_p, -log_q
    if task.gamma:
        # As in _of_class: of 0 a power below 1 has no finite gradient.
        tiny = torch.finfo(torch.float32).tiny
        having = log_q.exp().clamp_min(tiny) ** task.gamma * having
        lacking = log_p.exp().clamp_min(tiny) ** task.gamma * lacking
    if terms.weights is not None:
        having = having * terms.weights
    return torch.lerp(lacking, having, label)


def sample_weights(task: TaskConfig, batch: Mapping[str, Tensor]) -> Tensor:
    """The weight of each sample: that of the batch, and 0 where the label is absent. float32 [B]."""
    weight = batch[WEIGHT]
    return torch.where(batch[presence_name(task.label)], weight, torch.zeros_like(weight))


def other_label_name(label: str) -> str:
    """Name of the array with the class of the sample that each one is mixed with, int64 [B]."""
    return f"{label}.other"


def own_share_name(label: str) -> str:
    """Name of the array with the share that each sample has in its mixture, float32 [B]."""
    return f"{label}.share"
