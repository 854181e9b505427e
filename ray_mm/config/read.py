"""YAML text → plain values, and the line on which each stands.

Plain scalars mean what YAML 1.2 (its core schema) says, not what PyYAML's YAML 1.1 says: ``1e-3`` is a number, ``yes``,
``no`` and ``on`` are texts (labels are often called so), ``010`` is ten, ``12:30`` and ``2026-11-03`` are texts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ray_mm.errors import JobFileError

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and positions in lists, from the outside in."""

_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2 in which a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _problem("a key must be a plain text, not a list or a mapping", key_node)
            if key_node.value in seen:
                raise _problem(f"key {key_node.value!r} stands twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        value = int(text, {"0x": 16, "0o": 8}.get(text[:2].lower(), 10))
        if not -(2**63) <= value < 2**63:
            raise _problem("a number of more than 19 digits", node)
        return value


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def read_value(text: str) -> Any:
    """A single YAML value, such as the right side of ``--set``.

    Raises:
        yaml.YAMLError: not YAML, or too much of it.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {_MOST_CHARACTERS:,} characters")
    return _constructed(_Loader(text))[1]


def _constructed(loader: _Loader) -> tuple[yaml.Node | None, Any]:
    node = loader.get_single_node()
    if node is not None and _size(node, {}) > _MOST_VALUES:
        # A few lines of aliases of aliases stand for more than any memory holds.
        raise yaml.YAMLError(f"with its aliases (*) written out, it has more than {_MOST_VALUES:,} values")
    return node, loader.construct_document(node) if node is not None else None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node, where each alias counts as what it stands for."""
    if id(node) not in known:
        known[id(node)] = 0  # until it is known
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    elif not known[id(node)]:
        raise RecursionError("it contains itself")
    return known[id(node)]


def read_mapping(path: Path, what: str = "job file") -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The content of a YAML file, and key path → line, counted from 1.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        JobFileError: no such file, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(4 * _MOST_CHARACTERS + 1).decode()
    except FileNotFoundError:
        raise JobFileError(f"{path}: no such {what}.") from None
    except IsADirectoryError:
        raise JobFileError(f"{path}: is a folder; expected a {what}, in YAML.") from None
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except (OSError, ValueError) as error:
        raise JobFileError(f"{path}: can't be read ({error}).") from None
    if len(text) > _MOST_CHARACTERS:
        raise JobFileError(f"{path}: has more than {_MOST_CHARACTERS:,} characters, which no {what} needs.")
    lines: dict[KeyPath, int] = {}
    try:
        node, content = _constructed(_Loader(text))
        _collect_lines(node, (), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise JobFileError(f"{path}:{line}: not valid YAML: {_in_words(error, text.splitlines(), line)}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise JobFileError(f"{path}: not valid YAML: {first_line(error)}.") from None
    except RecursionError:
        raise JobFileError(f"{path}: not valid YAML: it is nested too deep, or contains itself.") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {_WORDS.get(type(content), type(content).__name__)}"
        begins = " that begins with kind:" if what == "job file" else ""
        raise JobFileError(f"{path}: a {what} is a mapping{begins}; found {found}.")
    return content, lines


def _in_words(error: yaml.MarkedYAMLError, lines: list[str], line: int) -> str:
    """What PyYAML found, for somebody who does not know how YAML is parsed."""
    problem = error.problem or first_line(error)
    opened = f"in line {error.context_mark.line + 1}" if error.context_mark else "above"
    if "mapping values are not allowed" in problem:
        above = next(
            (each for each in reversed(lines[: line - 1]) if each.strip() and not each.lstrip().startswith("#")), ""
        )
        if _indent(lines[line - 1]) > _indent(above):
            return "this line is indented differently from the ones above"
        return "a value that holds ': ' must stand in quotes"
    if "expected <block end>" in problem:
        return "this line is indented differently from the ones above"
    if "'\\t'" in problem:
        return "a tab can't indent a line; use spaces"
    if "expected ',' or" in problem:
        return f"a {problem.split('or ')[1][:3]} is missing: what was opened {opened} is not closed"
    if "unexpected end of stream" in problem and "quoted" in (error.context or ""):
        return f"the quote that was opened {opened} is not closed"
    if "could not find expected ':'" in problem:
        return "expected key: value"
    return problem


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


_WORDS = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}


def _collect_lines(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            _collect_lines(value, (*path, position), lines)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
