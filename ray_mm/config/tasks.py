"""``model.task`` of a train job: what is learned, and whether the fields suit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from ray_mm.config.base import Config, Name
from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.errors import UsageError


def _form(value: Any) -> str:
    return "section" if isinstance(value, dict) else "word"


HIGHER_IS_BETTER = frozenset(
    {"accuracy", "macro_f1", "micro_f1", "map", "recall_at_1", "recall_at_5", "recall_at_10", "mrr"}
)
"""Shares among the figures of tasks; of all others the lowest is the best."""


@dataclass(frozen=True)
class TaskFigures:
    """Which label a task needs, and by which figures its models are compared.

    Attributes:
        target: of its label; None: it has none.
        validation: figures of a validation by which the best weights can be chosen.
        best: those that choose them where a job names none: the first, and of equals the next.
        main: of a validation and of an evaluation, by which subsets of the fields are compared.
        gate: of an evaluation, which a compression must not lose.
    """

    target: Literal["class", "classes", "number"] | None
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
    "several": TaskFigures(None, ("loss",), ("loss",), "loss", "loss"),
    "retrieve": TaskFigures(
        None,
        ("mrr", "recall_at_1", "recall_at_5", "recall_at_10", "loss"),
        ("mrr", "loss"),
        "recall_at_10",
        "recall_at_10",
    ),
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


class RetrieveTask(Config):
    """Find what belongs together, such as pictures and their descriptions: each side of a sample becomes a vector, near that of
    its other side and far from those of other samples."""

    type: Literal["retrieve"] = "retrieve"
    towers: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] | None = None
    """The sides: name → its input fields, which ``model.fusion`` joins. Unset: each field is one."""
    loss: Literal["info_nce", "siglip"] = "info_nce"
    """InfoNCE (arXiv 1807.03748, as CLIP has it, 2103.00020): which of all samples of the batch belongs to this one. SigLIP
    (2303.15343): whether two of them belong together, each pair by itself."""
    dim: int = Field(default=128, ge=2, le=8192)
    """Numbers in a vector."""
    shared: bool = False
    """One encoder, fusion and projection for all sides, each of one field of the same type: to find another picture of it."""
    temperature: Positive | None = None
    """By which cosines are divided at first; it is learned. Unset: 0.07, with ``loss: siglip`` 0.1."""

    @model_validator(mode="after")
    def _towers_differ(self) -> RetrieveTask:
        seen: dict[str, str] = {}
        for tower, names in (self.towers or {}).items():
            for name in names:
                if name in seen:
                    where = f"twice in {tower}" if seen[name] == tower else f"in {seen[name]} and in {tower}"
                    raise ValueError(f"towers: {name!r} stands {where}; each field belongs to one of them")
                seen[name] = tower
            if self.shared and len(names) > 1:
                raise ValueError(
                    f"towers.{tower} has {len(names)} fields, and with shared: true each of them has one; take the others out"
                )
        return self

    @property
    def needs_class_counts(self) -> bool:
        """There are no classes."""
        return False

    def towers_of(self, fields: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Tower → its fields, sorted, of a model with these input fields; the towers in the order of their names."""
        towers = self.towers if self.towers is not None else {name: (name,) for name in fields}
        return {name: tuple(sorted(towers[name])) for name in sorted(towers)}


LabelledTask: TypeAlias = ClassifyTask | MultilabelTask | RegressTask
"""Those that predict a label."""


class SeveralTask(Config):
    """Predict several labels at once, each as a task of its own would, from what the fields say together. A sample may lack some
    of the labels."""

    type: Literal["several"] = "several"
    tasks: dict[Name, Annotated[LabelledTask, Field(discriminator="type")]] = Field(min_length=2)
    """Name → what is predicted, as ``model.task`` would say it."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """The loss of a sample is the sum of its tasks'. ``uncertainty``: each is weighed by how well it can be predicted, which is
    learned (arXiv 1705.07115)."""
    weights: dict[Name, Positive] = Field(default={})
    """Task → how much its loss counts; others 1."""

    @model_validator(mode="after")
    def _labels_differ(self) -> SeveralTask:
        seen: dict[str, str] = {}
        for name, task in self.tasks.items():
            if task.label in seen:
                raise ValueError(
                    f"tasks.{name}.label {task.label!r} is that of {seen[task.label]}, too; take one of them out"
                )
            seen[task.label] = name
        for name in self.weights:
            if name not in self.tasks:
                raise ValueError(f"weights.{name}: there is no such task; they are {', '.join(self.tasks)}")
        return self

    def slices(self, fields: Mapping[str, FieldSpec]) -> dict[str, slice]:
        """Task → where its numbers stand in the model's output, the tasks in the order of their names.

        Args:
            fields: the labels among them.
        """
        found, start = {}, 0
        for name, task in sorted(self.tasks.items()):
            label = fields[task.label]
            assert isinstance(label, LabelField)
            stop = start + (1 if label.target == "number" else len(label.classes or ()))
            found[name], start = slice(start, stop), stop
        return found


TaskConfig = Annotated[LabelledTask | RetrieveTask | SeveralTask, Field(discriminator="type")]


def labelled_tasks(task: TaskConfig) -> dict[str, LabelledTask]:
    """The tasks with a label that a model has, by the name that stands before their keys and figures: one alone has none."""
    if isinstance(task, RetrieveTask):
        return {}
    return dict(sorted(task.tasks.items())) if isinstance(task, SeveralTask) else {"": task}


def labels_of(task: TaskConfig) -> tuple[str, ...]:
    """The label fields that a task reads beside the inputs."""
    return tuple(each.label for each in labelled_tasks(task).values())


def check_task(task: TaskConfig, inputs: Iterable[str], fields: Mapping[str, FieldSpec]) -> None:
    """Checks a task against a model's input fields and the fields of a dataset.

    Raises:
        UsageError: as ``check_label``; or the towers are not made of the inputs, or there is only one.
    """
    if isinstance(task, RetrieveTask):
        _check_towers(task, sorted(inputs), fields)
    for name, each in labelled_tasks(task).items():
        check_label(each, fields, f"model.task.tasks.{name}" if name else "model.task")


def _check_towers(task: RetrieveTask, inputs: Sequence[str], fields: Mapping[str, FieldSpec]) -> None:
    towers = task.towers_of(inputs)
    named = {name for names in towers.values() for name in names}
    for tower, names in towers.items():
        unknown = next((name for name in names if name not in inputs), None)
        if unknown is not None:
            raise UsageError(
                f"model.task.towers.{tower}: {unknown!r} is no input of the model; its fields are {', '.join(inputs)}."
            )
    left_out = next((name for name in inputs if name not in named), None)
    if left_out is not None:
        raise UsageError(
            f"model.task.towers: {left_out!r} is an input of the model and stands in no tower; add it to one, or take it out of "
            "model.fields."
        )
    if len(towers) < 2:
        given = "one field" if task.towers is None else "one tower"
        raise UsageError(
            f"model.task.type: retrieve finds for one side of a sample the other, and this model has {given}, "
            f"{next(iter(towers))!r}; add another to model.fields."
        )
    if task.shared:
        first, *others = inputs
        own = {"path", "streams"}  # where a value lies in its member, which may differ
        for name in others:
            if fields[name].model_dump(exclude=own) != fields[first].model_dump(exclude=own):
                raise UsageError(
                    f"model.task.shared: {first!r} and {name!r} are not decoded alike, so one encoder can't read both; give both "
                    "the same settings in data.fields, or leave it out."
                )


def check_label(task: LabelledTask, fields: Mapping[str, FieldSpec], key: str = "model.task") -> None:
    """Checks the label of a task against the fields of a dataset.

    Args:
        task: what is predicted.
        fields: of the dataset.
        key: of the task, for messages.

    Raises:
        UsageError: it is not there, no label, or of another kind than the task predicts; or the weights of its classes are of
            others.
    """
    spec = fields.get(task.label)
    labels = sorted(name for name, field in fields.items() if field.type == "label")
    known = f"labels are {', '.join(labels)}" if labels else "it has no label at all"
    if spec is None:
        raise UsageError(f"{key}.label: the dataset has no field {task.label!r}; {known}.")
    if not isinstance(spec, LabelField):
        raise UsageError(f"{key}.label: {task.label!r} is a field of type {spec.type}, not a label; {known}.")
    target = FIGURES[task.type].target
    assert target is not None
    if spec.target != target:
        suits = next(name for name, figures in FIGURES.items() if figures.target == spec.target)
        remedy = f"set {key}.type to {suits}, or choose another label."
        if task.type == "regress":
            # To classify instead would fit the dataset, and not what was asked for.
            remedy = (
                f"make the dataset again with {task.label}: {{type: label, target: number}}, or, to tell its "
                f"{len(spec.classes or ()):,} classes apart, set {key}.type to {suits}."
            )
        raise UsageError(
            f"{key}.type: {task.type} needs a label with target {target}, and {task.label!r} has target {spec.target}; "
            f"{remedy}"
        )
    if target != "number" and len(spec.classes or ()) < 2:
        raise UsageError(
            f"{key}.label: {task.label!r} has {len(spec.classes or ())} class; to {_PURPOSE[target]} it takes at least two."
        )
    if isinstance(task, ClassifyTask) and isinstance(task.class_weights, dict):
        _check_weights(key, task.label, "class_weights", task.class_weights, spec.classes or ())
        missing = [name for name in spec.classes or () if name not in task.class_weights]
        if missing:
            raise UsageError(
                f"{key}.class_weights: of the {len(spec.classes or ()):,} classes of {task.label!r} these have no weight: "
                f"{', '.join(missing)}; give every class one, such as 1."
            )
    if isinstance(task, MultilabelTask) and isinstance(task.pos_weight, dict):
        _check_weights(key, task.label, "pos_weight", task.pos_weight, spec.classes or ())


_PURPOSE = {"class": "classify", "classes": "tell which of them a sample has"}


def _check_weights(task: str, label: str, key: str, weights: Mapping[str, float], classes: Sequence[str]) -> None:
    unknown = next((name for name in weights if name not in classes), None)
    if unknown is not None:
        raise UsageError(f"{task}.{key}.{unknown}: {label!r} has no such class; its classes are {', '.join(classes)}.")
