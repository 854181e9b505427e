"""``model.task`` of a train job: what is predicted, and whether the label suits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ray_mm.config.base import Config, Name
from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.errors import UsageError


def _form(value: Any) -> str:
    return "section" if isinstance(value, dict) else "word"


HIGHER_IS_BETTER = frozenset({"accuracy", "macro_f1", "micro_f1", "map"})
"""Shares among the figures of tasks; of all others the lowest is the best."""


@dataclass(frozen=True)
class TaskFigures:
    """Which label a task needs, and by which figures its models are compared.

    Attributes:
        target: of its label.
        validation: figures of a validation by which the best weights can be chosen.
        best: those that choose them where a job names none: the first, and of equals the next.
        main: of a validation and of an evaluation, by which subsets of the fields are compared.
        gate: of an evaluation, which a compression must not lose.
    """

    target: Literal["class", "classes", "number"]
    validation: tuple[str, ...]
    best: tuple[str, ...]
    main: str
    gate: str

    @property
    def sign(self) -> float:
        """What makes the main figure one that is better when it is larger."""
        return 1.0 if self.main in HIGHER_IS_BETTER else -1.0


FIGURES = {
    "classify": TaskFigures("class", ("accuracy", "macro_f1", "loss"), ("accuracy", "loss"), "accuracy", "accuracy"),
    "multilabel": TaskFigures(
        "classes", ("micro_f1", "macro_f1", "map", "loss"), ("micro_f1", "loss"), "micro_f1", "micro_f1"
    ),
    "regress": TaskFigures("number", ("loss", "mae", "rmse"), ("rmse",), "mae", "rmse"),
}
"""Type of a task → its figures. What else a task is, stands once in each of ``models.heads``, ``models.losses``, ``answers``,
``training.scores`` and ``evaluation.tasks``."""

Positive = Annotated[float, Field(gt=0)]

ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("word")] | Annotated[dict[str, Positive], Tag("section")], Discriminator(_form)
]
"""Found from how often each class is drawn, or class → weight."""


def _check_gamma(loss: str, focal_gamma: float | None) -> None:
    if focal_gamma is not None and loss != "focal":
        raise ValueError(
            f"focal_gamma {focal_gamma:g} belongs to loss: focal, and loss is {loss}; set both or leave it out"
        )


def _gamma(loss: str, focal_gamma: float | None) -> float:
    return (focal_gamma or 2.0) if loss == "focal" else 0.0


class ClassifyTask(Config):
    """Predict one of the classes of a label."""

    type: Literal["classify"] = "classify"
    label: Name
    """The label field."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Cross entropy, or the focal loss (arXiv 1708.02002), in which samples that are predicted well count less."""
    focal_gamma: Positive | None = None
    """Only for ``loss: focal``: the higher, the less such samples count. Unset: 2."""
    class_weights: ClassWeights | None = None
    """How much a sample of each class counts in training: class → weight, of every class; only their ratios matter. Or
    ``balanced``: every class as much as the others, however often it is drawn. Unset: all samples alike."""
    logit_adjustment: Positive | None = None
    """In training, add this times the logarithm of each class's share of the drawn samples to its logit (arXiv 2007.07314), so
    that the model learns to predict as if all classes were as frequent: fully with 1, less with less. Unset: nothing."""

    @model_validator(mode="after")
    def _settings_fit(self) -> ClassifyTask:
        _check_gamma(self.loss, self.focal_gamma)
        if self.logit_adjustment is not None and self.class_weights == "balanced":
            raise ValueError(
                f"logit_adjustment {self.logit_adjustment:g} and class_weights: balanced each make up for how often a class is "
                "drawn, and together they would do so twice; leave one of the two out"
            )
        return self

    @property
    def gamma(self) -> float:
        """The exponent of the focal loss; with 0 it is the cross entropy."""
        return _gamma(self.loss, self.focal_gamma)

    @property
    def needs_class_counts(self) -> bool:
        """Whether its loss depends on how often each class is drawn."""
        return self.class_weights is not None or self.logit_adjustment is not None


class MultilabelTask(Config):
    """Predict which of the classes of a label a sample has: any number of them, also none."""

    type: Literal["multilabel"] = "multilabel"
    label: Name
    """The label field, with ``target: classes``."""
    loss: Literal["bce", "focal"] = "bce"
    """Binary cross entropy, mean over the classes, or the focal loss (arXiv 1708.02002): what is predicted well counts less."""
    focal_gamma: Positive | None = None
    """Only for ``loss: focal``: the higher, the less such classes count. Unset: 2."""
    pos_weight: ClassWeights | None = None
    """How much having a class counts in training, where lacking it counts 1: class → weight; others 1. Or ``balanced``: for each
    class as many times as samples that lack it are more frequent than those that have it. Unset: 1."""

    @model_validator(mode="after")
    def _settings_fit(self) -> MultilabelTask:
        _check_gamma(self.loss, self.focal_gamma)
        return self

    @property
    def gamma(self) -> float:
        """The exponent of the focal loss; with 0 it is the binary cross entropy."""
        return _gamma(self.loss, self.focal_gamma)

    @property
    def needs_class_counts(self) -> bool:
        """Whether its loss depends on how many samples have each class."""
        return self.pos_weight == "balanced"


class RegressTask(Config):
    """Predict a number."""

    type: Literal["regress"] = "regress"
    label: Name
    """The label field."""
    loss: Literal["mse", "huber"] = "mse"
    """Squared error, or Huber's (less swayed by outliers), on the standardised label."""

    @property
    def needs_class_counts(self) -> bool:
        """A number has no classes."""
        return False


TaskConfig = Annotated[ClassifyTask | MultilabelTask | RegressTask, Field(discriminator="type")]


def check_label(task: TaskConfig, fields: Mapping[str, FieldSpec]) -> None:
    """Checks the label of a task against the fields of a dataset.

    Raises:
        UsageError: it is not there, no label, or of another kind than the task predicts; or the weights of its classes are of
            others.
    """
    spec = fields.get(task.label)
    labels = sorted(name for name, field in fields.items() if field.type == "label")
    known = f"labels are {', '.join(labels)}" if labels else "it has no label at all"
    if spec is None:
        raise UsageError(f"model.task.label: the dataset has no field {task.label!r}; {known}.")
    if not isinstance(spec, LabelField):
        raise UsageError(f"model.task.label: {task.label!r} is a field of type {spec.type}, not a label; {known}.")
    target = FIGURES[task.type].target
    if spec.target != target:
        suits = next(name for name, figures in FIGURES.items() if figures.target == spec.target)
        remedy = f"set model.task.type to {suits}, or choose another label."
        if task.type == "regress":
            # To classify instead would fit the dataset, and not what was asked for.
            remedy = (
                f"make the dataset again with {task.label}: {{type: label, target: number}}, or, to tell its "
                f"{len(spec.classes or ()):,} classes apart, set model.task.type to {suits}."
            )
        raise UsageError(
            f"model.task.type: {task.type} needs a label with target {target}, and {task.label!r} has target {spec.target}; "
            f"{remedy}"
        )
    if target != "number" and len(spec.classes or ()) < 2:
        raise UsageError(
            f"model.task.label: {task.label!r} has {len(spec.classes or ())} class; to {_PURPOSE[target]} it takes at least two."
        )
    if isinstance(task, ClassifyTask) and isinstance(task.class_weights, dict):
        _check_weights(task.label, "class_weights", task.class_weights, spec.classes or ())
        missing = [name for name in spec.classes or () if name not in task.class_weights]
        if missing:
            raise UsageError(
                f"model.task.class_weights: of the {len(spec.classes or ()):,} classes of {task.label!r} these have no weight: "
                f"{', '.join(missing)}; give every class one, such as 1."
            )
    if isinstance(task, MultilabelTask) and isinstance(task.pos_weight, dict):
        _check_weights(task.label, "pos_weight", task.pos_weight, spec.classes or ())


_PURPOSE = {"class": "classify", "classes": "tell which of them a sample has"}


def _check_weights(label: str, key: str, weights: Mapping[str, float], classes: Sequence[str]) -> None:
    unknown = next((name for name in weights if name not in classes), None)
    if unknown is not None:
        raise UsageError(
            f"model.task.{key}.{unknown}: {label!r} has no such class; its classes are {', '.join(classes)}."
        )
