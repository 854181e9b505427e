"""What pydantic found wrong → one paragraph that names the place, the value found and what was expected."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from ray_mm.auth import redacted
from ray_mm.config.read import KeyPath


@dataclass(frozen=True)
class Source:
    """Where a job came from, to point into it.

    Attributes:
        name: the file, or ``job``.
        lines: key path → line.
        overridden: key paths that an override has set: their line in the file tells nothing.
    """

    name: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overridden: Mapping[KeyPath, Any] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int | None:
        """The line of a value, or of the closest section around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def at(self, path: KeyPath) -> str:
        """Such as ``job.yaml:12``, or ``job.yaml with train.epochs='x'``."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overridden:
                return f"{self.name} with {_dotted(path[:end])}={_short(self.overridden[path[:end]])}"
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


def explain(error: ValidationError, model: type[BaseModel], source: Source) -> str:
    """The first error of a job in full, the others by name."""
    details = _mistakes(error)
    misspelled = {_meant(detail, model) for detail in details if detail["type"] == "extra_forbidden"}
    # A required key that is misspelled is one mistake, not two.
    details = [detail for detail in details if detail["type"] != "missing" or _place(detail, model) not in misspelled]
    # The first wrong line of the file is where a reader looks first; what is missing has no line.
    details.sort(key=lambda detail: (detail["type"] == "missing", source.line(_place(detail, model)) or 0))
    first = details[0]
    path = _place(first, model)
    message = f"{source.at(path)}: {_dotted(path) or 'job'}: {_reason(first, model, path)}"
    for what, is_missing in (("Also missing", True), ("Also wrong", False)):
        others = sorted(
            {_dotted(_place(detail, model)) for detail in details[1:] if (detail["type"] == "missing") is is_missing}
            - {_dotted(path)}
        )
        if others:
            more = "" if len(others) <= 3 else f" and {len(others) - 3} more"
            message += f" {what}: {', '.join(others[:3])}{more}."
    return message


def first_reason(error: ValidationError, model: type[BaseModel]) -> tuple[KeyPath, str]:
    """Where the first mistake is, and what is wrong there; a key that is wrong comes before one that is missing."""
    details = sorted(_mistakes(error), key=lambda detail: detail["type"] == "missing")
    path = _place(details[0], model)
    return path, _reason(details[0], model, path)


def _mistakes(error: ValidationError) -> list[Any]:
    """The errors, without those of lists that are too short only because what is in them is wrong."""
    details = error.errors(include_url=False)
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(len(place) > len(detail["loc"]) and place[: len(detail["loc"])] == detail["loc"] for place in places)
    ]


def _meant(detail: Any, model: type[BaseModel]) -> KeyPath:
    *section, key = _place(detail, model)
    return (*section, nearest(str(key), _known_keys(model, tuple(section))) or "")


def nearest(word: str, options: list[str]) -> str | None:
    """The option that a misspelled word was meant to be, if one is near."""
    found = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return found[0] if found else None


def no_column(column: str, columns: list[str]) -> str:
    """What to say of a table that has no such column: the nearest if one is very near, and all that it has."""
    # Columns are named by the user: half a likeness, as among our own keys, would be chance.
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]!r}? Its" if near else "its"
    text = f"has no column {column!r}; {hint} columns are {', '.join(columns)}."
    if len(columns) == 1:
        other = next((mark for mark in (";", "\t", "|") if mark in columns[0]), None)
        if other is not None:
            text = (
                f"has no column {column!r}; its only column is {columns[0]!r}. Is it separated by {json.dumps(other)}? "
                "Columns of a CSV are separated by commas."
            )
    return text


def _reason(detail: Any, model: type[BaseModel], path: KeyPath) -> str:
    found = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(str(path[-1]), model, path[:-1])
        case "missing":
            return "this key is required and is missing."
        case "union_tag_not_found":
            return "this key is required and is missing: it says what kind of section this is."
        case "union_tag_invalid" | "literal_error":
            context = detail["ctx"]
            expected = str(context.get("expected_tags") or context.get("expected"))
            tag = context.get("tag", found)
            options = [option.strip(" '") for option in expected.replace(" or ", ",").split(",")]
            near = nearest(str(tag), options)
            hint = f" Did you mean {near!r}?" if near else ""
            return f"must be one of {', '.join(options)}; found {tag!r}.{hint}"
        case "value_error":
            return str(detail["ctx"]["error"]) + "."
        case _:
            text = (
                f"{detail['msg'][0].lower()}{detail['msg'][1:]}; found {'nothing' if found is None else _short(found)}"
            )
            return f"{text}; write it without quotes." if _is_quoted_number(detail["type"], found) else f"{text}."


def _is_quoted_number(error: str, found: Any) -> bool:
    if error not in ("int_type", "float_type", "int_parsing", "float_parsing") or not isinstance(found, str):
        return False
    return re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", found.strip()) is not None


def _unknown_key(key: str, model: type[BaseModel], section: KeyPath) -> str:
    known = _known_keys(model, section)
    if key in known:
        return f"key {key!r} belongs to another kind of this section; change the key that says which kind it is, or leave it out."
    elsewhere = [path for path in all_keys(model) if path.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5 if not elsewhere else 0.8)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    hint = "valid"
    if elsewhere:
        section_there = elsewhere[0].rpartition(".")[0]
        hint = (
            f"it belongs {f'under {section_there}' if section_there else 'at the left margin'} ({elsewhere[0]}). Valid"
        )
    return f"unknown key {key!r}; {hint} keys here are {', '.join(known)}."


def _place(detail: Any, model: type[BaseModel]) -> KeyPath:
    path = _yaml_path(detail["loc"], model)
    # Pydantic points at the section; the reader looks for the key that decides what the section is.
    return (*path, detail["ctx"]["discriminator"].strip("'")) if detail["type"].startswith("union_tag") else path


def _yaml_path(loc: tuple[str | int, ...], model: type[BaseModel]) -> KeyPath:
    """Pydantic puts the tags of unions into a path; the file has no such keys."""
    path: list[str | int] = []
    annotation: Any = model
    for part in loc:
        if part == "[key]":  # the name itself is wrong, not what stands under it
            break
        annotation = _unwrap(annotation)
        there = [member for member in members(annotation) if member is not type(None)]
        if len(there) == 1:  # a section that may be left out
            annotation = there[0]
        if _is_model(annotation):
            path.append(part)
            info = annotation.model_fields.get(part)
            annotation = info.annotation if info is not None else None
            continue
        origin = get_origin(annotation)
        if origin is dict:
            path.append(part)
            annotation = get_args(annotation)[1]
        elif origin in (list, tuple):
            path.append(part)
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            tagged = [member for member in _options(annotation) if _has_tag(member, part)]
            annotation = tagged[0] if tagged else None
        else:
            break
    return tuple(path)


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    annotations: list[Any] = [model]
    for part in path:
        following: list[Any] = []
        for annotation in annotations:
            if _is_model(annotation):
                info = annotation.model_fields.get(str(part))
                following += members(info.annotation) if info else []
            elif get_origin(annotation) is dict:
                following += members(get_args(annotation)[1])
            elif get_origin(annotation) in (list, tuple):
                following += members(get_args(annotation)[0])
        annotations = following
    return sorted({key for annotation in annotations if _is_model(annotation) for key in annotation.model_fields})


def all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys below a section, without those under names that the user chooses."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for member in members(info.annotation):
            if _is_model(member):
                yield from all_keys(member, f"{prefix}{name}.")


def members(annotation: Any) -> list[Any]:
    return [_unwrap(member) for member in _options(annotation)]


def _options(annotation: Any) -> list[Any]:
    """The members of a union and of unions within it, with what they are marked with."""
    inner = _unwrap(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        return [option for member in get_args(inner) for option in _options(member)]
    return [annotation]


def _unwrap(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_tag(member: Any, tag: str | int) -> bool:
    """Whether a member of a union has this tag: by a ``Tag`` on it, or as a value of one of its keys."""
    if any(isinstance(mark, Tag) and mark.tag == tag for mark in get_args(member)[1:]):
        return True
    model = _unwrap(member)
    return _is_model(model) and any(tag in get_args(info.annotation) for info in model.model_fields.values())


def _dotted(path: KeyPath) -> str:
    # A key may be anything that a file holds; none may steer a terminal.
    return ".".join(text if (text := str(part)).isprintable() else json.dumps(text) for part in path)


def _short(value: Any) -> str:
    text = redacted(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
