"""Planted laws are found again, and their intervals hold the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import Document
from scalelab.data.word_laws import (
    Words,
    heaps_curve,
    heaps_exponent,
    read_words,
    with_interval,
    zipf_exponent,
)


def planted_counts(s: float, n_words: int, seed: int, n_min: int = 1) -> np.ndarray:
    """Counts whose shares fall as n^-(1 + 1/s) from n_min on: a Pareto distribution, rounded."""
    uniform = np.random.default_rng(seed).random(n_words)
    return np.floor((n_min - 0.5) * (1 - uniform) ** -s + 0.5).astype(np.int64)


def planted_words(s: float, n_documents: int, words_each: int, seed: int) -> Words:
    """Documents of independent draws from ranks that fall as r^-s."""
    rng = np.random.default_rng(seed)
    n_types = 200_000
    p = np.arange(1, n_types + 1.0) ** -s
    drawn = rng.choice(n_types, size=(n_documents, words_each), p=p / p.sum())
    return Words(tuple(map(str, range(n_types))), tuple(drawn))


@pytest.mark.parametrize("s", [0.8, 1.0, 1.25])
def test_zipfs_exponent_is_found_where_it_was_planted(s: float) -> None:
    counts = planted_counts(s, 40_000, seed=0, n_min=6)
    assert zipf_exponent(counts, n_min=10) == pytest.approx(s, rel=0.04)


def test_a_line_through_all_ranks_errs_where_the_likelihood_does_not() -> None:
    errors = {"line": [], "likelihood": []}
    for seed in range(5):
        counts = np.sort(planted_words(1.1, 50, 2_000, seed).counts())[::-1]
        counts = counts[counts > 0]
        ranks = np.arange(1, len(counts) + 1)
        line = -np.polyfit(np.log(ranks), np.log(counts), 1)[0]
        errors["line"].append(abs(line - 1.1))
        errors["likelihood"].append(abs(zipf_exponent(counts, n_min=10) - 1.1))
    assert np.mean(errors["likelihood"]) < 0.5 * np.mean(errors["line"])


def test_heaps_curve_is_the_mean_over_all_orders_of_the_documents() -> None:
    texts = ["a b c a", "b d", "e a", "c c d f g"]
    words = read_words([Document(f"{i}.py", text) for i, text in enumerate(texts)])
    read, distinct = heaps_curve(words, n_points=20)
    orders = list(itertools.permutations(texts))
    for m in range(1, 5):
        expected = np.mean([len({word for text in order[:m] for word in text.split()}) for order in orders])
        assert distinct[m - 1] == pytest.approx(expected)
        assert read[m - 1] == pytest.approx(13 * m / 4)


def test_heaps_exponent_of_planted_ranks_is_one_over_zipfs_for_a_long_text() -> None:
    words = planted_words(1.6, 100, 5_000, seed=0)
    assert heaps_exponent(words, from_words=20_000) == pytest.approx(1 / 1.6, abs=0.02)


def test_intervals_hold_the_estimate_and_usually_the_truth() -> None:
    n_held = 0
    for seed in range(12):
        words = planted_words(1.4, 40, 1_000, seed)
        found = with_interval(words, lambda w: heaps_exponent(w, from_words=2_000), n_halves=40)
        assert found.low < found.value < found.high
        truth = np.mean([heaps_exponent(planted_words(1.4, 40, 1_000, 100 + i), from_words=2_000)
                         for i in range(2)])  # fmt: skip
        n_held += found.low - 0.01 <= truth <= found.high + 0.01
    assert n_held >= 9


def test_words_are_names_keywords_and_prose_and_no_numbers() -> None:
    words = read_words([Document("a.py", "def f_1(x2): # das Maß 12 3e5\n    return naïve")])
    assert words.names == ("def", "f_1", "x2", "das", "Maß", "return", "naïve")
    assert words.counts().sum() == len(words.documents[0])


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="no words"):
        read_words([Document("a.py", "1 2 3")])
    few = read_words([Document("a.py", "a b c")])
    with pytest.raises(DataError, match="lower n_min"):
        zipf_exponent(few.counts())
    with pytest.raises(DataError, match="too few for a slope"):
        heaps_exponent(few)
    with pytest.raises(DataError, match="too few to halve"):
        with_interval(few, heaps_exponent)


def test_a_slope_says_that_points_are_missing_where_words_are_not() -> None:
    words = planted_words(1.4, 2, 10_500, seed=0)
    with pytest.raises(DataError, match=r"2 of 2 points lie at 10,000 of 21,000 words.*take more documents"):
        heaps_exponent(words)
    with pytest.raises(DataError, match="1 of 2 points lie at 10,000 of 42,000 words"):
        heaps_exponent(planted_words(1.4, 6, 7_000, seed=0), n_points=2)


def test_an_interval_of_too_few_halves_is_refused() -> None:
    words = planted_words(1.4, 8, 500, seed=0)
    with pytest.raises(ConfigError, match="n_halves=19 say nothing about the outer 5 %: take at least 20"):
        with_interval(words, lambda w: zipf_exponent(w.counts()), n_halves=19)
    assert with_interval(words, lambda w: zipf_exponent(w.counts()), n_halves=20).low < 1.4
