"""Output and label → one loss per sample. Weights are the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from typing_extensions import assert_never

from ray_mm.config.fields import UNLABELLED
from ray_mm.config.tasks import (
    ClassifyTask,
    GridTask,
    MapTask,
    MultilabelTask,
    ReconstructTask,
    RegressTask,
    RetrieveTask,
    SegmentTask,
    SeveralTask,
    TaskConfig,
    labelled_tasks,
    labels_of,
)
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import TARGET
from ray_mm.models.pairs import Gather, alone, pair_losses, tower_presence
from ray_mm.models.targets import reconstruction_losses, reconstruction_sizes


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


Terms: TypeAlias = ClassTerms | Mapping[str, ClassTerms]
"""Of a task, or of several by the names of their labels: then a training's, with all that it weighs its tasks by."""


def training_terms(
    task: TaskConfig, counts: Mapping[str, Sequence[float]], classes: Mapping[str, Sequence[str]]
) -> Terms:
    """What the losses of a training take into account, and those of a validation do not.

    Args:
        task: what is learned.
        counts: label → ``Training.class_counts``; those of others are not needed.
        classes: label → the names of its classes.
    """
    found = {
        each.label: class_terms(each, counts.get(each.label), classes.get(each.label, ()))
        for each in labelled_tasks(task).values()
    }
    if isinstance(task, SeveralTask):
        return found
    return next(iter(found.values()), ClassTerms())


def on_device(terms: Terms, device: torch.device) -> Terms:
    """The same on a device."""
    return (
        terms.to(device) if isinstance(terms, ClassTerms) else {label: each.to(device) for label, each in terms.items()}
    )


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
    if isinstance(task, SegmentTask | GridTask) and task.class_weights is not None:
        return ClassTerms(torch.tensor([task.class_weights[name] for name in classes]))
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
    terms: Terms = ClassTerms(),
    gather: Gather = alone,
) -> Tensor:
    """The loss of each sample.

    Args:
        task: what is predicted, and how it is judged.
        output: of the model: logits [B, C] or [B, C, H, W], standardised values [B], what a retrieval compares [B, K, E + 2],
            what the fields are thought to be like [B, N], or those of several tasks beside each other.
        batch: holds presence, and the label: int64 [B], float32 [B, C], float32 [B] in its own unit, or uint8 [B, H, W]; of
            samples that are mixed of two and have one class each, also that of the other one (``other_label_name``) and the
            share of the first (``own_share_name``); of a reconstruction the targets (``models.targets``).
        preprocessor: the statistics of a number label, the fields of a reconstruction.
        terms: in a training, of its classes. A validation has none: its loss is that of the samples as they are.
        gather: brings the rows of all workers together, for a retrieval.

    Returns:
        float32 [B]. Where a sample has no label the value means nothing; see ``sample_weights``.
    """
    if isinstance(task, RetrieveTask):
        # It has no label: all that is prepared is an input.
        return pair_losses(task, output, tower_presence(task.towers_of(preprocessor.fields), batch), gather)
    if isinstance(task, ReconstructTask):
        return reconstruction_losses(output, batch[TARGET], reconstruction_sizes(task, preprocessor))
    if isinstance(task, SeveralTask):
        return _of_several(task, output, batch, preprocessor, terms)
    assert isinstance(terms, ClassTerms)
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
        case SegmentTask() | GridTask():
            return _of_map(task, output, label, terms)
        case _:
            assert_never(task)


def _of_several(
    task: SeveralTask, output: Tensor, batch: Mapping[str, Tensor], preprocessor: Preprocessor, terms: Terms
) -> Tensor:
    """The sum over the tasks whose label is there, each times its weight; float32 [B].

    A task with a learned variance σ² costs L / σ² + ln σ, and L / 2σ² + ln σ where its loss is a squared error (arXiv
    1705.07115): a larger variance makes it count less, and costs something itself. In a validation the weights are those of the
    job alone.
    """
    total = output.new_zeros(output.shape[0], dtype=torch.float32)
    places, shapes = task.slices(preprocessor.fields), task.shapes(preprocessor.fields)
    of_training = terms if isinstance(terms, Mapping) else None
    for number, (name, each) in enumerate(sorted(task.tasks.items())):
        own = task_output(output, places[name], shapes[name])
        loss = loss_per_sample(
            each, own, batch, preprocessor, of_training[each.label] if of_training is not None else ClassTerms()
        )
        if task.weighting == "uncertainty" and of_training is not None:
            log_variance = output[:, number - len(places)].float()
            scale = 0.5 if isinstance(each, RegressTask) else 1.0
            loss = scale * loss * torch.exp(-log_variance) + log_variance / 2
        # Where there is no label the value means nothing, and may be anything.
        there = batch[presence_name(each.label)]
        total = total + torch.where(there, loss * task.weights.get(name, 1.0), 0.0)
    return total


def task_output(output: Tensor, place: slice, shape: Sequence[int]) -> Tensor:
    """What a model of several tasks puts out for one of them, as a model of it alone would: [B, C], [B, C, H, W] of a map, or
    [B] of a number.

    Args:
        output: [B, N].
        place: of the task, see ``SeveralTask.slices``.
        shape: see ``SeveralTask.shapes``.
    """
    return output[:, place].reshape(output.shape[0], *shape)


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


def _of_map(task: MapTask, output: Tensor, label: Tensor, terms: ClassTerms) -> Tensor:
    """The cross entropy of each sample, the mean over its labelled cells, weighted by their classes; float32 [B]. Of a map
    without a labelled cell it is 0.

    Args:
        task: how far labels are smoothed.
        output: logits [B, C, H, W].
        label: uint8 [B, H, W], 255 where a cell has none.
        terms: the weights of the classes.
    """
    classes, smoothing = label.long(), task.label_smoothing
    labelled = classes != UNLABELLED
    log_p = output.float().log_softmax(dim=1)
    true = torch.where(labelled, classes, 0)
    costs = -log_p.gather(1, true[:, None])[:, 0]
    if smoothing:
        costs = torch.lerp(costs, -log_p.mean(dim=1), smoothing)
    weights = labelled.to(costs.dtype) if terms.weights is None else terms.weights[true] * labelled
    # Not for a map without labels alone: the smallest weight may be far below 1.
    return (costs * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(torch.finfo(torch.float32).tiny)


def sample_weights(task: TaskConfig, batch: Mapping[str, Tensor], fields: Iterable[str] = ()) -> Tensor:
    """The weight of each sample: that of the batch, and 0 where all of its labels are absent, or all but one tower, or all that
    is to be reconstructed. float32 [B].

    Args:
        task: what is learned.
        batch: weight and presence of the label and the inputs.
        fields: the inputs, for a retrieval or a reconstruction.
    """
    weight = batch[WEIGHT]
    if isinstance(task, RetrieveTask):
        counts = tower_presence(task.towers_of(fields), batch).sum(dim=1) > 1
    elif isinstance(task, ReconstructTask):
        counts = torch.stack([batch[presence_name(name)] for name in task.fields_of(fields)]).any(dim=0)
    else:
        counts = torch.stack([batch[presence_name(label)] for label in labels_of(task)]).any(dim=0)
    return torch.where(counts, weight, torch.zeros_like(weight))


def other_label_name(label: str) -> str:
    """Name of the array with the class of the sample that each one is mixed with, int64 [B]."""
    return f"{label}.other"


def own_share_name(label: str) -> str:
    """Name of the array with the share that each sample has in its mixture, float32 [B]."""
    return f"{label}.share"
