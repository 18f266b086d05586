"""Byte-pair encoding written out: which pairs to merge, and how to cut a word by them.

Short and slow, for reading; `train_bpe` asks the library `tokenizers`, whose merges these are, one by one.
Its tie rule: of pairs met equally often, the one whose left piece is older is merged, then the one whose
right piece is. Single characters are oldest, in the order of their code points; merged pieces follow in the
order in which they were made.
Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1; for ties, `impl Ord for Merge` in the library's
tokenizers/src/models/bpe/trainer.rs. Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

Pair = tuple[str, str]


def bpe_merges(words: Mapping[str, int], n_merges: int) -> list[Pair]:
    """The first merges of byte-pair encoding.

    Args:
        words: pre-tokenised words and how often each comes.
        n_merges: at most so many; fewer where no pair is left.

    Returns:
        Pairs (left, right) of pieces, in the order in which they were merged.
    """
    pieces = {word: list(word) for word in words}
    age = {character: i for i, character in enumerate(sorted(set("".join(words))))}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts: Counter[Pair] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], age[pair[0]], age[pair[1]]))
        merges.append(best)
        age.setdefault(best[0] + best[1], len(age))
        pieces = {word: merge(parts, best) for word, parts in pieces.items()}
    return merges


def bpe_encode(word: str, merges: Sequence[Pair]) -> list[str]:
    """The pieces of a word: the merge learnt first goes first, wherever it applies.

    Args:
        word: its characters are the first pieces. merges: pairs in the order in which they were learnt.
    """
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(word)
    while True:
        known = [pair for pair in pairwise(parts) if pair in rank]
        if not known:
            return parts
        parts = merge(parts, min(known, key=rank.__getitem__))


def merge(parts: Sequence[str], pair: Pair) -> list[str]:
    """Every occurrence of a pair made one piece, from left to right."""
    merged: list[str] = []
    place = 0
    while place < len(parts):
        if tuple(parts[place : place + 2]) == pair:
            merged.append(pair[0] + pair[1])
            place += 2
        else:
            merged.append(parts[place])
            place += 1
    return merged
