"""What members were found to be, and how the values in them become fields: arrays by their shapes, texts by their repeating."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MAX_PARTS = 12
_MAX_TOLD = 8
_MAX_DETAIL = 120
_MAX_CLASS_LETTERS = 40
_MIN_REPEATED = 4
_POINTS = re.compile(r"point|cloud|lidar|radar|pcd", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """What the members of one suffix are.

    Attributes:
        suffix: of the members.
        format: such as ``jpg``, ``JSON``, ``whole numbers``.
        detail: sizes, rates or examples, for people.
        specs: part of the name (empty: none) → the field that it would make. None where it can't be one.
        reason: why it can't be a field.
        passed_over: parts that make no field although others do, each with the reason.
    """

    suffix: str
    format: str
    detail: str = ""
    specs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    passed_over: str = ""


def spec_of(name: str, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any] | None:
    """The field that arrays of these shapes make; None: none."""
    dims = {len(shape) for shape in shapes}
    if dims == {2}:
        return {"type": "points" if _POINTS.search(name) else "series"}
    if dims and dims <= {0, 1}:
        return {"type": "vector" if len(set(shapes)) == 1 else "series"}
    return None


def shapes_text(shapes: Sequence[tuple[int, ...]]) -> str:
    """The first few shapes, such as ``7×3``."""
    return ", ".join("×".join(map(str, shape)) or "one number" for shape in dict.fromkeys(shapes[:3]))


def words(texts: Sequence[str]) -> dict[str, Any]:
    """The field that texts make: a class where some short ones repeat, else a text; one value alone tells nothing apart."""
    return {"type": "label", "written_as": "name"} if _are_classes(texts) else {"type": "text"}


def lists_of_words(lists: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """The field that lists of texts make: any number of classes where some short ones come again in other lists; None: none."""
    texts = [text for each in lists for text in each]
    once_each = all(len(set(each)) == len(each) for each in lists)
    if len(lists) < _MIN_REPEATED or not once_each or not _are_classes(texts):
        return None
    return {"type": "label", "target": "classes", "written_as": "name"}


def _are_classes(texts: Sequence[str]) -> bool:
    repeat = len(texts) >= _MIN_REPEATED and 1 < len(set(texts)) <= len(texts) // 2
    return repeat and all(len(text) <= _MAX_CLASS_LETTERS and "\n" not in text for text in texts)


def is_constant(values: Sequence[Any], at_least: int = _MIN_REPEATED) -> bool:
    """Whether all values are the same, and enough are there to say so."""
    return len(values) >= at_least and all(value == values[0] for value in values)


def constant_text(value: Any) -> str:
    """Why such a value makes no field."""
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, bool) else str(value)
    return f"always {shown}, where it was looked at"


class Parts:
    """Fields within a member, as far as one wants to see them, and the parts that make none, with the reason."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}
        self._passed_over: list[str] = []

    def add(self, path: str, spec: dict[str, Any]) -> None:
        """A part that makes a field."""
        if len(self.specs) == _MAX_PARTS:
            self.pass_over(path, f"beyond {_MAX_PARTS} fields")
        else:
            self.specs[path] = {**spec, "path": path}

    def pass_over(self, path: str, reason: str) -> None:
        """A part that makes none."""
        self._passed_over.append(f"{path} ({reason})")

    def found(self, suffix: str, format: str, detail: str) -> Found:
        """All of it."""
        shown = self._passed_over[:_MAX_TOLD]
        if len(self._passed_over) > len(shown):
            shown.append(f"… {len(self._passed_over) - len(shown):,} more")
        passed_over = ", ".join(shown)
        reason = "" if self.specs else f"no part of it makes a field: {passed_over or 'it has none'}"
        detail = detail if len(detail) <= _MAX_DETAIL else f"{detail[:_MAX_DETAIL]}…"
        return Found(suffix, format, detail, self.specs, reason, passed_over if self.specs else "")
