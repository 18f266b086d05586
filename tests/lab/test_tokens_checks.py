"""Claims about the checks of the lab tokens: right answers pass, each usual mistake is named, others told."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.units import bits_per_byte as units_bits_per_byte
from scalelab.data.byte_pairs import Pair, merge
from scalelab.data.ngrams import NGramModel
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.tokens.growth import heaps_exponent
from scalelab.lab.checks.tokens.merging import merge_from_right
from scalelab.lab.checks.tokens.smoothing import kneser_ney
from scalelab.lab.checks.tokens.yardstick import bits_per_byte

EXERCISES = exercises("transformers/tokens")
SEEDS = (0, 1, 2, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        lambda: 1,
        lambda *a: None,
        lambda *a: "text",
        lambda *a: [],
        lambda *a: [("a", "b")],
        lambda *a: [1, 2],
        lambda *a: [("1", 2)],
        lambda *a: {"loss": 1},
        lambda *a: True,
        lambda *a: torch.zeros(2, dtype=torch.complex64),
        lambda *a: 1 / 0,
    ],
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message
    assert len(verdict.message.splitlines()) <= 4
    assert verdict.mistakes


def first_pair_of_all(words: Any, n_merges: int) -> Any:
    word = max(words, key=len)
    return [(word[i], word[i + 1]) for i in range(min(n_merges, len(word) - 1))]


UNLISTED: dict[str, list[Any]] = {
    "bits_per_byte": [
        lambda nats, sizes: float(np.exp(nats.mean())),
        lambda nats, sizes: float(sizes.sum() / nats.sum()),
    ],
    "bpe_merges": [first_pair_of_all, lambda words, n: [("1", "1")] * n],
    "bpe_encode": [lambda word, merges: list(word), lambda word, merges: [word]],
    "kneser_ney": [
        lambda counts, discount: np.full(counts.shape, 1 / len(counts)),
        lambda counts, discount: (counts + 1) / (counts + 1).sum(1, keepdims=True),
        lambda counts, discount: counts / np.maximum(counts.sum(1, keepdims=True), 1),
    ],
    "heaps_exponent": [
        lambda x, y: float(np.log(y[-1]) / np.log(x[-1])),
        lambda x, y: 0.5,
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome in ("unknown mistake", "broken")
        assert "On " in verdict.message
        assert "should" in verdict.message


# --- byte-pair training and cutting, as learners write them ------------------------------------------------


def from_the_right(parts: Sequence[str], pair: Pair) -> list[str]:
    """1 1 1 becomes 1 11, as a loop that begins at the end has it."""
    merged: list[str] = []
    rest = list(parts)
    while rest:
        if tuple(rest[-2:]) == pair:
            merged.insert(0, "".join(pair))
            del rest[-2:]
        else:
            merged.insert(0, rest.pop())
    return merged


def across_borders(parts: Sequence[str], pair: Pair) -> list[str]:
    return " ".join(parts).replace(" ".join(pair), "".join(pair)).split()


Merge = Callable[[Sequence[str], Pair], list[str]]
Key = Callable[[Pair, Mapping[Pair, int], Mapping[str, int]], Any]


def oldest_first(pair: Pair, counts: Mapping[Pair, int], age: Mapping[str, int]) -> Any:
    return -counts[pair], age.get(pair[0], 99), age.get(pair[1], 99)


def shortest_first(pair: Pair, counts: Mapping[Pair, int], age: Mapping[str, int]) -> Any:
    return -counts[pair], len(pair[0]), pair[0], len(pair[1]), pair[1]


def trainer(
    *, merge: Merge = merge, key: Key = oldest_first, as_met: bool = False, least: int = 1, stops: bool = True
) -> Any:
    """Training written by a learner, with one thing in it that is not so."""

    def bpe_merges(words: Mapping[str, int], n_merges: int) -> list[Pair]:
        pieces = {word: list(word) for word in words}
        letters = dict.fromkeys("".join(words)) if as_met else sorted(set("".join(words)))
        age = {letter: number for number, letter in enumerate(letters)}
        merges: list[Pair] = []
        for _ in range(n_merges):
            counts = Counter[Pair]()
            for word, parts in pieces.items():
                for pair in pairwise(parts):
                    counts[pair] += words[word]
            if stops and (not counts or max(counts.values()) < least):
                break
            best = min(counts, key=lambda pair: key(pair, counts, age))
            merges.append(best)
            age.setdefault("".join(best), len(age))
            pieces = {word: merge(parts, best) for word, parts in pieces.items()}
        return merges

    return bpe_merges


def cutter(merge: Merge) -> Any:
    def bpe_encode(word: str, merges: Sequence[Pair]) -> list[str]:
        rank = {pair: number for number, pair in enumerate(merges)}
        parts = list(word)
        while known := [pair for pair in pairwise(parts) if pair in rank]:
            parts = merge(parts, min(known, key=rank.__getitem__))
        return parts

    return bpe_encode


@pytest.mark.parametrize(
    ("name", "answer", "mistake"),
    [
        ("bpe_encode", cutter(from_the_right), "merged from right to left"),
        ("bpe_merges", trainer(merge=from_the_right), "merged from right to left"),
        ("bpe_merges", trainer(merge=across_borders), "merged across the borders of pieces"),
        ("bpe_merges", trainer(key=shortest_first), "ties broken by the pieces' length"),
        ("bpe_merges", trainer(as_met=True), "characters aged as they are met"),
        ("bpe_merges", trainer(least=2), "pairs met once are not merged"),
    ],
)
def test_byte_pairs_merged_wrongly_are_named_on_every_variant(name: str, answer: Any, mistake: str) -> None:
    for seed in range(30):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            verdict = judge(EXERCISES[name], answer, cases)
            assert verdict.mistakes == (mistake,), (seed, verdict.message)


def test_training_must_stop_when_no_pair_is_left() -> None:
    exercise = EXERCISES["bpe_merges"]
    for seed in range(30):
        for cases in (exercise.cases(seed), exercise.hidden_cases(seed)):
            verdict = judge(exercise, trainer(stops=False), cases)
            assert verdict.outcome == "broken"
            assert "more merges than there are pairs" in verdict.message
            assert judge(exercise, trainer(), cases).right


def test_cutting_by_replacing_text_gets_an_account_and_no_traceback() -> None:
    def bpe_encode(word: str, merges: Sequence[Pair]) -> list[str]:
        text = " ".join(word)
        for left, right in merges:
            text = text.replace(f"{left} {right}", left + right)
        return text.split()

    for seed in range(60):  # seed 9 among them, on which the check's own wrong answer did not spell the word
        assert not judge(EXERCISES["bpe_encode"], bpe_encode, EXERCISES["bpe_encode"].cases(seed)).right


def test_merging_from_the_right_leaves_pieces_alone_that_look_like_the_pair_turned_over() -> None:
    assert merge_from_right(["23", "3", "2", "1"], ("3", "2")) == ["23", "32", "1"]
    assert merge_from_right(["1", "1", "1"], ("1", "1")) == ["1", "11"]
    assert merge_from_right([], ("1", "1")) == []


def test_pieces_that_do_not_spell_the_word_are_refused() -> None:
    encode = EXERCISES["bpe_encode"]
    verdict = judge(encode, lambda word, merges: list(word[:-1]), encode.cases(0))
    assert verdict.mistakes == ("pieces do not spell the word",)


def test_encoding_merge_by_merge_in_training_order_is_right_too() -> None:
    def replay(word: str, merges: list[tuple[str, str]]) -> list[str]:
        parts = list(word)
        for left, right in merges:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
        return parts

    encode = EXERCISES["bpe_encode"]
    assert judge(encode, replay, encode.cases(0)).right


# --- the references against other code


def test_bits_per_byte_is_that_of_the_packages_other_parts() -> None:
    rng = np.random.default_rng(0)
    nats, sizes = rng.gamma(2, 1, 100), rng.integers(0, 5, 100)
    whole = units_bits_per_byte(float(nats.mean()), 100, int(sizes.sum()))
    assert bits_per_byte(nats, sizes) == pytest.approx(whole)


def test_kneser_ney_is_the_ngram_model_of_order_two() -> None:
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 6, 60)
    counts = np.zeros((6, 6), dtype=int)
    for before, after in itertools.pairwise([0, *stream]):
        counts[before, after] += 1
    model = NGramModel(stream, vocab_size=6, order=2, start=0, modified=False)
    n1, n2 = int((counts == 1).sum()), int((counts == 2).sum())
    discount = n1 / (n1 + 2 * n2)
    seen_in = (counts > 0).sum(0)
    # The model also smooths its lower order, by the uniform one: take that smoothing out of the oracle.
    ours = kneser_ney(counts, discount)
    lower = NGramModel(stream, vocab_size=6, order=2, start=0, modified=False)._orders[0]
    below = lower.share + lower.left_over[0] / 6
    freed = discount * (counts > 0).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    theirs = np.array([model.distribution([i]) for i in range(6)])
    np.testing.assert_allclose(ours + freed * (below - seen_in / seen_in.sum()), theirs, rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.4, 0.71, 1.0])
def test_heaps_exponent_is_polyfits_and_finds_a_planted_one(exponent: float) -> None:
    x = np.geomspace(10, 1e6, 30)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 30))
    assert heaps_exponent(x, 3 * x**exponent) == pytest.approx(exponent)
    y = 3 * x**exponent * noise
    assert heaps_exponent(x, y) == pytest.approx(np.polyfit(np.log(x), np.log(y), 1)[0])
