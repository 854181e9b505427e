"""JSON members → the fields that their values would make, through the objects within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ray_mm.data.decode.arrays import at_path
from ray_mm.data.found import (
    Found,
    Parts,
    constant_text,
    is_constant,
    lists_of_words,
    shapes_text,
    spec_of,
    words,
)

_MAX_DEPTH = 4


def look_into_json(suffix: str, values: Sequence[Any], more: Sequence[Any]) -> Found:
    """What JSON members are: lists of numbers, or objects with a field in each of their values.

    Args:
        suffix: of the members.
        values: some of them, which decide.
        more: many of them, for telling which values come again and again.
    """
    if all(isinstance(value, list) for value in values):
        shapes = None if _name_things(values) else _list_shapes(values)
        if shapes is None:
            classes = _classes([value for value in more or values if isinstance(value, list)])
            if classes is None:
                return Found(suffix, "JSON", "lists", reason=f"lists of other things than numbers, {_NO_CLASSES}")
            return Found(suffix, "JSON", "lists of names", {"": classes})
        spec = spec_of(suffix, shapes)
        if spec is None:
            return Found(suffix, "JSON", shapes_text(shapes), reason="now a list, now a list of lists")
        return Found(suffix, "JSON", shapes_text(shapes), {"": spec})
    if not all(isinstance(value, dict) for value in values):
        return Found(suffix, "JSON", reason="neither objects nor lists throughout")
    parts = Parts()
    paths = list(dict.fromkeys(path for value in values for path in _leaves(value, _MAX_DEPTH)))
    for path in paths:
        if any(not step or "." in step for step in path):
            parts.pass_over(".".join(path), "a path can't name it")
            continue
        dotted = ".".join(path)
        made = _spec(dotted, _given(values, dotted), _given(more or values, dotted))
        if isinstance(made, str):
            parts.pass_over(dotted, made)
        else:
            parts.add(dotted, made)
    return parts.found(suffix, "JSON", ", ".join(".".join(path) for path in paths))


def _leaves(value: Mapping[str, Any], depth: int, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of an object's values, through the objects in it."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and depth > 1:
            yield from _leaves(inner, depth - 1, (*before, key))
        else:
            yield (*before, key)


def _given(values: Sequence[Any], path: str) -> list[Any]:
    found = (at_path(value, path) for value in values)
    return [one for one in found if one is not None and one != ""]


def _spec(path: str, values: Sequence[Any], all_values: Sequence[Any]) -> dict[str, Any] | str:
    """The field that values of JSON make, without its path; or why they make none.

    Args:
        path: where they lie.
        values: those that decide what they are.
        all_values: many of them.
    """
    kinds = {_JSON_KINDS.get(type(value), "other") for value in values}
    if not kinds:
        return "empty"
    if len(kinds) > 1:
        return f"now {', now '.join(sorted(kinds))}"
    (kind,) = kinds
    if kind == "a text":
        return words([value for value in all_values if isinstance(value, str)])
    if kind in ("a number", "true or false"):
        if is_constant(all_values, at_least=2):  # such flags are many, and one is easily missed in a proposal
            return constant_text(values[0])
        is_class = kind == "true or false"
        return {"type": "label", "written_as": "name"} if is_class else {"type": "label", "target": "number"}
    if kind == "a list":
        if _name_things(values):
            classes = _classes([value for value in all_values if isinstance(value, list)])
            return classes or f"a list of texts, {_NO_CLASSES}"
        shapes = _list_shapes(values)
        if shapes is None:
            return "a list of other things than numbers, or of unequal lengths"
        if (0,) in shapes:
            return "now and then an empty list"
        return spec_of(path, shapes) or "now a list, now a list of lists"
    return "an object"


_NO_CLASSES = "and no few names that come again and again"


def _name_things(lists: Sequence[list[Any]]) -> bool:
    """Whether lists hold texts and nothing else; some of them may be empty."""
    inner = [value for each in lists for value in each]
    return bool(inner) and all(isinstance(value, str) for value in inner)


def _classes(lists: Sequence[list[Any]]) -> dict[str, Any] | None:
    """The label that lists of names make; None: none. One list among many that is something else does not decide."""
    return lists_of_words([each for each in lists if all(isinstance(value, str) for value in each)])


_JSON_KINDS = {
    **dict.fromkeys((int, float), "a number"),
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _list_shapes(values: Sequence[list[Any]]) -> list[tuple[int, ...]] | None:
    """Shapes of lists of numbers; None where one is something else."""
    shapes = []
    for value in values:
        array = np.asarray(value) if _is_regular(value) else np.asarray("")
        if array.dtype.kind not in "iuf":
            return None
        shapes.append(array.shape)
    return shapes


def _is_regular(value: list[Any]) -> bool:
    rows = [row for row in value if isinstance(row, list)]
    same = len({len(row) for row in rows}) <= 1 and len(rows) in (0, len(value))
    return same and not any(isinstance(inner, (list, dict)) for row in rows for inner in row)
