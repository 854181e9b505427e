"""A part of a dataset, as far as ``dataset.json`` tells of it: whether there is one, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ray_mm.config.fields import FieldSpec, LabelField, is_mask
from ray_mm.config.source import Source
from ray_mm.errors import DatasetError


class Part(NamedTuple):
    """How much of a dataset takes part.

    Attributes:
        num_samples: that take part; where that is not known, more can't.
        is_exact: whether it is known.
    """

    num_samples: int
    is_exact: bool


def selected_classes(
    source: Source, root: str, fields: Mapping[str, FieldSpec], key: str
) -> dict[str, tuple[int, ...]]:
    """Class label → the numbers of the classes that are wanted, ascending.

    Args:
        source: what is wanted.
        root: of the dataset, for messages.
        fields: of the dataset.
        key: of the job file, for messages.

    Raises:
        DatasetError: ``require`` or ``where`` names a field or a class that the dataset does not have.
    """
    for name in source.require:
        if name not in fields:
            raise DatasetError(f"{key}.require: {root} has no field {name!r}; it has {', '.join(sorted(fields))}.")
    return {name: _class_numbers(name, names, root, fields, key) for name, names in source.where.items()}


def class_label(name: str, fields: Mapping[str, FieldSpec]) -> LabelField | None:
    """A field, if it is a label with one of known classes."""
    spec = fields.get(name)
    return spec if isinstance(spec, LabelField) and spec.target == "class" and spec.classes is not None else None


def _not_one_class(name: str, fields: Mapping[str, FieldSpec]) -> str:
    """What is to be added where a label has several classes per sample."""
    spec = fields.get(name)
    if is_mask(spec):
        return " It has a class for every cell of a map (target: mask), and this needs one per sample."
    several = isinstance(spec, LabelField) and spec.target == "classes"
    return " A sample of it has any number of classes (target: classes), and this needs one." if several else ""


def require_balanced(label: str, root: str, fields: Mapping[str, FieldSpec], key: str) -> LabelField:
    """The label whose classes a training balances.

    Args:
        label: as the job names it.
        root: of the dataset, for messages.
        fields: of the dataset.
        key: of the dataset in the job file, for messages.

    Raises:
        DatasetError: it is no label with classes.
    """
    spec = class_label(label, fields)
    if spec is None:
        raise DatasetError(
            f"data.balance.label: {label!r} is not a class label of {key} ({root}); give one that all training datasets have."
            f"{_not_one_class(label, fields)}"
        )
    return spec


def kept(total: int, source: Source) -> int:
    """How many of the samples that have the fields and the classes are left by ``fraction`` and ``limit``."""
    if source.fraction is not None:
        return max(1, round(total * source.fraction)) if total else 0
    return total if source.limit is None else min(source.limit, total)


def nothing_left(root: str, key: str) -> DatasetError:
    """What is to be said where no sample takes part."""
    return DatasetError(f"{key}: nothing of {root} is left by require, where, fraction and limit.")


def part_of(
    source: Source,
    num_samples: int,
    fields: Mapping[str, FieldSpec],
    presence: Mapping[str, int],
    label_counts: Mapping[str, Mapping[str, int]],
) -> Part:
    """How much is selected, without a look at an index.

    Args:
        source: what is wanted; its fields and classes are there.
        num_samples: of the dataset.
        fields: of the dataset.
        presence: field → samples that have it.
        label_counts: class label → class → samples.
    """
    is_exact = True
    bounds = [num_samples]
    for name in source.require:
        # Of a member that holds several fields a sample may lack this one, and it is the member that is asked for.
        is_inner = getattr(fields[name], "path", None) is not None
        is_everywhere = presence.get(name) == num_samples
        is_exact = is_exact and is_everywhere
        bounds.append(num_samples if is_inner else presence.get(name, num_samples))
    for name, names in source.where.items():
        counts = label_counts.get(name)
        is_exact = is_exact and counts is not None
        bounds.append(num_samples if counts is None else sum(counts.get(one, 0) for one in set(names)))
    # Of two conditions that leave samples out, nobody knows here how many samples meet both.
    is_exact = is_exact and sum(bound < num_samples for bound in bounds) <= 1
    return Part(kept(min(bounds), source), is_exact)


def _class_numbers(
    name: str, names: Sequence[str], root: str, fields: Mapping[str, FieldSpec], key: str
) -> tuple[int, ...]:
    spec = class_label(name, fields)
    if spec is None or spec.classes is None:
        labels = ", ".join(one for one in fields if class_label(one, fields) is not None)
        raise DatasetError(
            f"{key}.where: {name!r} is not a class label of {root}; its class labels are {labels or 'none'}."
            f"{_not_one_class(name, fields)}"
        )
    unknown = [one for one in names if one not in spec.classes]
    if unknown or not names:
        found = f"has no class {unknown[0]!r}" if unknown else "is given no class"
        raise DatasetError(f"{key}.where.{name}: {found}; the classes of {root} are {', '.join(spec.classes)}.")
    return tuple(sorted(spec.classes.index(one) for one in names))
