"""What a task takes: mistakes are told by the key, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.load import load_job
from ray_mm.config.tasks import FIGURES, ClassifyTask, MultilabelTask, RegressTask, TaskConfig, check_label
from ray_mm.errors import JobFileError, UsageError
from tests.config.jobs import SMALLEST

FIELDS: dict[str, FieldSpec] = {"label": LabelField(classes=("cat", "dog", "eel"))}


def load(**task: Any) -> ClassifyTask:
    job = load_job(SMALLEST["train"], {f"model.task.{key}": value for key, value in task.items()})
    assert job.kind == "train" and isinstance(job.model.task, ClassifyTask)
    return job.model.task


def test_the_exponent_is_that_of_the_paper_unless_it_is_given() -> None:
    assert load().gamma == 0
    assert load(loss="focal").gamma == 2
    assert load(loss="focal", focal_gamma=0.5).gamma == 0.5


def test_what_depends_on_how_often_classes_are_drawn_is_known() -> None:
    assert not load(loss="focal").needs_class_counts
    for task in ({"class_weights": "balanced"}, {"class_weights": {"cat": 2}}, {"logit_adjustment": 1}):
        assert load(**task).needs_class_counts


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"loss": "hinge"}, r"model\.task.*loss: must be one of cross_entropy, focal; found 'hinge'"),
        ({"focal_gamma": 2}, r"model\.task.*: focal_gamma 2 belongs to loss: focal, and loss is cross_entropy"),
        ({"loss": "focal", "focal_gamma": 0}, r"model\.task.*focal_gamma: .*greater than 0"),
        ({"class_weights": "balance"}, r"model\.task.*class_weights: must be .*balanced.*found 'balance'"),
        ({"class_weights": 3}, r"model\.task.*class_weights: "),
        ({"class_weights": {"cat": 0}}, r"model\.task.*class_weights\.cat: .*greater than 0"),
        ({"class_weights": {"cat": "much"}}, r"model\.task.*class_weights\.cat: .*number"),
        ({"logit_adjustment": -1}, r"model\.task.*logit_adjustment: .*greater than 0"),
        (
            {"logit_adjustment": 1, "class_weights": "balanced"},
            r"model\.task.*: logit_adjustment 1 and class_weights: balanced each make up .* twice; leave one",
        ),
    ],
)
def test_a_mistake_is_told_by_its_key(task: dict[str, Any], message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        load(**task)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"cat": 1, "dog": 1, "elk": 1},
            r"^model\.task\.class_weights\.elk: 'label' has no such class; .* cat, dog, eel",
        ),
        ({"dog": 3}, r"^model\.task\.class_weights: of the 3 classes of 'label' these have no weight: cat, eel"),
    ],
)
def test_weights_are_of_every_class_and_of_no_other(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_label(load(class_weights=weights), FIELDS)


def test_weights_of_all_classes_pass() -> None:
    check_label(load(class_weights={"eel": 9, "cat": 1, "dog": 2.5}), FIELDS)
    check_label(load(class_weights="balanced"), FIELDS)


@pytest.mark.parametrize("task", [{"class_weights": "balanced"}, {"logit_adjustment": 1}])
def test_classes_that_are_drawn_alike_need_nothing_more(task: dict[str, Any]) -> None:
    (key,) = task
    overrides: dict[str, Any] = {f"model.task.{key}": task[key]}
    with pytest.raises(JobFileError, match=rf"model\.task\.{key}.*nothing is left to make up for.*square_root"):
        load_job(SMALLEST["train"], overrides | {"data.balance": {"label": "label"}})
    for balance in ({"label": "label", "method": "square_root"}, {"label": "weather"}):
        load_job(SMALLEST["train"], overrides | {"data.balance": balance})
    # Weights that somebody chose say more than how often a class is drawn.
    load_job(SMALLEST["train"], {"model.task.class_weights": {"cat": 2}, "data.balance": {"label": "label"}})


SEVERAL: dict[str, FieldSpec] = {
    "label": LabelField(target="classes", classes=("cat", "dog", "eel")),
    "kind": LabelField(classes=("cat", "dog")),
    "speed": LabelField(target="number"),
    "only": LabelField(target="classes", classes=("cat",)),
}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            MultilabelTask(label="kind"),
            "multilabel needs a label with target classes, .*'kind' has target class; set .* to classify",
        ),
        (MultilabelTask(label="speed"), "'speed' has target number; set model.task.type to regress"),
        (
            ClassifyTask(label="label"),
            "classify needs a label with target class, .*target classes; set .* to multilabel",
        ),
        (
            RegressTask(label="label"),
            "target: number}, or, to tell its 3 classes apart, set model.task.type to multilabel",
        ),
        (MultilabelTask(label="only"), r"model\.task\.label: 'only' has 1 class; to tell which .* at least two"),
        (
            MultilabelTask(label="label", pos_weight={"fox": 2.0}),
            r"model\.task\.pos_weight\.fox: 'label' has no such class; its classes are cat, dog, eel",
        ),
    ],
)
def test_a_label_of_another_target_is_refused_with_what_would_suit_it(task: TaskConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_label(task, SEVERAL)


def test_some_classes_may_have_weights_of_their_own() -> None:
    task = MultilabelTask(label="label", pos_weight={"dog": 2.0})
    check_label(task, SEVERAL)
    assert not task.needs_class_counts and MultilabelTask(label="label", pos_weight="balanced").needs_class_counts
    with pytest.raises(ValueError, match="focal_gamma 2 belongs to loss: focal, and loss is bce"):
        MultilabelTask(label="label", focal_gamma=2)


def test_the_figures_of_a_task_can_choose_its_best_weights() -> None:
    job = load_job(SMALLEST["train"], {"model.task.type": "multilabel"})
    assert job.kind == "train" and (job.metric, job.higher_is_better) == ("micro_f1", True)
    for figures in FIGURES.values():
        assert {*figures.best} <= {*figures.validation}
    with pytest.raises(
        JobFileError, match="best_metric 'accuracy' is no figure of the task multilabel; choose micro_f1"
    ):
        load_job(
            SMALLEST["train"],
            {"model.task.type": "multilabel", "train.best_metric": "accuracy", "data.validation": "v"},
        )
