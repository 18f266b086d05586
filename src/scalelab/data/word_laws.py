"""Two laws that any text shows, with intervals: Zipf's on word counts, Heaps' on how many are distinct.

The first power laws of the course. Zipf: the r-th most frequent word comes about r^-s as often as the first.
It is fitted on the counts, not on the ranks: if ranks fall as r^-s, the share of words seen exactly n times
falls as n^-a with a = 1 + 1/s, and the maximum of that likelihood has a closed form. Heaps: among n words of
running text about n^b are distinct; counted here as a mean over all orders of the documents, exactly.
Intervals come from halves of the documents (the delete-half jackknife): words of one file are no independent
draws, and files nearly are.
Source: Clauset, Shalizi & Newman 2009, arXiv:0706.1062, eq. 3.7; Hurlbert 1971 (the mean over orders); Shao
& Wu 1989 (the jackknife).
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ConfigError, DataError
from scalelab.data.documents import Document

WORD = re.compile(r"\b[^\W\d]\w*")  # names, keywords and the words of prose; no numbers
MIN_HALVES = 20  # of fewer, not one lies in the outer 5 %
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Words:
    """The words of some documents, as numbers.

    Attributes:
        names: [W] the distinct words, in the order in which they were first met.
        documents: for each document the numbers of its words, in order.
    """

    names: tuple[str, ...]
    documents: tuple[Ints, ...]

    def counts(self) -> Ints:
        """How often each word comes, [W]; 0 for words of documents that were left out."""
        return np.bincount(np.concatenate(self.documents), minlength=len(self.names))

    def take(self, chosen: Iterable[int]) -> Words:
        """The documents of these places, in this order, under the same numbers."""
        return Words(self.names, tuple(self.documents[place] for place in chosen))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and an interval that should hold the true one 95 times in a hundred."""

    value: float
    low: float
    high: float


def read_words(documents: Iterable[Document]) -> Words:
    """The words of documents: runs of letters, digits and underscores that begin with no digit.

    Raises:
        DataError: there are none.
    """
    numbers: dict[str, int] = {}
    parts = []
    for document in documents:
        found = WORD.findall(document.text)
        parts.append(np.array([numbers.setdefault(word, len(numbers)) for word in found], dtype=np.int64))
    if not numbers:
        raise DataError("there are no words in these documents")
    return Words(tuple(numbers), tuple(parts))


def zipf_exponent(counts: npt.NDArray[np.integer[Any]], *, n_min: int = 10) -> float:
    """Zipf's s from how often each word comes, by maximum likelihood on words seen at least `n_min` times.

    a = 1 + W / Σ ln(n_i / (n_min - ½)) over the W words with n_i >= n_min, and s = 1 / (a - 1). The half
    stands for the gap between whole numbers; from n_min = 6 on it is accurate to about 1 %.

    Raises:
        DataError: fewer than two words are that frequent.
    """
    check_positive_int("n_min", n_min)
    frequent = counts[counts >= n_min]
    if len(frequent) < 2:
        raise DataError(f"{len(frequent)} words come at least {n_min} times; lower n_min or take more text")
    return float(np.log(frequent / (n_min - 0.5)).mean())


def heaps_curve(words: Words, *, n_points: int = 24) -> tuple[Floats, Floats]:
    """Words read and distinct words among them, both [P], after log-spaced numbers of documents.

    Means over all choices of m documents out of N: a word that stands in d of them is missed by
    C(N-d, m) of the C(N, m) choices, so Σ (1 - C(N-d, m)/C(N, m)) words are met.
    """
    check_positive_int("n_points", n_points)
    n_documents = len(words.documents)
    n_words = sum(len(document) for document in words.documents)
    if not n_words:
        raise DataError("there are no words to count")
    in_documents = np.zeros(len(words.names), dtype=np.int64)
    for document in words.documents:
        in_documents[np.unique(document)] += 1
    how_many = np.bincount(in_documents, minlength=n_documents + 1)[1:]  # words that stand in d = 1 … N
    d = np.arange(1, n_documents + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(d))])
    taken = np.unique(np.geomspace(1, n_documents, n_points).round().astype(np.int64))
    distinct = []
    for m in taken:
        can_miss = d <= n_documents - m
        left = n_documents - d[can_miss]
        log_missed = log_factorial[left] - log_factorial[left - m]
        log_missed += log_factorial[n_documents - m] - log_factorial[n_documents]
        distinct.append(how_many.sum() - how_many[can_miss] @ np.exp(log_missed))
    read = taken.astype(np.float64) * (n_words / n_documents)
    return read, np.array(distinct, dtype=np.float64)


def heaps_exponent(words: Words, *, from_words: int = 10_000, n_points: int = 24) -> float:
    """Heaps' b: the slope of ln(distinct words) over ln(words read), by least squares, from some point on.

    Raises:
        DataError: fewer than three points lie beyond `from_words`.
    """
    read, distinct = heaps_curve(words, n_points=n_points)
    beyond = read >= from_words
    if beyond.sum() < 3:
        raise DataError(
            f"{int(beyond.sum())} of {len(read)} points lie at {from_words:,} of {int(read[-1]):,} words or "
            "beyond, too few for a slope, which needs 3: take more documents or points, or lower from_words"
        )
    return float(np.polyfit(np.log(read[beyond]), np.log(distinct[beyond]), 1)[0])


def with_interval(
    words: Words, estimate: Callable[[Words], float], *, n_halves: int = 100, seed: int = 0
) -> Estimate:
    """An estimate from all documents, with an interval from random halves of them.

    The spread of estimates from halves, drawn without replacement, is that of the estimate from all: the
    delete-d jackknife, whose factor (n - d)/d is 1 at a half. A bootstrap would draw documents twice, and
    a text with repeated documents has too few distinct words.

    Args:
        n_halves: how many, at least 20. seed: same seed, same halves.

    Raises:
        ConfigError: too few halves. DataError: fewer than four documents.
    """
    check_positive_int("n_halves", n_halves)
    if n_halves < MIN_HALVES:
        raise ConfigError(f"n_halves={n_halves} say nothing about the outer 5 %: take at least {MIN_HALVES}")
    n_documents = len(words.documents)
    if n_documents < 4:
        raise DataError(f"{n_documents} documents are too few to halve")
    rng = np.random.default_rng(seed)
    halves = np.array(
        [estimate(words.take(rng.permutation(n_documents)[: n_documents // 2])) for _ in range(n_halves)]
    )
    value = estimate(words)
    low, high = np.quantile(halves - halves.mean(), [0.025, 0.975])
    return Estimate(value, value + float(low), value + float(high))
