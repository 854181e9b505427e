"""The schema of a batch: which arrays a field becomes, with shapes and dtypes.

A decoded batch is a flat dict of arrays with the batch as first axis, so that Arrow, torch and ONNX all take it as it is:

    field "camera" (image)    camera            uint8   [B, height, width, channels]
    field "order"  (text)     order             int32   [B, max_tokens], 0 where there is no token
    field "sound"  (audio)    sound             int16   [B, rate_hz × max_seconds];  sound.length int32 [B], in frames
                              (of several channels: int16 [B, rate_hz × max_seconds, channels])
    field "clip"   (video)    clip              uint8   [B, num_frames, height, width, channels]; clip.length int32 [B], in frames
                              clip.time         float32 [B, num_frames], seconds after the first frame of the clip
    field "imu"    (series)   imu               float32 [B, max_length, channels];   imu.length   int32 [B], in steps
    field "radar"  (points)   radar             float32 [B, max_points, channels];   radar.length int32 [B], in points
    field "state"  (vector)   state             float32 [B, size]
    field "action" (label)    action            int64 (class) or float32 (number) [B]; of target: classes float32 [B, classes], 1
                              where a sample has the class; of target: mask uint8 [B, height, width], 255 where a cell has no
                              label
    every field               <name>.presence   bool    [B]: is it there? Where it is not, the arrays hold zeros
    every batch               position          int64   [B]: place in the plan, −1 for padding
                              weight            float32 [B]: 1, or 0 for padding and quarantined samples

Field names hold no dot (``config.base.Name``), so the names can't clash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
    VideoField,
)
from ray_mm.errors import DatasetError

Arrays = dict[str, npt.NDArray[np.generic]]
"""Of a batch, by their names."""

POSITION = "position"
WEIGHT = "weight"


@dataclass(frozen=True)
class ArraySpec:
    """Shape (without the batch axis) and dtype of one array of a batch."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def presence_name(field: str) -> str:
    """Name of the array that says where the field is there."""
    return f"{field}.presence"


def length_name(field: str) -> str:
    """Name of the array with the valid length of an audio, video, series or points field."""
    return f"{field}.length"


def time_name(field: str) -> str:
    """Name of the array with the times of a video's frames."""
    return f"{field}.time"


def size_name(field: str) -> str:
    """Name of the array with the height and width that whole pictures or clips had, see ``whole_arrays``."""
    return f"{field}.size"


def whole_arrays(name: str, spec: ImageField | VideoField) -> dict[str, ArraySpec]:
    """The arrays of a field of pictures or clips before its random parts are cut from whole ones."""
    whole = field_arrays(name, spec.model_copy(update={"height": spec.whole_side, "width": spec.whole_side}))
    return whole | {size_name(name): ArraySpec((2,), np.dtype(np.int32))}


def field_arrays(name: str, spec: FieldSpec) -> dict[str, ArraySpec]:
    """The arrays that one field becomes, presence included. The spec must be complete (see ``require_complete``)."""
    arrays = _content_arrays(name, spec)
    arrays[presence_name(name)] = ArraySpec((), np.dtype(np.bool_))
    return arrays


def _content_arrays(name: str, spec: FieldSpec) -> dict[str, ArraySpec]:
    length = {length_name(name): ArraySpec((), np.dtype(np.int32))}
    match spec:
        case ImageField():
            return {name: ArraySpec((_known(spec.height), _known(spec.width), spec.channels), np.dtype(np.uint8))}
        case TextField():
            return {name: ArraySpec((_known(spec.max_tokens),), np.dtype(np.int32))}
        case AudioField():
            frames = round(_known(spec.rate_hz) * _known_float(spec.max_seconds))
            shape = (frames,) if spec.channels == 1 else (frames, spec.channels)
            return {name: ArraySpec(shape, np.dtype(np.int16))} | length
        case VideoField():
            clip = (spec.num_frames, _known(spec.height), _known(spec.width), spec.channels)
            times = {time_name(name): ArraySpec((spec.num_frames,), np.dtype(np.float32))}
            return {name: ArraySpec(clip, np.dtype(np.uint8))} | times | length
        case SeriesField():
            return {name: ArraySpec((_known(spec.max_length), _known(spec.channels)), np.dtype(np.float32))} | length
        case PointsField():
            return {name: ArraySpec((_known(spec.max_points), _known(spec.channels)), np.dtype(np.float32))} | length
        case VectorField():
            return {name: ArraySpec((_known(spec.size),), np.dtype(np.float32))}
        case LabelField():
            if spec.target == "mask":
                return {name: ArraySpec((_known(spec.height), _known(spec.width)), np.dtype(np.uint8))}
            if spec.target == "classes":
                return {name: ArraySpec((len(spec.classes or ()),), np.dtype(np.float32))}
            return {name: ArraySpec((), np.dtype(np.int64 if spec.target == "class" else np.float32))}
        case _:
            assert_never(spec)


def require_complete(fields: Mapping[str, FieldSpec]) -> None:
    """Checks that nothing is left to be taken from the data.

    Raises:
        DatasetError: a field's shape is not known.
    """
    for name, spec in fields.items():
        unset = [key for key, value in spec.model_dump().items() if value is None and key not in _optional(spec)]
        if unset:
            raise DatasetError(
                f"field {name!r} ({spec.type}): {', '.join(unset)} must be given; the dataset does not say."
            )


def _optional(spec: FieldSpec) -> set[str]:
    match spec:
        case ImageField():
            return {"random_crop"}
        case VideoField():
            return {"random_crop", "rate_hz"}
        case SeriesField():
            # Without times, a series' rate only labels an axis.
            return {"path", "time_path", "rate_hz", "source_rate_hz", "streams"}
        case LabelField():
            if spec.target == "mask":
                return {"path", "like"}
            return {"path", "height", "width", "like"} | ({"classes"} if spec.target == "number" else set())
        case _:
            return {"path"}


def merge_fields(dataset: Mapping[str, FieldSpec], overrides: Mapping[str, FieldSpec]) -> dict[str, FieldSpec]:
    """The dataset's fields with a job's overrides: only keys that the job sets are taken from it.

    Raises:
        DatasetError: an override of a field that is not there, of another type, or of something that lies in the data.
    """
    merged = dict(dataset)
    for name, override in overrides.items():
        if name not in dataset:
            raise DatasetError(
                f"data.fields.{name}: the dataset has no such field; it has {', '.join(sorted(dataset))}."
            )
        if override.type != dataset[name].type:
            raise DatasetError(
                f"data.fields.{name}: the dataset says {dataset[name].type}, the job says {override.type}."
            )
        keys = override.model_fields_set - {"type"}
        fixed = sorted(keys & _fixed_by_data(dataset[name]))
        if fixed:
            raise DatasetError(
                f"data.fields.{name}.{fixed[0]} is fixed when a dataset is made and can't be overridden."
            )
        merged[name] = dataset[name].model_copy(update={key: getattr(override, key) for key in keys})
    for name, spec in merged.items():
        merged[name] = _as_its_picture(spec, dataset, merged, overrides.get(name))
    require_complete(merged)
    return merged


def _as_its_picture(
    spec: FieldSpec, dataset: Mapping[str, FieldSpec], merged: Mapping[str, FieldSpec], override: FieldSpec | None
) -> FieldSpec:
    """A mask that is as large as its picture stays so where a job changes the picture's size alone."""
    if not isinstance(spec, LabelField) or spec.like is None:
        return spec
    before, now = dataset.get(spec.like), merged.get(spec.like)
    if not isinstance(before, ImageField) or not isinstance(now, ImageField):
        return spec
    given = override.model_fields_set if override is not None else set()
    sides = [side for side in ("height", "width") if side not in given and getattr(spec, side) == getattr(before, side)]
    return spec.model_copy(update={side: getattr(now, side) for side in sides})


def _fixed_by_data(spec: FieldSpec) -> set[str]:
    match spec:
        case TextField():
            return {"vocabulary_size", "path"}
        case SeriesField():
            lies = {"channels", "source_rate_hz", "path", "time_path", "streams"}
            # Only what has times, or a rate that is known, can be resampled.
            return lies if spec.source_rate_hz or spec.time_path or spec.streams else lies | {"rate_hz"}
        case PointsField():
            return {"channels", "path", "raw_float32"}
        case VectorField():
            return {"size", "path"}
        case LabelField():
            lies = {"classes", "target", "path", "written_as", "like"}
            return lies if spec.target == "mask" and spec.like is not None else lies | {"height", "width"}
        case _:
            return set()


def _known(value: int | None) -> int:
    assert value is not None, "require_complete comes first"
    return value


def _known_float(value: float | None) -> float:
    assert value is not None, "require_complete comes first"
    return value
