"""Texts: UTF-8 → tokens."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from ray_mm.config.fields import TextField
from ray_mm.data.decode import decoder_for
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.text import PAD_ID, UNKNOWN_ID, decode_text, load_tokenizer, read_text
from ray_mm.data.fields import Arrays
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import DatasetError
from ray_mm.preprocessing.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(["turn left", "turn right, now", "stop"])


def _decode(tokenizer: str, text: str | bytes, max_tokens: int = 6) -> npt.NDArray[np.int32]:
    out = np.zeros(max_tokens, np.int32)
    found = read_text(text.encode() if isinstance(text, str) else text, TextField())
    assert found is not None
    decode_text(found[0], load_tokenizer(tokenizer), out)
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


def test_what_is_not_utf8_is_replaced_and_counted() -> None:
    assert read_text("Grüße an alle".encode("latin-1"), TextField()) == ("Gr\ufffd\ufffde an alle", 2)
    # A text may hold the sign of replacement itself.
    assert read_text("all \ufffd is well".encode(), TextField()) == ("all \ufffd is well", 0)
    assert read_text(b"\xef\xbb\xbfwith a mark", TextField()) == ("with a mark", 0)


def test_half_a_character_in_json_is_replaced_and_counted(tokenizer: str) -> None:
    found = read_text(b'{"a": "turn \\ud83d left \\ud83d\\ude00"}', TextField(path="a"))
    assert found == ("turn \ufffd left \U0001f600", 1)
    decode_text(found[0], load_tokenizer(tokenizer), np.zeros(6, np.int32))
    with pytest.raises(DecodeError, match="not a text in UTF-8: 2 of 3 characters"):
        read_text(b'{"a": "\\udfff\\ud800!"}', TextField(path="a"))


@pytest.mark.parametrize("payload", [bytes(range(128, 256)), "in UTF-16".encode("utf-16-le"), b"\0" * 9])
def test_what_is_hardly_a_text_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError, match=r"not a text in UTF-8: \d+ of \d+ characters"):
        read_text(payload, TextField())


def test_a_warning_comes_at_the_first_replacement_the_tenth_and_so_on(caplog: pytest.LogCaptureFixture) -> None:
    preprocessor = Preprocessor(fields={"order": TextField(max_tokens=4)}, tokenizers={"order": train_tokenizer(["a"])})
    decode = decoder_for("order", preprocessor)
    arrays: Arrays = {"order": np.zeros((1, 4), np.int32)}
    for _ in range(25):
        assert decode(b"a caf\xe9", arrays, 0)
        assert decode(b"a cafe", arrays, 0)
    assert [record.args for record in caplog.records] == [("order", 1), ("order", 10)]


def test_a_text_lies_at_a_path_in_json() -> None:
    payload = json.dumps({"caption": {"en": "left", "de": None}, "tags": ["a", {"b": 7}]}).encode()
    for path, text in (("caption.en", "left"), ("tags.0", "a"), ("tags.1.b", "7")):
        assert read_text(payload, TextField(path=path)) == (text, 0)
    for path in ("caption.de", "caption.fr", "tags.2", "tags.x", "caption.en.more"):
        assert read_text(payload, TextField(path=path)) is None
    with pytest.raises(DecodeError, match="has a dict at 'caption', expected a text"):
        read_text(payload, TextField(path="caption"))
    for bad in (b"no json", b"{" * 100_000, b'"\xff"', b""):
        with pytest.raises(DecodeError, match="not readable JSON"):
            read_text(bad, TextField(path="a"))


def test_a_damaged_tokenizer_is_an_error_that_says_so() -> None:
    with pytest.raises(DatasetError, match="tokenizer is damaged"):
        load_tokenizer("{}")
