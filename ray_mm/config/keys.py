"""Every key of a kind of job file: a line each, for people who look for one."""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

from ray_mm.config.explain import members
from ray_mm.config.load import JOB_KINDS
from ray_mm.config.meaning import meanings
from ray_mm.errors import JobFileError

_WIDTH = 100


def key_lines(kind: str | None = None) -> Iterator[str]:
    """Key, what it takes, its default, and below it its meaning.

    Args:
        kind: of job; None: all of them.

    Raises:
        JobFileError: no such kind.
    """
    if kind is not None and kind not in JOB_KINDS:
        raise JobFileError(f"no job kind {kind!r}; kinds are {', '.join(JOB_KINDS)}.")
    for name in JOB_KINDS if kind is None else [kind]:
        yield from _section(JOB_KINDS[name], "")
        yield ""


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        default = _default(info)
        yield f"{prefix}{name}: {_takes(info.annotation)}{f', default {default}' if default else ', required'}"
        meaning = " ".join(meanings(model).get(name, "").replace("``", "").split())
        yield from textwrap.wrap(meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        told: set[type[BaseModel]] = set()
        for below, path in _sections(info.annotation, f"{prefix}{name}"):
            if below in told:  # alone or in a list, it is the same
                continue
            told.add(below)
            kind = next((kind for kind, job in JOB_KINDS.items() if job is below), None)
            if kind is not None:
                yield f"  {path}, where it is a section: the keys of kind {kind}"
                continue
            tag = _tag(below)
            if tag is not None:
                yield f"  {path}, where {tag}:"
            yield from _section(below, f"{path}.")


def _sections(annotation: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member, path
        elif get_origin(member) is dict:
            yield from _sections(get_args(member)[1], f"{path}.NAME")
        elif get_origin(member) is tuple and len(get_args(member)) == 2:
            yield from _sections(get_args(member)[0], f"{path}[]")


def _tag(model: type[BaseModel]) -> str | None:
    """Such as ``method is gated``, of one of several sections that may stand in a place."""
    for name, info in model.model_fields.items():
        values = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        if len(values) == 1 and name in ("type", "method", "by", "name"):
            return f"{name} is {values[0]}"
    return None


def _takes(annotation: Any) -> str:
    found = dict.fromkeys(_type(member) for member in members(annotation) if member is not type(None))
    return " or ".join(found)


def _type(member: Any) -> str:
    origin = get_origin(member)
    if origin is Literal:
        return " | ".join(map(str, get_args(member)))
    if origin is dict:
        return f"NAME → {_takes(get_args(member)[1])}"
    if origin in (list, tuple):
        return f"list of {_takes(get_args(member)[0])}"
    if origin in (Union, types.UnionType):
        return _takes(member)
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "section"
    return {int: "whole number", float: "number", bool: "true | false", str: "text", JsonValue: "value"}.get(
        member, str(member)
    )


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    return "unset" if value is None else json.dumps(value, default=str)
