"""Tasks that predict a label of a whole sample: one class, any number of classes, a number."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from ray_mm.config.base import Config, Name


def _form(value: Any) -> str:
    return "section" if isinstance(value, dict) else "word"


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


SampleTask: TypeAlias = ClassifyTask | MultilabelTask | RegressTask
"""Those that predict a label of a whole sample."""
