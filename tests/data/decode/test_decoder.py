"""All decoders: damage of any kind is a DecodeError and nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mm.data.decode import DecodeError, decoder_for
from ray_mm.data.fields import field_arrays
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.preprocessing.tokenizer import train_tokenizer
from tests.factories import SPECS, member_of

_PREPROCESSOR = Preprocessor(fields=SPECS, tokenizers={"text": train_tokenizer(["stop at the line"])})


def _decode(field: str, payload: bytes) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in field_arrays(field, SPECS[field]).items()}
    decoder_for(field, _PREPROCESSOR)(payload, arrays, 0)
    return arrays


@pytest.mark.parametrize("field", sorted(SPECS))
def test_a_good_member_fills_its_row(field: str) -> None:
    arrays = _decode(field, member_of(field, 1)[1])
    assert arrays[field].any()
    if f"{field}.length" in arrays:
        assert 0 < arrays[f"{field}.length"][0] <= arrays[field].shape[1]


@pytest.mark.parametrize("field", sorted(SPECS))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damage_raises_decode_error_or_is_harmless(field: str, data: st.DataObject) -> None:
    payload = bytearray(member_of(field, data.draw(st.integers(0, 1)))[1])
    for place in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=4)):
        payload[place] ^= 1 << data.draw(st.integers(0, 7))
    kept = data.draw(st.integers(1, len(payload)))
    with warnings.catch_warnings():
        # Python's parser warns about odd literals in the damaged header of a NPY file.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            _decode(field, bytes(payload[:kept]))
        except DecodeError as error:
            assert str(error)
