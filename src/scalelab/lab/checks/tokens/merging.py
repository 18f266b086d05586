"""Training of byte-pair encoding: count pairs, merge the most frequent, again; and how that goes wrong.

The reference is `scalelab.data.byte_pairs`, which is held against the library `tokenizers`. The check's words
are made of digits, so that pieces can be shown as numbers.
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from scalelab.data.byte_pairs import Pair, bpe_merges, merge
from scalelab.lab.checks.answers import Numbers, Rejected, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

WRONG_KIND = "returned the wrong kind of thing"
LONGEST_SHOWN = 15  # digits that a float64 holds exactly


def _build(
    *,
    weight: str = "count",
    tie: str = "older",
    overlaps: str = "counted",
    occurrences: str = "all",
    direction: str = "left to right",
    recount: bool = True,
    choice: str = "most frequent",
    least: int = 1,
) -> Answer:
    """Training with the given faults; without any, the right one."""

    def answer(words: Mapping[str, int], n_merges: int) -> list[Pair]:
        pieces = {word: list(word) for word in words}
        characters = dict.fromkeys("".join(words)) if tie == "ages as met" else sorted(set("".join(words)))
        age = {character: i for i, character in enumerate(characters)}
        merges: list[Pair] = []
        counts: Counter[Pair] = Counter()
        while len(merges) < n_merges:
            if recount or not merges:
                counts = Counter()
                for word, parts in pieces.items():
                    for pair in _pairs(parts, overlaps):
                        counts[pair] += words[word] if weight == "count" else 1
            else:
                del counts[merges[-1]]
            if not counts or max(counts.values()) < least:
                break
            merges.append(_choose(counts, age, tie, choice))
            age.setdefault("".join(merges[-1]), len(age))
            pieces = {w: _merge(parts, merges[-1], occurrences, direction) for w, parts in pieces.items()}
        return merges

    return answer


def _pairs(parts: Sequence[str], overlaps: str) -> Iterator[Pair]:
    if overlaps == "once a word":
        yield from dict.fromkeys(pairwise(parts))
        return
    before: Pair | None = None
    for pair in pairwise(parts):
        if overlaps == "left out" and pair == before:
            before = None
            continue
        before = pair
        yield pair


def _choose(counts: Counter[Pair], known: Mapping[str, int], tie: str, choice: str) -> Pair:
    sign = -1 if choice == "most frequent" else 1
    # Who replaces text makes pieces that were never learnt: they count as the youngest.
    age = {piece: known.get(piece, len(known)) for pair in counts for piece in pair}
    if tie == "first met":
        return min(counts, key=lambda pair: sign * counts[pair])
    if tie == "younger":
        return max(counts, key=lambda p: (-sign * counts[p], age[p[0]], age[p[1]]))
    if tie == "by text":
        return min(counts, key=lambda pair: (sign * counts[pair], pair))
    if tie == "by length":
        return min(counts, key=lambda p: (sign * counts[p], len(p[0]), p[0], len(p[1]), p[1]))
    return min(counts, key=lambda pair: (sign * counts[pair], age[pair[0]], age[pair[1]]))


def _merge(parts: list[str], pair: Pair, occurrences: str, direction: str) -> list[str]:
    if occurrences == "in the text":
        return " ".join(parts).replace(" ".join(pair), "".join(pair)).split()
    if direction == "right to left":
        return merge_from_right(parts, pair)
    if occurrences == "first":
        for place in range(len(parts) - 1):
            if tuple(parts[place : place + 2]) == pair:
                return [*parts[:place], "".join(pair), *parts[place + 2 :]]
        return parts
    return merge(parts, pair)


def merge_from_right(parts: Sequence[str], pair: Pair) -> list[str]:
    """Every occurrence of a pair made one piece, from right to left: 1 1 1 becomes 1 11."""
    merged: list[str] = []
    place = len(parts)
    while place:
        if tuple(parts[max(place - 2, 0) : place]) == pair:
            merged.append(pair[0] + pair[1])
            place -= 2
        else:
            merged.append(parts[place - 1])
            place -= 1
    return merged[::-1]


MISTAKES = (
    Mistake(
        name="words not weighted by their counts",
        faults={"weight": "one"},
        message="Each distinct word counts once here. A pair in a word that comes 50 times has been met 50 "
        "times: add words[word], not 1.",
    ),
    Mistake(
        name="ties go to the pair met first",
        faults={"tie": "first met"},
        message="Of pairs with equal counts you take the one that was counted first (max over a dict does "
        "so). The library takes the one whose left piece is older, then whose right piece is.",
    ),
    Mistake(
        name="ties go to the younger pair",
        faults={"tie": "younger"},
        message="Of pairs with equal counts you take the youngest pieces; the library takes the oldest.",
    ),
    Mistake(
        name="ties broken by the pieces' text",
        faults={"tie": "by text"},
        message="Of pairs with equal counts you take the first in alphabetical order. That is right for "
        "single characters only: merged pieces are ordered by when they were made, not by how they are "
        "spelt.",
    ),
    Mistake(
        name="ties broken by the pieces' length",
        faults={"tie": "by length"},
        message="Of pairs with equal counts you take the shorter pieces, and of those the first in "
        "alphabetical order. Shorter is not older: merged pieces are ordered by when they were made.",
    ),
    Mistake(
        name="characters aged as they are met",
        faults={"tie": "ages as met"},
        message="Single characters are numbered in the order in which the words show them. The oldest is the "
        "first in alphabetical order: sort them before you number them.",
    ),
    Mistake(
        name="overlapping pairs left out",
        faults={"overlaps": "left out"},
        message="In 1 1 1 the pair (1, 1) is met twice, though only one of the two can be merged; you "
        "count it once. The library counts every two neighbours.",
    ),
    Mistake(
        name="each pair counted once a word",
        faults={"overlaps": "once a word"},
        message="A pair that stands twice in a word is counted once: count every two neighbours.",
    ),
    Mistake(
        name="only the first occurrence merged",
        faults={"occurrences": "first"},
        message="In each word only the first occurrence of the pair is merged. All of them are, in one step.",
    ),
    Mistake(
        name="merged across the borders of pieces",
        faults={"occurrences": "in the text"},
        message="The words are merged as text with spaces in it (str.replace), which also takes the end of "
        "a longer piece: from 21 3 the pair (1, 3) makes 213. Compare whole pieces.",
    ),
    Mistake(
        name="merged from right to left",
        faults={"direction": "right to left"},
        message="1 1 1 becomes 1 11 here. Words are merged from left to right, so it should become 11 1.",
    ),
    Mistake(
        name="never counted again",
        faults={"recount": False},
        message="The pairs are counted once, at the start. A merge makes new neighbours and unmakes others: "
        "count again after each.",
    ),
    Mistake(
        name="pairs met once are not merged",
        faults={"least": 2},
        message="Training stops when the best pair has been met only once. It goes on until there are "
        "n_merges, or no pair at all.",
    ),
    Mistake(
        name="the rarest pair",
        faults={"choice": "rarest"},
        message="The pair with the smallest count is merged: the sign in the key is the wrong way round.",
    ),
)

HINTS = (
    "Keep each word as a list of pieces, at first its characters. What changes in the lists after a merge?",
    "A Counter over zip(parts, parts[1:]), each pair weighted by words[word]; then min by the key "
    "(-count, age of left, age of right), where age numbers pieces in the order they came to be.",
    "age = {c: i for i, c in enumerate(sorted(set('').union(*words)))}; after each merge "
    "age.setdefault(left + right, len(age)), then walk each word from left to right and join the pair.",
)


def _case(about: str, words: dict[str, int], n_merges: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (dict(words), n_merges), {}

    return Case(about=about, make=make)


def _words(rng: np.random.Generator, n_words: int, alphabet: str, longest: int, top: int) -> dict[str, int]:
    found: dict[str, int] = {}
    while len(found) < n_words:
        length = int(rng.integers(2, longest + 1))
        found["".join(rng.choice(list(alphabet), length))] = int(rng.integers(1, top + 1))
    return found


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    """Words until every mistake shows, and no two of them look alike."""
    while True:
        drawn = (
            ("6 words, each met once", _words(rng, 6, "321", 6, 1), 5),
            ("9 words of 2 to 8 characters", _words(rng, 9, "4132", 8, 9), 8),
            ("5 words of runs and more merges than there are pairs", _words(rng, 5, "12", 8, 4), 40),
        )
        answers = [_build(**mistake.faults) for mistake in MISTAKES]
        seen = {str([answer(words, n) for _, words, n in drawn]) for answer in (bpe_merges, *answers)}
        if len(seen) == len(MISTAKES) + 1:
            return tuple(_case(*parts) for parts in drawn)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    merges = call(answer, *args)
    if not isinstance(merges, list | tuple):
        missing = " (is the return missing?)" if merges is None else ""
        raise Rejected(
            f"returned {describe(merges)}{missing}, where a list of pairs should be", name=WRONG_KIND
        )
    for pair in merges:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_piece, pair))):
            raise Rejected(
                f"returned a list that holds {describe(pair)}, where pairs of pieces such as ('1', '23') "
                "should be",
                name=WRONG_KIND,
            )
    return {
        f"the {side} piece": Numbers(np.array([float(pair[i]) for pair in merges]), "merge")
        for i, side in enumerate(("left", "right"))
    }


def is_piece(value: object) -> bool:
    """Whether a value is a text of digits that a number can show."""
    return (
        isinstance(value, str) and value.isascii() and value.isdecimal() and 1 <= len(value) <= LONGEST_SHOWN
    )


EXERCISE = Exercise(
    name="bpe_merges",
    reference=bpe_merges,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=0.0,
    atol=0.0,
)
