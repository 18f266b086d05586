"""Cutting a word by learnt merges: the oldest merge first, wherever it applies; and how that goes wrong.

The reference is `scalelab.data.byte_pairs`, which is held against the library `tokenizers`. The check's words
are made of digits, so that pieces can be shown as numbers.
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from scalelab.data.byte_pairs import Pair, bpe_encode, bpe_merges, merge
from scalelab.lab.checks.answers import Numbers, Rejected, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.tokens.merging import is_piece, merge_from_right

WRONG_KIND = "returned the wrong kind of thing"


def _build(*, how: str = "oldest merge first", rounds: int = 0, direction: str = "left to right") -> Answer:
    """Encoding with the given faults; without any, the right one."""

    def answer(word: str, merges: Sequence[Pair]) -> list[str]:
        if how == "longest piece":
            return _longest(word, merges)
        rank = {pair: i for i, pair in enumerate(merges)}
        parts, n_rounds = list(word), 0
        while not rounds or n_rounds < rounds:
            known = [pair for pair in pairwise(parts) if pair in rank]
            if not known:
                break
            if how == "any, from the left":
                place = next(i for i, pair in enumerate(pairwise(parts)) if pair in rank)
                parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]
            elif how == "most frequent here":
                parts = merge(parts, max(known, key=known.count))
            else:
                chosen = (max if how == "newest merge first" else min)(known, key=rank.__getitem__)
                parts = (merge if direction == "left to right" else merge_from_right)(parts, chosen)
            n_rounds += 1
        return parts

    return answer


def _longest(word: str, merges: Sequence[Pair]) -> list[str]:
    vocabulary = {left + right for left, right in merges}
    parts = []
    while word:
        size = next((n for n in range(len(word), 1, -1) if word[:n] in vocabulary), 1)
        parts.append(word[:size])
        word = word[size:]
    return parts


MISTAKES = (
    Mistake(
        name="longest piece first",
        faults={"how": "longest piece"},
        message="You take the longest piece of the vocabulary that the word begins with, which is "
        "WordPiece's rule. BPE replays its merges in the order in which they were learnt.",
    ),
    Mistake(
        name="first known pair from the left",
        faults={"how": "any, from the left"},
        message="You merge the leftmost pair that is known. Of all neighbours in the word, the pair that was "
        "learnt first goes first, wherever it stands.",
    ),
    Mistake(
        name="newest merge first",
        faults={"how": "newest merge first"},
        message="You apply the merge learnt last. The one learnt first has the lowest rank and goes first: "
        "min, not max.",
    ),
    Mistake(
        name="the pair met most often in this word",
        faults={"how": "most frequent here"},
        message="You merge the pair that is most frequent in this word. Frequency counted in training; now "
        "only the order of the merges does.",
    ),
    Mistake(
        name="one merge only",
        faults={"rounds": 1},
        message="You stop after one merge. Go on until no two neighbours are a known pair.",
    ),
    Mistake(
        name="nothing merged twice",
        faults={"rounds": 2},
        message="You stop after two merges. Go on until no two neighbours are a known pair.",
    ),
    Mistake(
        name="merged from right to left",
        faults={"direction": "right to left"},
        message="1 1 1 becomes 1 11 here. A pair is merged from left to right, so it should become 11 1.",
    ),
)

HINTS = (
    "Training made the merges one after another. Replay them in that order on this word.",
    "Give each pair its place in the list as a rank. Look at all neighbours in the word, take the lowest "
    "rank, merge it everywhere, look again.",
    "while True: known = [p for p in zip(parts, parts[1:]) if p in rank]; if not known: return parts; join "
    "min(known, key=rank.get) from left to right.",
)


def _case(about: str, word: str, merges: list[Pair]) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (word, list(merges)), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    """Merges learnt from random words, and new words to cut, until every mistake shows by itself."""
    while True:
        text = ["".join(rng.choice(list("123"), int(rng.integers(3, 9)))) for _ in range(12)]
        merges = bpe_merges({word: int(rng.integers(1, 9)) for word in text}, 9)
        words = ["".join(rng.choice(list("123"), length)) for length in (6, 9, 14)]
        words.append("".join(rng.choice(list("12"), 4)).replace("2", "1") + words[0][:2])
        answers = [_build(**mistake.faults) for mistake in MISTAKES]
        seen = {str([answer(word, merges) for word in words]) for answer in (bpe_encode, *answers)}
        if len(seen) == len(MISTAKES) + 1:
            return tuple(_case(f"a word of {len(word)} characters", word, merges) for word in words)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = call(answer, *args)
    if not isinstance(parts, list | tuple):
        missing = " (is the return missing?)" if parts is None else ""
        raise Rejected(
            f"returned {describe(parts)}{missing}, where a list of pieces should be", name=WRONG_KIND
        )
    if not all(map(is_piece, parts)):
        wrong = next(part for part in parts if not is_piece(part))
        raise Rejected(
            f"returned a list that holds {describe(wrong)}, where pieces of the word should be",
            name=WRONG_KIND,
        )
    if "".join(parts) != args[0]:
        raise Rejected(
            f"returned pieces that spell {''.join(parts)!r}, and the word is {args[0]!r}: nothing may be "
            f"lost",
            name="pieces do not spell the word",
        )
    return {"the piece": Numbers(np.array([float(part) for part in parts]), "place")}


EXERCISE = Exercise(
    name="bpe_encode",
    reference=bpe_encode,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=0.0,
    atol=0.0,
)
