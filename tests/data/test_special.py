"""Special ids stand after the tokenizer's own and leave those alone."""

from __future__ import annotations

import pytest

from scalelab.core.errors import ConfigError
from scalelab.data import SpecialTokens, byte_tokenizer, special_tokens, symbol_tokenizer, train_bpe


@pytest.mark.parametrize("n_sentinels", [0, 1, 100])
@pytest.mark.parametrize("kind", ["bytes", "symbols", "bpe"])
def test_special_ids_follow_the_tokenizers_own_without_a_gap(kind: str, n_sentinels: int) -> None:
    made = {"bytes": byte_tokenizer, "symbols": symbol_tokenizer}
    tokenizer = made[kind]() if kind in made else train_bpe(["a b c a b"], 260, cache=None)
    special = special_tokens(tokenizer, n_sentinels)
    ids = [special.pad, special.cls, special.sep, special.mask, *special.sentinels]
    assert ids == list(range(tokenizer.vocab_size, tokenizer.vocab_size + 4 + n_sentinels))
    assert special.vocab_size == ids[-1] + 1
    assert special.end_of_text == tokenizer.end_of_text
    assert special.n_ordinary == tokenizer.vocab_size - 1


def test_no_text_encodes_to_a_special_id() -> None:
    tokenizer = byte_tokenizer()
    special = special_tokens(tokenizer)
    text = "[CLS] [MASK] <extra_id_0> \0 é 漢"
    assert tokenizer.encode(text).max() < special.n_ordinary


@pytest.mark.parametrize("n_sentinels", [-1, 1.5, "3", True, None])
def test_an_impossible_number_of_sentinels_is_refused(n_sentinels) -> None:
    with pytest.raises(ConfigError, match="n_sentinels"):
        special_tokens(byte_tokenizer(), n_sentinels)


@pytest.mark.parametrize("ids", [
    (257, 258, 259, 261), (257, 257, 258, 259), (257, 258, 259, 260, (262,)), (0, 1, 2, 3), (-1, 0, 1, 2),
    (257, 258, 259, None), (2.0, 3, 4, 5),
])  # fmt: skip
def test_ids_in_another_order_are_refused(ids) -> None:
    with pytest.raises(ConfigError):
        SpecialTokens(*ids)
