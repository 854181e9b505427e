"""Texts: UTF-8 → tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.text import PAD_ID, UNKNOWN_ID, decode_text, load_tokenizer
from ray_mm.errors import DatasetError
from ray_mm.preprocessing.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(["turn left", "turn right, now", "stop"])


def _decode(tokenizer: str, text: str | bytes, max_tokens: int = 6) -> npt.NDArray[np.int32]:
    out = np.zeros(max_tokens, np.int32)
    decode_text(text.encode() if isinstance(text, str) else text, load_tokenizer(tokenizer), out)
    return out


def test_case_and_width_and_white_space_do_not_matter(tokenizer: str) -> None:
    expected = _decode(tokenizer, "turn left").tolist()
    assert expected[0] > UNKNOWN_ID and expected[-1] == PAD_ID
    assert _decode(tokenizer, "  TURN\n\tｌｅｆｔ ").tolist() == expected


def test_a_long_text_is_cut(tokenizer: str) -> None:
    assert (_decode(tokenizer, "stop " * 50) == _decode(tokenizer, "stop")[0]).all()


def test_what_the_vocabulary_lacks_is_unknown_not_padding(tokenizer: str) -> None:
    assert _decode(tokenizer, "☃")[0] == UNKNOWN_ID
    assert _decode(tokenizer, "   ").tolist() == [UNKNOWN_ID, 0, 0, 0, 0, 0]


def test_what_is_not_utf8_is_refused_with_the_place(tokenizer: str) -> None:
    with pytest.raises(DecodeError, match=r"not UTF-8 .* at byte 3"):
        _decode(tokenizer, b"abc\xff")


def test_a_damaged_tokenizer_is_an_error_that_says_so() -> None:
    with pytest.raises(DatasetError, match="tokenizer is damaged"):
        load_tokenizer("{}")
