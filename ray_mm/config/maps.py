"""``segment`` and ``grid``: from which tokens a map of classes is made, and whether the fields suit it.

Encoders whose tokens lie on a grid, row by row: ``cnn`` and ``vit`` of pictures, ``pillars`` of points.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_mm.config.encoders import DEFAULT_CELLS, DEFAULT_PATCH, ENCODERS, EncoderConfig, encoder_name
from ray_mm.config.fields import FieldSpec, ImageField, PointsField, VideoField, is_mask
from ray_mm.config.tasks import GridTask, MapTask, SegmentTask, TaskConfig, labelled_tasks
from ray_mm.errors import UsageError

MAX_PLACES = 81
"""Of the last grid of ``cnn``: enough for attention to point at something, few enough for two CPU cores."""
MAX_PLACES_OF_MAP = 1024
"""Likewise, of the field that a map is made from: what is joined in one token can hardly be told apart again."""

_WITH_GRID = {"image": ("cnn", "vit"), "points": ("pillars",)}


def map_fields(
    task: TaskConfig, inputs: Mapping[str, EncoderConfig], fields: Mapping[str, FieldSpec]
) -> dict[str, str]:
    """Task with a map, by its name as in ``labelled_tasks`` → the input field whose tokens become it."""
    return {
        name: map_field(each, inputs, fields, task_key(name))
        for name, each in labelled_tasks(task).items()
        if isinstance(each, SegmentTask | GridTask)
    }


def task_key(name: str) -> str:
    """Where a task stands in a job file, by its name as in ``labelled_tasks``."""
    return f"model.task.tasks.{name}" if name else "model.task"


def map_field(
    task: MapTask, inputs: Mapping[str, EncoderConfig], fields: Mapping[str, FieldSpec], key: str = "model.task"
) -> str:
    """The input field whose tokens become the map.

    Args:
        task: of the model, or one of its tasks; its label is one with ``target: mask``.
        inputs: of the model.
        fields: of the dataset.
        key: of the task, for messages.

    Raises:
        UsageError: the task names none, and there is none that is meant, or several.
    """
    if task.on is not None:
        if task.on not in inputs:
            raise UsageError(
                f"{key}.on: {task.on!r} is no input of the model; its fields are {', '.join(sorted(inputs))}."
            )
        return task.on
    label = fields[task.label]
    assert is_mask(label), "check_label comes first"
    if not isinstance(task, GridTask):
        assert label.like is not None, "check_label comes first"
        if label.like not in inputs:
            raise UsageError(
                f"{key}.label: {task.label!r} labels the picture {label.like!r}, which the model does not read; add it to "
                f"model.fields, or say with {key}.on from which field the map is made."
            )
        return label.like
    points = sorted(name for name in inputs if isinstance(fields.get(name), PointsField))
    if len(points) != 1:
        found = f"{', '.join(points)} are all of type points" if points else "the model reads no points"
        raise UsageError(f"{key}.on: {found}; name the input field from which the map is made.")
    return points[0]


def encoder_of_map(config: EncoderConfig) -> EncoderConfig:
    """The encoder of the field that a map is made from: with a finer grid, unless the job says how fine."""
    return config if config.max_places is not None else config.model_copy(update={"max_places": MAX_PLACES_OF_MAP})


def cnn_grid(height: int, width: int, config: EncoderConfig) -> tuple[int, int, int]:
    """Rows and columns of the last grid of ``cnn``, and the number of halvings that lead there: at least two."""
    stages = 0
    while stages < 2 or height * width > (config.max_places or MAX_PLACES):
        height, width = -(-height // 2), -(-width // 2)
        stages += 1
    return height, width, stages


def pillars_side(config: EncoderConfig) -> int:
    """Rows, and columns, of the last grid of ``pillars``, after two halvings."""
    side = config.cells or DEFAULT_CELLS
    return -(-side // 4)


def token_grid(spec: FieldSpec, config: EncoderConfig) -> tuple[int, int]:
    """Rows and columns on which an encoder's tokens lie; of points rows go along x, columns along y.

    Args:
        spec: of the field, complete.
        config: of an encoder that has a grid, see ``check_map``.
    """
    if isinstance(spec, ImageField):
        assert spec.height is not None and spec.width is not None
        if encoder_name(spec, config) == "vit":
            patch = config.patch or DEFAULT_PATCH
            return spec.height // patch, spec.width // patch
        return cnn_grid(spec.height, spec.width, config)[:2]
    return pillars_side(config), pillars_side(config)


def check_map(
    task: MapTask, inputs: Mapping[str, EncoderConfig], fields: Mapping[str, FieldSpec], of_task: str = "model.task"
) -> None:
    """Checks that a map can be made from the tokens of a field; the label has been checked.

    Args:
        task: of the model, or one of its tasks.
        inputs: of the model.
        fields: of the dataset.
        of_task: key of the task, for messages.

    Raises:
        UsageError: no field, or one whose encoder has no grid; or the map is smaller than that grid.
    """
    name = map_field(task, inputs, fields, of_task)
    spec, encoder = fields[name], encoder_of_map(inputs[name])
    key, suits = f"model.fields.{name}", _WITH_GRID.get(spec.type, ())
    if not suits:
        raise UsageError(
            f"{of_task}.on: {name!r} is of type {spec.type}, whose tokens lie on no grid; a map is made from a field of type "
            f"{' or '.join(sorted(_WITH_GRID))}."
        )
    if encoder.pretrained is not None:
        raise UsageError(
            f"{key}.pretrained: nobody knows on which grid the tokens of a pretrained model lie, and a map is made from them; "
            f"set {key}.encoder to {' or '.join(suits)}, or {of_task}.on to another field."
        )
    if encoder_name(spec, encoder) not in suits:
        chosen = encoder.encoder or f"{ENCODERS[spec.type][0]}, the default,"
        raise UsageError(
            f"{key}.encoder: the tokens of {chosen} lie on no grid, and a map is made from them; set it to {' or '.join(suits)}, "
            f"or {of_task}.on to another field."
        )
    label = fields[task.label]
    assert is_mask(label), "check_label comes first"
    if label.like is None:
        for other in sorted(inputs):
            seen = fields[other]
            if isinstance(seen, ImageField | VideoField) and seen.random_flip:
                raise UsageError(
                    f"data.fields.{other}.random_flip: the map {task.label!r} would not be mirrored with {other!r}; leave it out."
                )
    sides = [label.height, label.width, *((spec.height, spec.width) if isinstance(spec, ImageField) else ())]
    if any(side is None for side in sides):  # to be taken from the data
        return
    rows, columns = token_grid(spec, encoder)
    assert label.height is not None and label.width is not None
    if label.height < rows or label.width < columns:
        own = {"image": "max_places or a larger patch", "points": "fewer cells"}[spec.type]
        raise UsageError(
            f"{of_task}.label: the map {task.label!r} of {label.height}×{label.width} cells is smaller than the "
            f"{rows}×{columns} tokens of {name!r} that it is made from; give {key} {own}, or make a larger map."
        )
