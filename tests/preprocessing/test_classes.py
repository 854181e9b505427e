"""Classes from what stands in label members."""

from __future__ import annotations

import pytest

from ray_mm.config.fields import LabelField
from ray_mm.errors import UsageError
from ray_mm.preprocessing.classes import class_label, class_number, label_counts


@pytest.mark.parametrize(
    ("spec", "found", "classes", "numbers"),
    [
        (LabelField(), {"2": 3, "0": 1}, ("0", "1", "2"), {"2": 2, "0": 0}),
        (LabelField(), {"cat": 3, "ant": 1}, ("ant", "cat"), {"cat": 1, "ant": 0}),
        (LabelField(), {"cat": 3, "7": 1}, ("7", "cat"), {"cat": 1, "7": 0}),
        (LabelField(written_as="name"), {"20": 1, "3": 2}, ("3", "20"), {"3": 0, "20": 1}),
        (LabelField(classes=("a", "b", "c")), {"1": 4, "02": 1}, ("a", "b", "c"), {"1": 1, "02": 2}),
        (LabelField(classes=("b", "a")), {"a": 4}, ("b", "a"), {"a": 1}),
    ],
)
def test_classes_are_names_or_numbers(
    spec: LabelField, found: dict[str, int], classes: tuple[str, ...], numbers: dict[str, int]
) -> None:
    label = class_label("kind", spec, found)
    assert label.classes == classes
    assert {text: class_number(text, label) for text in found} == numbers
    assert class_number(None, label) is None
    counts = label_counts(label, found)
    assert list(counts) == list(classes) and sum(counts.values()) == sum(found.values())


@pytest.mark.parametrize(
    ("spec", "found", "reason"),
    [
        (LabelField(), {}, "no sample has it"),
        (LabelField(classes=("a", "b")), {"2": 3, "1": 1}, "3 samples with '2', none of the 2 classes"),
        (LabelField(classes=("a", "b")), {"a": 3, "x": 1}, "1 sample with 'x', none .*written as name"),
    ],
)
def test_what_is_no_class_is_refused(spec: LabelField, found: dict[str, int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        class_label("kind", spec, found)
