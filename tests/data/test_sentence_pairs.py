"""Pairs of passages: the text they claim, half of them next, no side leaking into the other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import (
    Corpus,
    Document,
    TokenData,
    byte_tokenizer,
    encode_corpus,
    next_sentence_pairs,
    special_tokens,
    symbol_tokenizer,
)

TOKENIZER = byte_tokenizer()
SPECIAL = special_tokens(TOKENIZER)


def document(name: str, n_lines: int = 60) -> Document:
    """Lines that say which document they are of, and their own number."""
    return Document(name, "".join(f"{name} line {i:03d}\n" for i in range(n_lines)))


def token_data(n_train: int = 12, n_held_out: int = 4, n_lines: int = 60) -> TokenData:
    train = tuple(document(f"train{i:02d}", n_lines) for i in range(n_train))
    held_out = tuple(document(f"heldo{i:02d}", n_lines) for i in range(n_held_out))
    return encode_corpus(Corpus("planted", train, held_out), TOKENIZER, cache=None)


def pairs(data: TokenData | None = None, **settings):
    defaults = {"side": "train", "n_pairs": 400, "seq_len": 67, "seed": 0}
    return next_sentence_pairs(data or token_data(), TOKENIZER, SPECIAL, **{**defaults, **settings})


def passages(made, row: int) -> tuple[str, str]:
    """A and B as text, cut out by the marks."""
    ids = made.ids[row]
    first, second = np.flatnonzero(ids == SPECIAL.sep)
    return TOKENIZER.decode(ids[1:first]), TOKENIZER.decode(ids[first + 1 : second])


def test_next_passages_stand_together_in_a_document_and_others_are_from_another() -> None:
    data, made = token_data(), pairs()
    texts = [document(f"train{i:02d}").text for i in range(12)]
    for row in range(len(made)):
        a, b = passages(made, row)
        homes_a = [i for i, text in enumerate(texts) if a in text]
        homes_b = [i for i, text in enumerate(texts) if b in text]
        assert len(homes_a) == len(homes_b) == 1
        assert (homes_a == homes_b) == bool(made.is_next[row])
        assert (a + b in texts[homes_a[0]]) == bool(made.is_next[row])
    assert data.train.size  # the stream itself is left as it was
    assert int(data.train.max()) == TOKENIZER.end_of_text


@pytest.mark.parametrize("n_pairs", [1, 2, 7, 400])
def test_exactly_half_are_next_and_in_no_fixed_order(n_pairs: int) -> None:
    made = pairs(n_pairs=n_pairs)
    assert int(made.is_next.sum()) == (n_pairs + 1) // 2
    if n_pairs == 400:
        turns = int((np.diff(made.is_next) != 0).sum())
        assert abs(turns - 200) < 40  # four deviations of 399 coin tosses


@pytest.mark.parametrize("seq_len", [5, 6, 20, 67, 500])
def test_rows_are_marked_and_padded_as_bert_marks_them(seq_len: int) -> None:
    made = pairs(seq_len=seq_len, n_pairs=50)
    assert made.ids.shape == made.segments.shape == made.padding.shape == (50, seq_len)
    room = (seq_len - 3) // 2
    for ids, segments, padding in zip(made.ids, made.segments, made.padding, strict=True):
        n_tokens = int(padding.sum())
        assert padding[:n_tokens].all()
        assert (ids[n_tokens:] == SPECIAL.pad).all()
        assert ids[0] == SPECIAL.cls
        first, second = np.flatnonzero(ids == SPECIAL.sep)
        assert second == n_tokens - 1
        assert 1 <= first - 1 <= room
        assert 1 <= second - first - 1 <= room
        np.testing.assert_array_equal(np.flatnonzero(segments), np.arange(first + 1, second + 1))
        assert segments.max() == 1
        assert (ids[1:first] < SPECIAL.n_ordinary).all()
        assert (ids[first + 1 : second] < SPECIAL.n_ordinary).all()


def test_passages_meet_at_the_end_of_a_line() -> None:
    made = pairs()
    for row in range(len(made)):
        a, b = passages(made, row)
        assert a.endswith("\n")
        assert b.startswith("train")


def test_a_second_passage_alone_does_not_tell_whether_it_is_next() -> None:
    """Its place in its document is spread alike in both halves: the mean line number, over 4,000 pairs."""
    made = pairs(n_pairs=4_000)
    lines = np.array([int(passages(made, row)[1][13:16]) for row in range(len(made))])
    next_, other = lines[made.is_next == 1], lines[made.is_next == 0]
    deviation = np.sqrt(next_.var() / next_.size + other.var() / other.size)
    assert abs(next_.mean() - other.mean()) < 3 * deviation
    assert min(next_.min(), other.min()) > 0  # nobody's B is a document's head, which no A comes before


def test_held_out_pairs_are_made_of_held_out_documents_alone() -> None:
    for side, mark in (("train", "train"), ("held_out", "heldo")):
        made = pairs(side=side)
        assert all(mark in text for row in range(len(made)) for text in passages(made, row))


def test_the_seed_decides_the_pairs() -> None:
    one, same, other = pairs(), pairs(), pairs(seed=1)
    for field in ("ids", "segments", "padding", "is_next"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert (one.ids != other.ids).any()


def test_masking_on_top_leaves_marks_segments_and_labels_alone() -> None:
    made = pairs(seq_len=300)
    rows = np.arange(0, 400, 7)
    batch = made.masked(rows, np.random.default_rng(0))
    chosen = batch.targets != -100
    np.testing.assert_array_equal(np.where(chosen, batch.targets, batch.inputs), made.ids[rows])
    assert (batch.targets[chosen] < SPECIAL.n_ordinary).all()
    n_text = (made.ids[rows] < SPECIAL.n_ordinary).sum(axis=1)
    np.testing.assert_array_equal(chosen.sum(axis=1), np.maximum(np.rint(0.15 * n_text), 1))
    np.testing.assert_array_equal(batch.segments, made.segments[rows])
    np.testing.assert_array_equal(batch.padding, made.padding[rows])
    np.testing.assert_array_equal(batch.is_next, made.is_next[rows])


@pytest.mark.parametrize("rows", [[400], [-1], [0.5], [[0]], 3])
def test_rows_that_are_not_there_are_refused(rows) -> None:
    with pytest.raises(DataError):
        pairs().masked(rows, np.random.default_rng(0))


@pytest.mark.parametrize("settings", [
    {"n_pairs": 0}, {"n_pairs": 2.5}, {"seq_len": 4}, {"seq_len": True}, {"seed": -1}, {"side": "test"},
    {"side": None},
])  # fmt: skip
def test_impossible_settings_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        pairs(**settings)


@pytest.mark.parametrize("data", [token_data(n_train=1), token_data(n_lines=1)])
def test_too_few_documents_are_refused(data: TokenData) -> None:
    with pytest.raises(DataError, match="two documents"):
        pairs(data)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="symbols"):
        next_sentence_pairs(
            token_data(), symbol_tokenizer(), SPECIAL, side="train", n_pairs=2, seq_len=32, seed=0
        )
    with pytest.raises(DataError, match="special_tokens"):
        next_sentence_pairs(
            token_data(), TOKENIZER, special_tokens(symbol_tokenizer()), side="train", n_pairs=2, seq_len=32,
            seed=0,
        )  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs().ids = None
