"""A job file → a job, or an error that names the file, the line and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.config.train import TrainJob
from ray_mm.errors import JobFileError

Job = PreprocessJob | TrainJob | EvaluateJob | CompressJob
JOB_KINDS: dict[str, type[Job]] = {
    "preprocess": PreprocessJob,
    "train": TrainJob,
    "evaluate": EvaluateJob,
    "compress": CompressJob,
}
_Path = tuple[str | int, ...]


def load_job(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Job:
    """Reads and validates a job.

    Args:
        source: a YAML file, or the same content as a mapping.
        overrides: dotted key → value, such as ``{"train.optimizer.lr": 1e-4}``.

    Raises:
        JobFileError: the file can't be read, or a key or value is wrong.
    """
    lines: dict[_Path, int] = {}
    if isinstance(source, Mapping):
        content, where = dict(source), "job"
    else:
        content, lines = _read_yaml(Path(source))
        where = str(source)
    for dotted, value in (overrides or {}).items():
        _set(content, dotted, value)
    kind = content.get("kind")
    if kind not in JOB_KINDS:
        found = f"found {kind!r}" if "kind" in content else "the key is missing"
        raise JobFileError(f"{_at(where, lines, ('kind',))}: kind must be one of {', '.join(JOB_KINDS)}; {found}.")
    try:
        return JOB_KINDS[kind].model_validate(content)
    except ValidationError as error:
        raise JobFileError(_explain(error, JOB_KINDS[kind], where, lines)) from None


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """``["train.epochs=3"]`` → ``{"train.epochs": 3}``; values are YAML.

    Raises:
        JobFileError: an assignment without ``=``, or a value that is not YAML.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise JobFileError(f"--set takes KEY=VALUE, such as train.epochs=3; found {assignment!r}.")
        try:
            overrides[key] = _Loader(value).get_single_data()
        except yaml.YAMLError as error:
            raise JobFileError(f"--set {key}: the value {value!r} is not YAML ({_first_line(error)}).") from None
    return overrides


def job_schema(kind: str | None = None) -> dict[str, Any]:
    """JSON Schema of one kind of job file, or of all of them.

    Raises:
        JobFileError: no such kind.
    """
    if kind is None:
        union = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ray_mm job"} | union.json_schema()
    if kind not in JOB_KINDS:
        raise JobFileError(f"no job kind {kind!r}; kinds are {', '.join(JOB_KINDS)}.")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | JOB_KINDS[kind].model_json_schema()


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number (YAML 1.1 wants ``1.0e-3``) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[_Path, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobFileError(f"{path}: no such job file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileError(f"{path}: can't be read as UTF-8 text ({error}).") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        content = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise JobFileError(f"{path}:{line}: not valid YAML: {error.problem or _first_line(error)}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise JobFileError(f"{path}: not valid YAML: {_first_line(error)}.") from None
    if not isinstance(content, dict):
        raise JobFileError(f"{path}: a job file is a mapping that begins with kind:, found {type(content).__name__}.")
    lines: dict[_Path, int] = {}
    _collect_lines(node, (), lines)
    return content, lines


def _collect_lines(node: yaml.Node | None, path: _Path, lines: dict[_Path, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            _collect_lines(value, (*path, position), lines)


def _set(content: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    section = content
    for parent in parents:
        inner = section.get(parent)
        # A copy: the caller's mapping must not change under them.
        section[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[parent]
    section[last] = value


def _explain(error: ValidationError, model: type[BaseModel], where: str, lines: Mapping[_Path, int]) -> str:
    details = error.errors(include_url=False)
    # The first wrong line of the file is where a reader looks first.
    details.sort(key=lambda detail: _line(lines, _yaml_path(detail["loc"], model)) or 0)
    first = details[0]
    path = _yaml_path(first["loc"], model)
    dotted = ".".join(str(part) for part in path) or "job"
    message = f"{_at(where, lines, path)}: {dotted}: {_reason(first, model, path)}"
    if len(details) > 1:
        others = (".".join(str(part) for part in _yaml_path(detail["loc"], model)) for detail in details[1:4])
        more = "" if len(details) <= 4 else f" and {len(details) - 4} more"
        message += f" Also wrong: {', '.join(others)}{more}."
    return message


def _reason(detail: Any, model: type[BaseModel], path: _Path) -> str:
    found = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(model, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys here are {', '.join(sorted(known))}."
            return f"unknown key {str(path[-1])!r}; {hint}"
        case "missing":
            return "this key is required and is missing."
        case "union_tag_invalid" | "union_tag_not_found" | "literal_error":
            context = detail["ctx"]
            expected = context.get("expected_tags") or context.get("expected") or ""
            tag = context.get("tag", None if isinstance(found, Mapping) else found)
            if detail["type"] == "union_tag_not_found":
                return f"needs the key {context['discriminator']}, which says what kind it is."
            options = [option.strip(" '") for option in str(expected).replace(" or ", ",").split(",")]
            near = difflib.get_close_matches(str(tag), options, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            return f"must be one of {', '.join(options)}; found {tag!r}.{hint}"
        case "value_error":
            return str(detail["ctx"]["error"]) + "."
        case _:
            return f"{detail['msg'][0].lower()}{detail['msg'][1:]}; found {_short(found)}."


def _yaml_path(loc: tuple[str | int, ...], model: type[BaseModel]) -> _Path:
    """Pydantic puts the tags of unions into a path; the file has no such keys."""
    path: list[str | int] = []
    annotation: Any = model
    for part in loc:
        annotation = _unwrap(annotation)
        if _is_model(annotation):
            path.append(part)
            info = annotation.model_fields.get(part)
            annotation = info.annotation if info is not None else None
            if info is not None and info.discriminator is not None:
                annotation = Annotated[annotation, info]
            continue
        origin = get_origin(annotation)
        if origin is dict:
            path.append(part)
            annotation = get_args(annotation)[1]
        elif origin in (list, tuple):
            path.append(part)
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            members = [_unwrap(member) for member in get_args(annotation)]
            tagged = [member for member in members if _is_model(member) and _has_tag(member, part)]
            annotation = tagged[0] if tagged else None
        elif part == "[key]":
            continue
        else:
            break
    return tuple(path)


def _known_keys(model: type[BaseModel], path: _Path) -> list[str]:
    annotations: list[Any] = [model]
    for part in path:
        following: list[Any] = []
        for annotation in annotations:
            if _is_model(annotation):
                info = annotation.model_fields.get(str(part))
                following += _members(info.annotation) if info else []
            elif get_origin(annotation) is dict:
                following += _members(get_args(annotation)[1])
            elif get_origin(annotation) in (list, tuple):
                following += _members(get_args(annotation)[0])
        annotations = following
    return sorted({key for annotation in annotations if _is_model(annotation) for key in annotation.model_fields})


def _members(annotation: Any) -> list[Any]:
    annotation = _unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [_unwrap(member) for member in get_args(annotation)]
    return [annotation]


def _unwrap(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    return any(tag in get_args(info.annotation) for info in model.model_fields.values())


def _line(lines: Mapping[_Path, int], path: _Path) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _at(where: str, lines: Mapping[_Path, int], path: _Path) -> str:
    line = _line(lines, path)
    return f"{where}:{line}" if line else where


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
