"""Samples → batches: presence, absence, damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mm.data.collate import Collator
from ray_mm.data.fields import Arrays, field_arrays
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.preprocessing.tokenizer import train_tokenizer
from tests.factories import MORE_SPECS, SPECS, class_of, member_of, number_of, tags_of

_PREPROCESSOR = Preprocessor(fields=SPECS, tokenizers={"text": train_tokenizer(["please turn left here"])})
_COLLATOR = Collator(_PREPROCESSOR)


def _sample(i: int) -> dict[str, bytes]:
    return {field: member_of(field, i)[1] for field in SPECS}


def _content(arrays: Arrays, row: int) -> dict[str, bytes]:
    return {name: array[row].tobytes() for name, array in arrays.items() if name != "position"}


def test_a_batch_has_the_arrays_that_the_schema_promises() -> None:
    arrays, bad = _COLLATOR.collate([_sample(0), _sample(1), _sample(2)])
    assert bad == {}
    promised = {name: spec for field in SPECS for name, spec in field_arrays(field, SPECS[field]).items()}
    assert set(arrays) == set(promised) | {"position", "weight"}
    for name, spec in promised.items():
        assert arrays[name].shape == (3, *spec.shape) and arrays[name].dtype == spec.dtype
    assert arrays["position"].tolist() == [0, 1, 2] and arrays["weight"].tolist() == [1, 1, 1]
    assert arrays["label"].tolist() == [class_of(i) for i in range(3)]
    assert arrays["number"] == pytest.approx([number_of(i) for i in range(3)])
    assert arrays["series.length"].tolist() == [10, 11, 12] and arrays["points.length"].tolist() == [6, 7, 8]
    assert arrays["audio.length"].tolist() == [1600] * 3
    assert all(arrays[f"{field}.presence"].all() for field in SPECS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({field: st.sampled_from(["there", "missing", "empty"]) for field in SPECS})))
def test_presence_is_exactly_what_is_there_and_the_rest_is_zero(samples: list[dict[str, str]]) -> None:
    rows = []
    for i, states in enumerate(samples):
        members = {field: payload for field, payload in _sample(i).items() if states[field] != "missing"}
        rows.append(members | {field: b"" for field in members if states[field] == "empty"})
    arrays, bad = _COLLATOR.collate(rows)
    assert bad == {}
    for field in SPECS:
        assert arrays[f"{field}.presence"].tolist() == [states[field] == "there" for states in samples]
        absent = ~arrays[f"{field}.presence"]
        for name in field_arrays(field, SPECS[field]):
            assert not arrays[name][absent].any()
    assert (arrays["weight"] == 1).all()  # a sample without any field is still a sample


@pytest.mark.parametrize("field", sorted(SPECS))
def test_one_bad_member_clears_its_row_and_no_other(field: str) -> None:
    samples = [_sample(0), _sample(1) | {field: b"\xff\xd8\xff\xfe damaged"}, _sample(2)]
    arrays, bad = _COLLATOR.collate(samples)
    assert list(bad) == [1] and list(bad[1]) == [field] and bad[1][field]
    assert arrays["position"].tolist() == [0, 1, 2] and arrays["weight"].tolist() == [1, 0, 1]
    assert not any(b"".join(_content(arrays, 1).values()))
    clean, _ = _COLLATOR.collate([_sample(0), _sample(1), _sample(2)])
    for row in (0, 2):
        assert _content(arrays, row) == _content(clean, row)


def test_every_bad_member_of_a_sample_is_reported() -> None:
    _, bad = _COLLATOR.collate([_sample(0) | {"image": b"x", "label": b"x"}])
    assert set(bad[0]) == {"image", "label"}


def test_a_row_that_is_filled_twice_holds_nothing_of_the_first_sample_once_cleared() -> None:
    arrays = _COLLATOR.empty(1)
    _COLLATOR.fill(arrays, 0, [_sample(0)])
    _COLLATOR.clear(arrays, 0)
    _COLLATOR.fill(arrays, 0, [{"text": b"left"}])
    expected = _COLLATOR.empty(1)
    _COLLATOR.fill(expected, 0, [{"text": b"left"}])
    assert _content(arrays, 0) == _content(expected, 0)


def test_an_empty_batch_is_all_padding() -> None:
    arrays = _COLLATOR.empty(4)
    assert (arrays["position"] == -1).all() and not arrays["weight"].any()
    assert all(np.asarray(array).shape[0] == 4 for array in arrays.values())


def test_of_several_classes_a_row_says_of_each_whether_it_is_there() -> None:
    collator = Collator(Preprocessor(fields={name: MORE_SPECS[name] for name in ("tags",)}))
    payloads = [*(member_of("tags", i)[1] for i in range(3)), b"null", b"[0, 3]"]
    arrays, bad = collator.collate([{"tags": payload} for payload in payloads])
    assert arrays["tags"].dtype == np.float32 and arrays["tags"].shape == (5, 3)
    assert [np.flatnonzero(row).tolist() for row in arrays["tags"][:3]] == [tags_of(i) for i in range(3)]
    assert [] in [tags_of(i) for i in range(3)], "one of them has none, and a label all the same"
    assert arrays["tags.presence"].tolist() == [True, True, True, False, False]
    assert list(bad) == [4] and arrays["weight"].tolist() == [1, 1, 1, 1, 0] and not arrays["tags"][3:].any()
