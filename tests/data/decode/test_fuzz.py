"""Damaged members of every kind: a decoder fills its row with numbers or raises DecodeError, and takes bounded memory.

``RAY_MM_FUZZ_CASES`` says how many members are damaged in all.
"""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_mm.data.decode import DecodeError, Draw, decoder_for
from ray_mm.data.fields import field_arrays, length_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.preprocessing.tokenizer import train_tokenizer
from tests.data.decode.corpus import SPECS, damaged, members
from tests.fuzzing import DAMAGED, archive, num_cases

_TOKENIZER = train_tokenizer(["stop at the line"])
_PREPROCESSOR = Preprocessor(
    fields=SPECS, tokenizers={name: _TOKENIZER for name, spec in SPECS.items() if spec.type == "text"}
)
_MAX_GROWTH_KB = 1_000_000
"""A picture just under the pixel limit takes 350 MB while it is converted, and some of it twice."""

# Libraries warn about what is odd in a damaged file; here that is no news.
pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]


def _decode(field: str, payload: bytes, draw: Draw | None) -> None:
    specs = field_arrays(field, SPECS[field])
    arrays = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in specs.items()}
    there = decoder_for(field, _PREPROCESSOR)(payload, arrays, 0, draw)
    assert all(np.isfinite(array).all() for array in arrays.values())
    if there and length_name(field) in arrays:
        assert 1 <= arrays[length_name(field)][0] <= arrays[field].shape[1]


@pytest.mark.parametrize("field", sorted(SPECS))
def test_every_field_has_good_members_to_begin_with(field: str) -> None:
    good = 0
    for payload in members(field, None):
        try:
            _decode(field, payload, None)
        except DecodeError:
            continue
        good += 1
    assert good


@pytest.mark.parametrize("field", sorted(SPECS))
@pytest.mark.timeout(3600)
def test_damage_is_a_decode_error_or_harmless(field: str) -> None:
    sources = members(field, archive("media.tar.gz"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=max(10, num_cases(480) // len(SPECS)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(damaged(sources), st.none() | st.builds(Draw, st.just(0), st.just(0), st.integers(0, 999)))
    def run(payload: bytes, draw: Draw | None) -> None:
        DAMAGED[f"{SPECS[field].type} members"] += 1
        try:
            _decode(field, payload, draw)
        except DecodeError as error:
            assert str(error)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MAX_GROWTH_KB
