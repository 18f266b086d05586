"""An n-gram model: the next symbol from the few before it, by counting, smoothed as Kneser and Ney do.

The best that counting can do, and the mark a network has to get below. Interpolated, with one discount for
each order or with three ("modified"); lower orders count in how many contexts a symbol was seen, not how
often. Below the unigrams lies the uniform distribution, so every symbol of the vocabulary has a probability,
seen or not, and the probabilities of each context sum to one.
Source: Kneser & Ney 1995; Chen & Goodman 1999. Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_bool, check_count, check_positive_int
from scalelab.core.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
UNSEEN = -1
LARGEST_TABLE = 100_000_000  # entries; beyond that, sorting needs less memory
# What is taken off counts of 1, 2 and more where a text is too small to say (KenLM's fallback).
DEFAULT_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class _Order:
    """The k-grams of one length k.

    Attributes:
        keys: [G] sorted; (id of the k-1 symbols before) · V + symbol. A k-gram's id is its place here.
        share: [G] what a k-gram keeps of its context's probability after the discount.
        left_over: [contexts] what the discounts free in each context, for the order below; 1 where a
            context was never followed by anything.
    """

    keys: Ints
    share: Floats
    left_over: Floats


class NGramModel:
    """P(symbol | the n-1 symbols before), interpolated Kneser-Ney.

    Args:
        stream: [T] ids to count, one text after another with its own symbol between them.
        vocab_size: V; ids are below it.
        order: n; 5 looks at four symbols before.
        start: the symbol that is taken to stand before the first one (n-1 times), usually `end_of_text`.
        modified: three discounts an order, for counts of 1, 2, and 3 or more, rather than one.

    Attributes:
        vocab_size, order, start: as given. n_ngrams: distinct k-grams counted, for k = 1 … n.

    Raises:
        ConfigError: a size that is no whole number of at least 1, or a start outside the vocabulary.
        DataError: no symbols, or one outside the vocabulary.
    """

    def __init__(
        self, stream: npt.ArrayLike, *, vocab_size: int, order: int, start: int = 0, modified: bool = True
    ) -> None:
        check_positive_int("vocab_size", vocab_size)
        check_positive_int("order", order)
        check_count("start", start)
        check_bool("modified", modified)
        if start >= vocab_size:
            raise ConfigError(f"start={start} is outside the vocabulary of {vocab_size}")
        self.vocab_size, self.order, self.start = vocab_size, order, start
        symbols = self._checked(stream)
        if not symbols.size:
            raise DataError("there are no symbols to count")
        self._orders = self._count(self._padded(symbols), modified)
        self.n_ngrams = tuple(int((order.share > 0).sum()) for order in self._orders)

    def bits(self, stream: npt.ArrayLike) -> Floats:
        """-log2 of the probability of each symbol given those before it, [T]; their sum is a file's size.

        Raises:
            DataError: a symbol outside the vocabulary.
        """
        symbols = self._checked(stream)
        if not symbols.size:
            return np.zeros(0)
        padded = self._padded(symbols)
        context = np.zeros(len(padded), dtype=np.int64)  # of 0 symbols: there is one
        probability = np.full(len(symbols), 1 / self.vocab_size)
        first = self.order - 1
        for order in self._orders:
            ids = _find(order, context, padded, self.vocab_size)
            probability = _interpolate(order, context[first:], ids[first:], probability)
            context = np.concatenate([[UNSEEN], ids[:-1]])  # a k-gram is the context of the next symbol
        return np.asarray(-np.log2(probability), dtype=np.float64)

    def distribution(self, context: npt.ArrayLike) -> Floats:
        """Probabilities of all symbols after these, [V]; only the last n-1 of them count."""
        before = self._padded(self._checked(context))
        symbols = np.arange(self.vocab_size)
        probability = np.full(self.vocab_size, 1 / self.vocab_size)
        for k, order in enumerate(self._orders, start=1):
            place = self._id_of(before[len(before) - (k - 1) :])
            places = np.full(self.vocab_size, place)
            ids = _find(order, places, symbols, self.vocab_size)
            probability = _interpolate(order, places, ids, probability)
        return probability

    def sample(self, n_symbols: int, rng: np.random.Generator, *, prompt: npt.ArrayLike = ()) -> Ints:
        """Symbols drawn one after another, [n_symbols]."""
        check_positive_int("n_symbols", n_symbols)
        written = list(self._checked(prompt))
        begin = len(written)
        for _ in range(n_symbols):
            p = self.distribution(np.array(written[-(self.order - 1) :] if self.order > 1 else [], dtype=int))
            written.append(rng.choice(self.vocab_size, p=p / p.sum()))
        return np.array(written[begin:], dtype=np.int64)

    def _id_of(self, symbols: Ints) -> int:
        """The id of a k-gram among those counted, 0 for the empty one, or UNSEEN."""
        found = np.zeros(1, dtype=np.int64)
        for order, symbol in zip(self._orders, symbols, strict=False):
            found = _find(order, found, np.array([symbol]), self.vocab_size)
        return int(found[0])

    def _count(self, padded: Ints, modified: bool) -> list[_Order]:
        first = self.order - 1
        keys_of: list[Ints] = []
        ids_of: list[Ints] = []  # for each k and place, the id of the k-gram that ends there
        context = np.zeros(len(padded), dtype=np.int64)
        for k in range(1, self.order + 1):
            ids = np.full(len(padded), UNSEEN)
            here = slice(k - 1, None)  # before that, k symbols do not fit
            keys, ids[here] = _rank(context[here] * self.vocab_size + padded[here])
            keys_of.append(keys)
            ids_of.append(ids)
            context = np.concatenate([[UNSEEN], ids[:-1]])
        counts = [np.bincount(ids_of[-1][first:], minlength=len(keys_of[-1]))]
        for (longer, n_longer), (shorter, n_shorter) in pairwise(
            (ids[first:], len(keys)) for ids, keys in zip(reversed(ids_of), reversed(keys_of), strict=True)
        ):
            # In how many contexts: each longer k-gram, once, is one more symbol before a shorter one.
            place = np.full(n_longer, UNSEEN)
            place[longer] = np.arange(len(longer))
            counts.append(np.bincount(shorter[place[place != UNSEEN]], minlength=n_shorter))
        n_contexts = [1, *(len(keys) for keys in keys_of)]
        return [
            _smooth(keys, count, size, self.vocab_size, modified)
            for keys, count, size in zip(keys_of, reversed(counts), n_contexts, strict=False)
        ]

    def _padded(self, symbols: Ints) -> Ints:
        return np.concatenate([np.full(self.order - 1, self.start, dtype=np.int64), symbols])

    def _checked(self, stream: npt.ArrayLike) -> Ints:
        array = np.asarray(stream)
        if array.size == 0:
            return np.zeros(0, dtype=np.int64)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"symbols must be one row of whole numbers, got {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise DataError(f"symbol {wrong} is outside the vocabulary (0 to {self.vocab_size - 1})")
        return array.astype(np.int64)


def discounts(counts: npt.NDArray[np.integer[Any]], *, modified: bool) -> tuple[float, float, float]:
    """What to take off a count of 1, of 2, and of 3 or more, from how many k-grams have each count.

    One discount: D = n1 / (n1 + 2 n2) for all. Modified: D1 = 1 - 2 D n2/n1, D2 = 2 - 3 D n3/n2,
    D3 = 3 - 4 D n4/n3. Where a text is too small for an estimate (an n is 0, or a discount falls outside
    0 … its count) a half of the count is taken.
    Source: Ney, Essen & Kneser 1994 (one); Chen & Goodman 1999 (three).

    Args:
        counts: [G] of the k-grams of one order; zeros do not count.
    """
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    one = n1 / (n1 + 2 * n2) if n1 and n2 else DEFAULT_DISCOUNTS[0]
    if not modified:
        return one, one, one
    if not (n1 and n2 and n3):
        return DEFAULT_DISCOUNTS
    found = (1 - 2 * one * n2 / n1, 2 - 3 * one * n3 / n2, 3 - 4 * one * n4 / n3)
    first, second, third = (
        value if 0 < value < k else default
        for k, (value, default) in enumerate(zip(found, DEFAULT_DISCOUNTS, strict=True), start=1)
    )
    return first, second, third


def _rank(keys: Ints) -> tuple[Ints, Ints]:
    """The distinct keys in order, and each key's place among them: np.unique, faster for small keys."""
    if not keys.size:
        return keys, keys
    size = int(keys.max()) + 1
    if size > LARGEST_TABLE:
        distinct, places = np.unique(keys, return_inverse=True)
        return distinct, places
    there = np.zeros(size, dtype=bool)
    there[keys] = True
    rank = np.cumsum(there, dtype=np.int32)
    return np.flatnonzero(there), rank[keys].astype(np.int64) - 1


def _smooth(keys: Ints, counts: Ints, n_contexts: int, vocab_size: int, modified: bool) -> _Order:
    """Discount the counts of one order and divide by their contexts' totals."""
    context = keys // vocab_size
    taken = np.array([0.0, *discounts(counts, modified=modified)])[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=n_contexts)
    freed = np.bincount(context, weights=taken, minlength=n_contexts)
    followed = total > 0
    divisor = np.where(followed, total, 1.0)
    return _Order(
        keys=keys,
        share=(counts - taken) / divisor[context],
        left_over=np.where(followed, freed / divisor, 1.0),
    )


def _find(order: _Order, context: Ints, symbols: Ints, vocab_size: int) -> Ints:
    """Ids of the k-grams (context, symbol), UNSEEN where they or their contexts were not counted."""
    wanted = context * vocab_size + symbols
    place = np.minimum(np.searchsorted(order.keys, wanted), len(order.keys) - 1)
    return np.where((context != UNSEEN) & (order.keys[place] == wanted), place, UNSEEN)


def _interpolate(order: _Order, context: Ints, ids: Ints, lower: Floats) -> Floats:
    """P(w | h) = share of hw + left over of h · P(w | h without its first symbol)."""
    share = np.where(ids != UNSEEN, order.share[ids], 0.0)
    left_over = np.where(context != UNSEEN, order.left_over[context], 1.0)
    return np.asarray(share + left_over * lower, dtype=np.float64)
