"""Field specs of a job, some values unset → complete specs, from what the data turned out to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from ray_mm.errors import RayMMError
from ray_mm.preprocessing.summary import FieldSummary
from ray_mm.preprocessing.table import listing

MAX_SIDE = 224
MAX_TOKENS = 256
MAX_SECONDS = 30.0
MAX_STEPS = 4096
MAX_POINTS = 4096


@dataclass(frozen=True)
class TextFacts:
    """What is known of a text field once its tokenizer is trained."""

    vocabulary_size: int
    max_tokens: int


def complete_fields(
    fields: Mapping[str, FieldSpec], found: Mapping[str, FieldSummary], texts: Mapping[str, TextFacts]
) -> dict[str, FieldSpec]:
    """Fills in what a job leaves unset.

    Args:
        fields: of the job; class labels with their classes.
        found: field → what its members in all splits are like.
        texts: text field → its tokenizer's facts.

    Raises:
        RayMMError: a value is unset and no sample has the field; or samples differ in what must be the same.
    """
    complete = {name: _complete(name, spec, found[name], texts.get(name)) for name, spec in sorted(fields.items())}
    for name, spec in complete.items():
        picture = complete.get(spec.like) if isinstance(spec, LabelField) and spec.like is not None else None
        if isinstance(spec, LabelField) and isinstance(picture, ImageField):
            sides = {"height": spec.height or picture.height, "width": spec.width or picture.width}
            complete[name] = spec.model_copy(update=sides)
    return complete


def _complete(name: str, spec: FieldSpec, found: FieldSummary, text: TextFacts | None) -> FieldSpec:
    update: dict[str, Any]
    if not found.present and found.unusable:
        row, reason = found.first_unusable or (0, "")
        first = f" (row {row}: {reason})" if row else ""
        raise RayMMError(
            f"fields.{name}: none of its {found.unusable:,} cells could be used{first}; is it the right column, and of type "
            f"{spec.type}? Correct the job or the table, or remove the field."
        )
    match spec:
        case ImageField() | VideoField():
            unset = spec.height is None or spec.width is None
            sizes = _sizes(name, "height and width", found) if unset else {}
            update = {
                "height": spec.height or min(_median(_sums(sizes, 0)), MAX_SIDE),
                "width": spec.width or min(_median(_sums(sizes, 1)), MAX_SIDE),
            }
        case TextField():
            assert text is not None
            update = {
                "vocabulary_size": text.vocabulary_size,
                "max_tokens": spec.max_tokens or max(1, min(text.max_tokens, MAX_TOKENS)),
            }
        case AudioField():
            unset = spec.rate_hz is None or spec.max_seconds is None
            rates = _sums(_sizes(name, "rate_hz and max_seconds", found), 0) if unset else {}
            update = {
                # Of two equally frequent rates the higher one loses nothing.
                "rate_hz": spec.rate_hz or max(rates, key=lambda rate: (rates[rate], rate)),
                "max_seconds": spec.max_seconds or min(found.longest, MAX_SECONDS),
            }
        case SeriesField():
            update = {
                "channels": _same(name, "channels", found, spec.channels),
                "max_length": spec.max_length or _longest(name, "max_length", found, MAX_STEPS),
                # The shards hold the values alone, at this rate.
                "source_rate_hz": spec.rate_hz,
                "path": None,
                "time_path": None,
                "streams": None,
            }
        case PointsField():
            update = {
                "channels": _same(name, "channels", found, spec.channels),
                "max_points": spec.max_points or _longest(name, "max_points", found, MAX_POINTS),
                "path": None,
                "raw_float32": False,
            }
        case VectorField():
            update = {"size": _same(name, "size", found, spec.size), "path": None}
        case LabelField() if spec.target == "mask" and spec.like is None:
            update = {
                "height": _same(name, "height", found, spec.height, 0),
                "width": _same(name, "width", found, spec.width, 1),
            }
        case LabelField():
            update = {}
        case _:
            assert_never(spec)
    # Validated again: what the data has may be what a field can't be, such as points of one channel.
    try:
        return type(spec).model_validate(spec.model_dump() | update)
    except ValueError as error:
        found_text = ", ".join(f"{key} {value}" for key, value in update.items())
        raise RayMMError(
            f"fields.{name}: the data has {found_text}, which a field can't be: {_first_reason(error)}."
        ) from None


def _sizes(name: str, what: str, found: FieldSummary) -> dict[tuple[int, ...], int]:
    if not found.shapes:
        raise RayMMError(
            f"fields.{name}: no row has this field, so its {what} can't be taken from the data; set it in the job, or remove "
            "the field."
        )
    return {tuple(map(int, shape.split("x"))): count for shape, count in found.shapes.items()}


def _sums(sizes: Mapping[tuple[int, ...], int], axis: int) -> dict[int, int]:
    sums: dict[int, int] = {}
    for size, count in sizes.items():
        sums[size[axis]] = sums.get(size[axis], 0) + count
    return sums


def _median(counts: Mapping[int, int]) -> int:
    """The lower median of values with their counts."""
    middle = (sum(counts.values()) + 1) // 2
    seen = 0
    for value, count in sorted(counts.items()):
        seen += count
        if seen >= middle:
            return value
    raise AssertionError("no values")


def _same(name: str, what: str, found: FieldSummary, given: int | None, axis: int = 0) -> int:
    if given is not None:
        return given
    sizes = _sizes(name, what, found)
    if len(sizes) > 1:
        rows = sorted(found.first_rows.items(), key=lambda entry: entry[1])
        examples = [f"{shape} in {found.shapes[shape]:,} rows from row {row} on" for shape, row in rows[:3]]
        raise RayMMError(
            f"fields.{name}: {what} must be the same in every row, but there are {listing(len(sizes), 'value', examples)}; "
            f"set fields.{name}.{what} to the right one, and on_missing: absent to do without the other rows' {name}."
        )
    return next(iter(sizes))[axis]


def _longest(name: str, what: str, found: FieldSummary, limit: int) -> int:
    _sizes(name, what, found)
    return min(int(found.longest), limit)


def _first_reason(error: ValueError) -> str:
    lines = str(error).splitlines()
    return lines[2].strip() if len(lines) > 2 else lines[0]
