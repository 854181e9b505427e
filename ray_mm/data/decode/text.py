"""Texts: UTF-8 → int32 tokens. Token 0 is padding, token 1 stands for what the vocabulary lacks."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ray_mm.data.decode.error import DecodeError
from ray_mm.errors import DatasetError

PAD_TOKEN = "[PAD]"
UNKNOWN_TOKEN = "[UNK]"
PAD_ID = 0
UNKNOWN_ID = 1


def decode_text(payload: bytes | memoryview, tokenizer: Tokenizer, out: npt.NDArray[np.int32]) -> None:
    """Tokenises one text.

    Args:
        payload: UTF-8.
        tokenizer: from ``load_tokenizer``.
        out: int32 [max_tokens], zeros; filled from the start.

    Raises:
        DecodeError: not UTF-8.
    """
    try:
        text = bytes(payload).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    # A text that is there but has no token must not look like one that is absent.
    tokens = tokenizer.encode(text).ids[: len(out)] or [UNKNOWN_ID]
    out[: len(tokens)] = tokens


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
