"""Texts of the train split → a byte-pair tokenizer, as the JSON of the ``tokenizers`` library.

Method: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ray_mm.data.decode.text import PAD_ID, PAD_TOKEN, UNKNOWN_ID, UNKNOWN_TOKEN, load_tokenizer

DEFAULT_VOCABULARY_SIZE = 8000
_TEXTS_AT_ONCE = 4096


def train_tokenizer(texts: Sequence[str], vocabulary_size: int | None = None) -> str:
    """Trains a tokenizer: NFKC, lower case, split at white space and punctuation, byte pairs.

    Args:
        texts: of the train split. The same texts in any order give the same tokenizer.
        vocabulary_size: upper limit, the two special tokens included. None: 8,000.

    Returns:
        The tokenizer's JSON. Token 0 is padding, token 1 stands for characters that the texts lack.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    limit = vocabulary_size or DEFAULT_VOCABULARY_SIZE
    alphabet = _alphabet(texts, tokenizer.normalizer, limit - 2)
    # The trainer itself keeps every character however many there are, or breaks ties by chance.
    trainer = trainers.BpeTrainer(
        vocab_size=limit,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[PAD_TOKEN, UNKNOWN_TOKEN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(PAD_TOKEN) == PAD_ID and tokenizer.token_to_id(UNKNOWN_TOKEN) == UNKNOWN_ID
    content: str = tokenizer.to_str()
    return content


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The most frequent characters, at most ``limit``."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ordered = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    return [character for _, character in ordered[:limit]]


def longest_text(content: str, texts: Sequence[str], limit: int) -> int:
    """Tokens of the longest text, or ``limit`` if one has as many.

    Args:
        content: the tokenizer's JSON.
        texts: to be counted.
        limit: where counting may stop.
    """
    tokenizer = load_tokenizer(content)
    longest = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer.encode_batch_fast(texts[start : start + _TEXTS_AT_ONCE])
        longest = max(longest, *(len(encoding.ids) for encoding in encoded))
        if longest >= limit:
            return limit
    return longest
