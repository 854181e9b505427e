"""Texts: UTF-8, alone or in JSON → int32 tokens. Token 0 is padding, token 1 stands for what the vocabulary lacks."""

from __future__ import annotations

import functools
import logging

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ray_mm.config.fields import TextField
from ray_mm.data.decode.arrays import LONE_SURROGATE, REPLACEMENT, at_path, load_json
from ray_mm.data.decode.error import DecodeError
from ray_mm.errors import DatasetError

PAD_TOKEN = "[PAD]"
UNKNOWN_TOKEN = "[UNK]"
PAD_ID = 0
UNKNOWN_ID = 1

_log = logging.getLogger(__name__)


def read_text(payload: bytes | memoryview, spec: TextField) -> tuple[str, int] | None:
    """A text, and how many characters of it could not be read and stand as U+FFFD.

    Args:
        payload: UTF-8, or a JSON file if the field has a path.
        spec: the path.

    Returns:
        None where the JSON has nothing at the path.

    Raises:
        DecodeError: more than a quarter of it is no text, or no JSON, or no text at the path.
    """
    if spec.path is not None:
        found = at_path(load_json(payload), spec.path)
        if isinstance(found, (dict, list)):
            raise DecodeError(f"has a {type(found).__name__} at {spec.path!r}, expected a text")
        if found is None:
            return None
        text, lost = LONE_SURROGATE.subn(REPLACEMENT, str(found))
    else:
        raw = bytes(payload).removeprefix(b"\xef\xbb\xbf")
        text = raw.decode("utf-8", "replace")
        lost = text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode())
    if 4 * (lost + text.count("\0")) > len(text):
        raise DecodeError(f"not a text in UTF-8: {lost} of {len(text)} characters can't be read")
    return text, lost


def decode_text(text: str, tokenizer: Tokenizer, out: npt.NDArray[np.int32], first_id: int = 0) -> None:
    """Tokenises one text.

    Args:
        text: from ``read_text``.
        tokenizer: from ``load_tokenizer``.
        out: int32 [max_tokens], zeros; filled from the start.
        first_id: what the tokenizer's 0 becomes: 1 where it stands for a token, for here 0 stands for none.
    """
    tokens = [token + first_id for token in tokenizer.encode(text).ids[: len(out)]]
    # A text that is there but has no token must not look like one that is absent.
    tokens = tokens or [UNKNOWN_ID]
    out[: len(tokens)] = tokens


class ReplacementCount:
    """Counts a field's texts with characters that can't be read, and warns at the first, the tenth, the hundredth, …"""

    def __init__(self, field: str) -> None:
        self.field = field
        self.texts = 0

    def add(self) -> None:
        """One more."""
        self.texts += 1
        if str(self.texts).strip("0") == "1":
            _log.warning("not UTF-8, replaced by U+FFFD: field=%s texts=%d (in this process)", self.field, self.texts)


@functools.lru_cache(maxsize=16)
def load_tokenizer(content: str) -> Tokenizer:
    """A tokenizer from its JSON; the same object for the same content.

    Raises:
        DatasetError: not the JSON of a tokenizer.
    """
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain exceptions
        raise DatasetError(f"a tokenizer is damaged ({error}); make the dataset again.") from None
