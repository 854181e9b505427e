"""What dataset.json tells of a part is what the index tells, or no less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.fields import ImageField, LabelField, TextField
from ray_mm.config.source import Source
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.part import Part, part_of
from ray_mm.data.selection import select
from ray_mm.errors import DatasetError
from tests.factories import CLASSES, make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 samples; some have no picture, some no label."""
    folder = tmp_path_factory.mktemp("part")
    missing = {"image": 0.3, "label": 0.2}
    make_dataset(folder, 40, ("image", "vector", "label"), num_shards=3, missing=missing)
    return open_dataset(folder)


def part(dataset: Dataset, source: Source) -> Part:
    found = dataset.manifest
    return part_of(source, found.num_samples, found.fields, found.presence, found.label_counts)


@given(
    require=st.lists(st.sampled_from(["image", "vector", "label"]), max_size=3, unique=True),
    names=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3) | st.none(),
    size=st.sampled_from([{}, {"fraction": 0.01}, {"fraction": 0.4}, {"limit": 3}, {"limit": 1000}]),
)
def test_a_part_is_as_large_as_the_index_says_or_smaller(
    dataset: Dataset, require: list[str], names: list[str] | None, size: dict[str, Any]
) -> None:
    where = {} if names is None else {"label": tuple(names)}
    source = Source(path=str(dataset.root), require=tuple(require), where=where, **size)
    told = part(dataset, source)
    try:
        found = select(source, dataset, "data").num_samples
    except DatasetError:
        found = 0
    assert found == told.num_samples if told.is_exact else found <= told.num_samples


def test_what_is_everywhere_or_one_label_is_known_and_two_conditions_are_not(dataset: Dataset) -> None:
    def known(**wanted: Any) -> bool:
        return part(dataset, Source(path=str(dataset.root), **wanted)).is_exact

    assert known() and known(require=("vector",)) and known(where={"label": CLASSES[:1]}, require=("vector",))
    assert known(fraction=0.5) and known(limit=3)
    assert not known(require=("image",)) and not known(where={"label": CLASSES[:1]}, require=("image",))


def test_a_field_within_a_member_is_no_bound_for_its_member() -> None:
    fields = {"caption": TextField(path="caption"), "image": ImageField(), "label": LabelField(classes=("a", "b"))}
    presence, counts = {"caption": 3, "image": 5, "label": 10}, {"label": {"a": 4, "b": 6}}
    assert part_of(Source(path="d", require=("caption",)), 10, fields, presence, counts) == Part(10, False)
    assert part_of(Source(path="d", require=("image",)), 10, fields, presence, counts) == Part(5, False)
    both = Source(path="d", require=("image",), where={"label": ("a",)}, fraction=0.5)
    assert part_of(both, 10, fields, presence, counts) == Part(2, False)
    assert part_of(Source(path="d", where={"label": ("a", "a")}), 10, fields, presence, counts) == Part(4, True)
