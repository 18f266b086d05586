"""Next-sentence prediction: do two passages follow each other, or is the second from another document?

A pair is [CLS] A [SEP] B [SEP]. In half of the pairs B is what follows A; in the other half it follows some
passage of another document, so that a B alone does not tell which half it is in. Passages meet behind a
token that ends a line, which may hold the next line's indentation too. Pairs are of one side of a corpus, so
nothing held out is seen in training.
Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1. Doubted by Liu et al. 2019, arXiv:1907.11692,
and Lan et al. 2020, arXiv:1909.11942: another document is told by its topic alone.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_choice, check_count, check_positive_int
from scalelab.core.errors import ConfigError, DataError
from scalelab.data.documents import Split
from scalelab.data.objectives import MASK_RATE, Ids64, Mask, mask_tokens
from scalelab.data.special import SpecialTokens
from scalelab.data.tokenization import Tokenizer
from scalelab.data.tokens import TokenArray, TokenData

MIN_PASSAGE_TOKENS = 8  # shorter ones say too little; less where a passage has less room
N_MARKS = 3  # [CLS] and two [SEP]
MIN_SEQ_LEN = N_MARKS + 2


class PairBatch(NamedTuple):
    """What a step of pretraining on both tasks takes.

    Attributes:
        inputs: [B, T] corrupted ids. targets: [B, T] the chosen tokens' ids, else -100.
        segments, padding: [B, T] as in `SentencePairs`. is_next: [B] 1 where B follows A, else 0.
    """

    inputs: Ids64
    targets: Ids64
    segments: Ids64
    padding: Mask
    is_next: Ids64


@dataclass(frozen=True, eq=False)
class SentencePairs:
    """N pairs as rows of T places.

    Attributes:
        ids: [N, T] [CLS] A [SEP] B [SEP], then padding.
        segments: [N, T] 0 up to the first [SEP] and on padding, 1 for B and its [SEP].
        padding: [N, T] True for tokens, False for padding, as the encoder takes it.
        is_next: [N] 1 where B follows A, 0 where it is from another document (`transformers` counts the
            other way round).
        special: the ids of [CLS], [SEP] and padding.
    """

    ids: Ids64 = field(repr=False)
    segments: Ids64 = field(repr=False)
    padding: Mask = field(repr=False)
    is_next: Ids64 = field(repr=False)
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.ids)

    def masked(self, rows: npt.ArrayLike, rng: np.random.Generator, *, rate: float = MASK_RATE) -> PairBatch:
        """These rows with masked LM on top, as BERT was trained: one loss for the tokens, one for the pair.

        Args:
            rows: [B] numbers of pairs. rate: share of text tokens to choose.

        Raises:
            DataError: a row that is not there. ConfigError: rate is not between 0 and 1.
        """
        chosen = np.asarray(rows)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise DataError(f"rows must be whole numbers in a row, got {chosen.dtype} {chosen.shape}")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise DataError(f"there is no pair {wrong}, they are numbered 0 to {len(self) - 1}")
        inputs, targets = mask_tokens(self.ids[chosen], rng, self.special, rate=rate)
        return PairBatch(inputs, targets, self.segments[chosen], self.padding[chosen], self.is_next[chosen])


def next_sentence_pairs(
    data: TokenData,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    *,
    side: Split,
    n_pairs: int,
    seq_len: int,
    seed: int,
) -> SentencePairs:
    """Draw pairs from the documents of one side of a corpus.

    A and B each have half of the T - 3 places; what does not fit is left out, of A the front, of B the end.
    A pair is drawn by its cut, any token with a line break in it that has enough text of its document on
    both sides being equally likely: A ends with it and B begins behind it. For a pair that is not next, B is
    what begins at a second cut, drawn in the same way until it is in another document. Exactly half of the
    pairs are next (of an odd number, one more), in a drawn order.

    Differs from BERT's code in two things: passages are cut at lines, not at sentences, and none is made
    short on purpose (there, one pair in ten).

    Args:
        data: ids of the corpus. tokenizer: what cut it; says which tokens end a line.
        special: from `special_tokens(tokenizer)`.
        side: "train" or "held_out".
        n_pairs: N. seq_len: T. seed: same seed, same pairs.

    Raises:
        ConfigError: an impossible setting. DataError: tokenizer or special tokens of another vocabulary, or
            fewer than two documents with enough text.
    """
    check_choice("side", side, get_args(Split))
    check_positive_int("n_pairs", n_pairs)
    check_count("seed", seed)
    check_positive_int("seq_len", seq_len)
    if seq_len < MIN_SEQ_LEN:
        raise ConfigError(f"seq_len must be at least {MIN_SEQ_LEN} ([CLS] A [SEP] B [SEP]), got {seq_len}")
    _check_vocabulary(data, tokenizer, special)
    stream: TokenArray = data.train if side == "train" else data.held_out
    room = (seq_len - N_MARKS) // 2
    cuts = _cuts(stream, tokenizer, min(MIN_PASSAGE_TOKENS, room))
    rng = np.random.default_rng(seed)
    is_next = rng.permutation(np.arange(n_pairs) % 2 == 0)
    first = rng.integers(len(cuts.at), size=n_pairs)
    second = np.where(is_next, first, _elsewhere(cuts, first, rng))
    rows = _Rows.empty(n_pairs, seq_len, special)
    for row, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        passage_a = stream[max(cuts.begin[a], cuts.at[a] - room) : cuts.at[a]]
        passage_b = stream[cuts.at[b] : min(cuts.end[b], cuts.at[b] + room)]
        rows.write(row, passage_a, passage_b, special)
    return SentencePairs(rows.ids, rows.segments, rows.ids != special.pad, is_next.astype(np.int64), special)


class _Cuts(NamedTuple):
    """Places where a pair may meet, [C] each: the place, and where its document begins and ends."""

    at: Ids64
    begin: Ids64
    end: Ids64


class _Rows(NamedTuple):
    ids: Ids64
    segments: Ids64

    @classmethod
    def empty(cls, n_pairs: int, seq_len: int, special: SpecialTokens) -> _Rows:
        shape = (n_pairs, seq_len)
        return cls(np.full(shape, special.pad, dtype=np.int64), np.zeros(shape, dtype=np.int64))

    def write(self, row: int, a: TokenArray, b: TokenArray, special: SpecialTokens) -> None:
        middle, end = len(a) + 2, len(a) + len(b) + N_MARKS
        self.ids[row, 0] = special.cls
        self.ids[row, 1 : middle - 1] = a
        self.ids[row, middle - 1] = special.sep
        self.ids[row, middle : end - 1] = b
        self.ids[row, end - 1] = special.sep
        self.segments[row, middle:end] = 1


def _cuts(stream: TokenArray, tokenizer: Tokenizer, min_tokens: int) -> _Cuts:
    """All places behind a token with a line break in it, with min_tokens of their document on both sides.

    Byte-pair tokens such as ":\\n    " go on after the break: A then ends with the next line's indentation.
    """
    breaks = np.array(["\n" in tokenizer.decode([token]) for token in range(tokenizer.vocab_size)])
    ends = np.append(np.flatnonzero(stream == tokenizer.end_of_text), len(stream))
    begins = np.concatenate([[0], ends[:-1] + 1])
    at = np.flatnonzero(breaks[stream]) + 1  # after the token that ends the line
    document = np.searchsorted(ends, at - 1)
    begin, end = begins[document], ends[document]
    good = (at - begin >= min_tokens) & (end - at >= min_tokens)
    if len(np.unique(begin[good])) < 2:
        raise DataError(
            f"pairs need two documents with a line's end between {min_tokens} tokens and {min_tokens} more; "
            f"there are {len(np.unique(begin[good]))}: take more text"
        )
    return _Cuts(at[good], begin[good], end[good])


def _elsewhere(cuts: _Cuts, first: Ids64, rng: np.random.Generator) -> Ids64:
    """For each cut of `first`, a cut in another document."""
    drawn = rng.integers(len(cuts.at), size=len(first))
    while (same := cuts.begin[drawn] == cuts.begin[first]).any():
        drawn[same] = rng.integers(len(cuts.at), size=int(same.sum()))
    return drawn


def _check_vocabulary(data: TokenData, tokenizer: Tokenizer, special: SpecialTokens) -> None:
    if tokenizer.name != data.tokenizer_name or tokenizer.vocab_size != data.vocab_size:
        raise DataError(
            f"the ids were cut by {data.tokenizer_name!r}, not by {tokenizer.name!r}; pass that tokenizer"
        )
    if special.pad != tokenizer.vocab_size:
        raise DataError(
            f"special tokens begin at {special.pad}, the tokenizer's ids end before {tokenizer.vocab_size}; "
            "make them with special_tokens(tokenizer)"
        )
