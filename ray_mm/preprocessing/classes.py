"""What stands in the label members of tars in place → classes and their numbers: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ray_mm.config.fields import LabelField
from ray_mm.errors import UsageError
from ray_mm.preprocessing.table import in_order

_MAX_CLASSES = 100_000


def class_label(name: str, spec: LabelField, found: Mapping[str, int]) -> LabelField:
    """A label with its classes, and with how its members name them.

    Args:
        name: of the field.
        spec: of the job. Without classes it gets those that occur, sorted; or, for numbers, all up to the largest.
        found: what stands in the members → how often.

    Raises:
        UsageError: nothing was found, or something that is none of the classes.
    """
    if not found:
        raise UsageError(f"fields.{name}: no sample has it, so there are no classes.")
    are_numbers = all(text.isdecimal() and len(text) < 10 and int(text) < _MAX_CLASSES for text in found)
    largest = max(map(int, found)) if are_numbers else -1
    classes = spec.classes
    # Numbers are the default; what is no number can only be a name.
    written_as: Literal["name", "number"] = "number" if are_numbers and spec.written_as == "number" else "name"
    if classes is None:
        classes = in_order(found) if written_as == "name" else tuple(map(str, range(largest + 1)))
    known = set(classes) if written_as == "name" else set(map(str, range(len(classes))))
    wrong = [text for text in found if (text if written_as == "name" else text.lstrip("0") or "0") not in known]
    if wrong:
        count = sum(found[text] for text in wrong)
        shown = ", ".join(map(repr, wrong[:3])) + (", …" if len(wrong) > 3 else "")
        raise UsageError(
            f"fields.{name}.classes: {count:,} sample{'' if count == 1 else 's'} with {shown}, none of the "
            f"{len(classes)} classes (written as {written_as}); add to classes, or correct the members."
        )
    return spec.model_copy(update={"classes": classes, "written_as": written_as})


def class_number(text: str | None, spec: LabelField) -> int | None:
    """The number of the class that a member names; None for None."""
    if text is None:
        return None
    assert spec.classes is not None
    return spec.classes.index(text) if spec.written_as == "name" else int(text)


def label_counts(spec: LabelField, found: Mapping[str, int]) -> dict[str, int]:
    """Class → number of samples, from what stands in the members → how often."""
    assert spec.classes is not None
    if spec.target == "mask":  # its numbers are looked up where it is read
        return dict.fromkeys(spec.classes, 0) | dict(found)
    counts = dict.fromkeys(spec.classes, 0)
    for text, count in found.items():
        number = class_number(text, spec)
        assert number is not None
        counts[spec.classes[number]] += count
    return counts
