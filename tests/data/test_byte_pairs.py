"""Byte-pair encoding written out is the library's, merge by merge and piece by piece."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
import tokenizers

from scalelab.data import corpus
from scalelab.data.byte_pairs import bpe_encode, bpe_merges

ByteLevel = tokenizers.pre_tokenizers.ByteLevel


def library(texts: list[str], vocab_size: int) -> tuple[Any, list[tuple[str, str]]]:
    """The library's tokenizer trained on texts, byte level as in GPT-2, and its merges."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    return model, [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]


def word_counts(texts: list[str]) -> Counter[str]:
    cut = ByteLevel(add_prefix_space=False).pre_tokenize_str
    return Counter(word for text in texts for word, _ in cut(text))


def texts_full_of_ties(n: int) -> list[list[str]]:
    rng = random.Random(0)
    found = []
    for i in range(n):
        alphabet = rng.choice(["ab", "abc", "aé", "xyzw", "01_", "a \n", "日本a"])
        found.append(
            [
                "".join(rng.choice(alphabet + " ") for _ in range(rng.randrange(5, 80)))
                for _ in range(rng.randrange(1, 6))
            ]
            if i % 3
            else [rng.choice(alphabet) * rng.randrange(2, 40), "aaa aaaa aa", "abab ababab"]
        )
    return found


@pytest.mark.parametrize("number", range(60))
def test_bpe_merges_are_the_librarys_one_by_one_on_texts_full_of_ties(number: int) -> None:
    texts = texts_full_of_ties(60)[number]
    _, theirs = library(texts, 256 + 40)
    ours = bpe_merges(word_counts(texts), len(theirs) + 5)
    assert ours[: len(theirs)] == theirs
    assert len(ours) == len(theirs) or len(theirs) == 40


def test_bpe_merges_and_encoding_are_the_librarys_on_real_text() -> None:
    text = corpus("python")
    texts = [document.text[:4_000] for document in text.train[:25]]
    model, theirs = library(texts, 256 + 250)
    ours = bpe_merges(word_counts(texts), 250)
    assert ours == theirs
    held_out = text.held_out[0].text[:20_000]
    cut = ByteLevel(add_prefix_space=False).pre_tokenize_str(held_out)
    assert [piece for word, _ in cut for piece in bpe_encode(word, ours)] == model.encode(held_out).tokens


@pytest.mark.parametrize("seed", range(20))
def test_bpe_encode_is_the_librarys_on_random_words(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choice("abc ") for _ in range(300))]
    model, merges = library(texts, 256 + 30)
    for _ in range(20):
        word = "".join(rng.choice("abcd") for _ in range(rng.randrange(1, 25)))
        assert bpe_encode(word, merges) == model.encode(word).tokens
