"""Whether a task suits a model's inputs and a dataset's fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.tasks.figures import FIGURES
from ray_mm.config.tasks.kinds import LabelledTask, TaskConfig, labelled_tasks
from ray_mm.config.tasks.maps import GridTask, SegmentTask
from ray_mm.config.tasks.reconstruct import ReconstructTask
from ray_mm.config.tasks.retrieve import RetrieveTask
from ray_mm.config.tasks.sample import ClassifyTask, MultilabelTask
from ray_mm.errors import UsageError


def check_task(task: TaskConfig, inputs: Iterable[str], fields: Mapping[str, FieldSpec]) -> None:
    """Checks a task against a model's input fields and the fields of a dataset.

    Raises:
        UsageError: as ``check_label``; or the towers are not made of the inputs, or there is only one; or what is to be
            reconstructed is no input.
    """
    inputs = sorted(inputs)
    if isinstance(task, RetrieveTask):
        _check_towers(task, inputs, fields)
    elif isinstance(task, ReconstructTask):
        unknown = next((name for name in task.fields or () if name not in inputs), None)
        if unknown is not None:
            raise UsageError(
                f"model.task.fields: {unknown!r} is no input of the model; its fields are {', '.join(inputs)}."
            )
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
        suits = "grid" if _is_own_map(spec) else next(n for n, found in FIGURES.items() if found.target == spec.target)
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
    if target == "mask" and _is_own_map(spec) != isinstance(task, GridTask):
        what = "a map of its own" if spec.like is None else f"a mask of the picture {spec.like!r}"
        raise UsageError(
            f"{key}.type: {task.label!r} is {what}; set it to {'grid' if spec.like is None else 'segment'}, or choose "
            "another label."
        )
    if isinstance(task, ClassifyTask | SegmentTask | GridTask) and isinstance(task.class_weights, dict):
        _check_weights(key, task.label, "class_weights", task.class_weights, spec.classes or ())
        missing = [name for name in spec.classes or () if name not in task.class_weights]
        if missing:
            raise UsageError(
                f"{key}.class_weights: of the {len(spec.classes or ()):,} classes of {task.label!r} these have no weight: "
                f"{', '.join(missing)}; give every class one, such as 1."
            )
    if isinstance(task, MultilabelTask) and isinstance(task.pos_weight, dict):
        _check_weights(key, task.label, "pos_weight", task.pos_weight, spec.classes or ())


_PURPOSE = {"class": "classify", "classes": "tell which of them a sample has", "mask": "tell cells apart"}


def _is_own_map(spec: LabelField) -> bool:
    return spec.target == "mask" and spec.like is None


def _check_weights(task: str, label: str, key: str, weights: Mapping[str, float], classes: Sequence[str]) -> None:
    unknown = next((name for name in weights if name not in classes), None)
    if unknown is not None:
        raise UsageError(f"{task}.{key}.{unknown}: {label!r} has no such class; its classes are {', '.join(classes)}.")
