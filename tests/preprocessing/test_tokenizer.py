"""The tokenizer: the same from the same texts, PAD and UNK in their places."""

from __future__ import annotations

import subprocess
import sys

from tokenizers import Tokenizer

from ray_mm.preprocessing.tokenizer import longest_text, train_tokenizer

_TEXTS = ["What colour is the circle?", "Is there a red square?", "what SHAPE is present", "Üben! ｆｕｌｌ"]


def test_special_tokens_come_first_and_the_size_is_a_limit() -> None:
    content = train_tokenizer(_TEXTS * 3)
    tokenizer = Tokenizer.from_str(content)
    assert (tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")) == (0, 1)
    assert tokenizer.encode("Is there a CIRCLE?").tokens == ["is", "there", "a", "circle", "?"]
    assert tokenizer.encode("full").ids == tokenizer.encode("ｆｕｌｌ").ids
    for limit in (2, 3, 10, 30, 50):
        assert Tokenizer.from_str(train_tokenizer(_TEXTS, limit)).get_vocab_size() == limit


def test_a_text_can_not_smuggle_in_padding() -> None:
    tokenizer = Tokenizer.from_str(train_tokenizer(["pad [PAD] unk [UNK]"]))
    assert 0 not in tokenizer.encode("a pad and a p").ids


def test_the_order_of_the_texts_and_the_process_do_not_matter() -> None:
    here = train_tokenizer(_TEXTS)
    assert train_tokenizer(_TEXTS[::-1]) == here
    assert train_tokenizer(_TEXTS[::-1], 12) == train_tokenizer(_TEXTS, 12)
    code = f"from ray_mm.preprocessing.tokenizer import *; print(train_tokenizer({_TEXTS!r}), train_tokenizer({_TEXTS!r}, 12))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there == f"{here} {train_tokenizer(_TEXTS, 12)}\n"


def test_the_longest_text_is_counted_in_tokens_up_to_a_limit() -> None:
    content = train_tokenizer(_TEXTS)
    assert longest_text(content, ["is a", "is there a circle", "is"], 100) == 4
    assert longest_text(content, ["is " * 50, "is"], 10) == 10
    assert longest_text(content, [], 10) == 0
