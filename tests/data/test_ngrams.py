"""The n-gram model against the definition, written out by brute force, and against what must always hold."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import pairwise, product

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import compressed_bits_per_byte, corpus
from scalelab.data.ngrams import NGramModel, discounts

V = 5


class BruteForce:
    """Interpolated Kneser-Ney by dictionaries of tuples, straight from Chen & Goodman's definitions."""

    def __init__(self, stream: list[int], order: int, start: int, modified: bool) -> None:
        self.order, self.start = order, start
        padded = [start] * (order - 1) + stream
        ends = range(order - 1, len(padded))
        grams = {k: [tuple(padded[i - k + 1 : i + 1]) for i in ends] for k in range(1, order + 1)}
        self.counts: dict[int, Counter[tuple[int, ...]]] = {order: Counter(grams[order])}
        for k in range(1, order):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in grams[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = Counter({gram: len(contexts) for gram, contexts in before.items()})
        self.discounts = {
            k: discounts(np.array(list(c.values())), modified=modified) for k, c in self.counts.items()
        }

    def probability(self, context: tuple[int, ...], symbol: int) -> float:
        if len(context) == 0:
            return self._level(1, context, symbol, 1 / V)
        return self._level(len(context) + 1, context, symbol, self.probability(context[1:], symbol))

    def _level(self, k: int, context: tuple[int, ...], symbol: int, lower: float) -> float:
        followers = {gram[-1]: n for gram, n in self.counts[k].items() if gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower
        taken = {n: self.discounts[k][min(n, 3) - 1] for n in followers.values()}
        n = followers.get(symbol, 0)
        kept = n - taken[n] if n else 0.0
        return kept / total + sum(taken[n] for n in followers.values()) / total * lower


def random_stream(seed: int, length: int, n_symbols: int = V) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(n_symbols) ** 2 % n_symbols for _ in range(length)]


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize(("order", "seed", "length"), [(1, 0, 30), (2, 1, 60), (3, 2, 80), (4, 3, 200)])
def test_probabilities_are_those_of_the_definition(
    order: int, seed: int, length: int, modified: bool
) -> None:
    stream = random_stream(seed, length)
    model = NGramModel(stream, vocab_size=V, order=order, start=0, modified=modified)
    brute = BruteForce(stream, order, 0, modified)
    for context in product(range(V), repeat=order - 1):
        expected = [brute.probability(context, symbol) for symbol in range(V)]
        np.testing.assert_allclose(model.distribution(context), expected, rtol=1e-12)
    unseen = random_stream(seed + 10, 40)
    padded = [0] * (order - 1) + unseen
    expected_bits = [
        -np.log2(brute.probability(tuple(padded[i : i + order - 1]), padded[i + order - 1]))
        for i in range(len(unseen))
    ]
    np.testing.assert_allclose(model.bits(unseen), expected_bits, rtol=1e-12)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_contexts_seen_and_unseen(order: int, modified: bool) -> None:
    stream = random_stream(0, 300, 40)
    model = NGramModel(stream, vocab_size=50, order=order, start=49, modified=modified)
    rng = np.random.default_rng(0)
    contexts = [stream[i : i + order - 1] for i in range(40)]
    contexts += [rng.integers(50, size=order - 1) for _ in range(40)]
    for context in contexts:
        p = model.distribution(context)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert p.min() > 0, "symbols that were never seen have a probability too"


def test_a_symbol_is_as_likely_as_the_contexts_it_was_seen_in_not_as_often_as_it_comes() -> None:
    # "3" comes often and only after "2"; "4" comes less often and after many others.
    stream = [2, 3] * 30 + [0, 4, 1, 4, 2, 4, 0, 4, 1, 4]
    p = NGramModel(stream, vocab_size=6, order=2, start=5).distribution([4])
    after_new = NGramModel(stream, vocab_size=6, order=2, start=5)._orders[0]
    assert p.sum() == pytest.approx(1)
    assert after_new.share[4] > after_new.share[3]


def test_order_one_is_the_counts_of_the_text_nearly_and_a_long_text_is_learnt() -> None:
    stream = np.random.default_rng(0).choice(4, p=[0.5, 0.25, 0.2, 0.05], size=200_000)
    model = NGramModel(stream, vocab_size=4, order=1)
    np.testing.assert_allclose(model.distribution([]), np.bincount(stream) / len(stream), atol=1e-4)
    entropy = -(np.array([0.5, 0.25, 0.2, 0.05]) * np.log2([0.5, 0.25, 0.2, 0.05])).sum()
    assert model.bits(stream).mean() == pytest.approx(entropy, abs=0.01)


def test_a_planted_chain_is_found_and_a_longer_order_does_not_hurt_it() -> None:
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.full(8, 0.3), size=8)
    stream = [0]
    for _ in range(60_000):
        stream.append(int(rng.choice(8, p=table[stream[-1]])))
    train, held_out = stream[:50_000], stream[50_000:]
    exact = -np.log2([table[a, b] for a, b in pairwise(held_out)]).mean()
    found = {n: NGramModel(train, vocab_size=8, order=n).bits(held_out).mean() for n in (1, 2, 3)}
    assert found[2] == pytest.approx(exact, rel=0.01)
    assert found[3] == pytest.approx(exact, rel=0.02)
    assert found[1] > 1.2 * found[2]


def test_each_order_lowers_the_loss_on_real_text_down_past_gzip() -> None:
    text = corpus("python", max_bytes=3_000_000)
    train = np.frombuffer("".join(d.text for d in text.train).encode(), dtype=np.uint8)
    held_out = "".join(d.text for d in text.held_out)[:200_000]
    symbols = np.frombuffer(held_out.encode(), dtype=np.uint8)
    bits = [NGramModel(train, vocab_size=256, order=n).bits(symbols).mean() for n in (1, 2, 3, 5)]
    assert 8 > bits[0] > bits[1] > bits[2] > bits[3]
    assert bits[3] < compressed_bits_per_byte(held_out, "gzip")


def test_what_was_read_before_is_predicted_better() -> None:
    stream = np.random.default_rng(0).integers(0, 50, 3_000)
    once = NGramModel(stream, vocab_size=50, order=4)
    assert once.bits(stream).mean() < 0.6 * once.bits(stream[::-1]).mean()


def test_samples_look_like_the_text() -> None:
    stream = [0, 1, 2, 3] * 200
    drawn = NGramModel(stream, vocab_size=4, order=3).sample(400, np.random.default_rng(0), prompt=[0, 1])
    follows = [(b - a) % 4 == 1 for a, b in pairwise(drawn)]
    assert drawn[0] == 2
    assert np.mean(follows) > 0.95


def test_discounts_are_chen_and_goodmans_and_small_texts_get_halves() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [400, 150, 80, 50, 30])
    one = 400 / (400 + 2 * 150)
    assert discounts(counts, modified=False) == (one, one, one)
    expected = (1 - 2 * one * 150 / 400, 2 - 3 * one * 80 / 150, 3 - 4 * one * 50 / 80)
    assert discounts(counts, modified=True) == pytest.approx(expected)
    assert discounts(np.array([7, 7, 7]), modified=True) == (0.5, 1.0, 1.5)


def test_a_vocabulary_too_large_for_tables_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from scalelab.data import ngrams

    stream = random_stream(5, 500, 30)
    by_table = NGramModel(stream, vocab_size=30, order=4).bits(stream)
    monkeypatch.setattr(ngrams, "LARGEST_TABLE", 0)
    np.testing.assert_array_equal(NGramModel(stream, vocab_size=30, order=4).bits(stream), by_table)


def test_what_cannot_be_counted_is_refused_with_the_value() -> None:
    with pytest.raises(DataError, match="symbol 9 is outside"):
        NGramModel([1, 9], vocab_size=5, order=2)
    with pytest.raises(DataError, match="no symbols"):
        NGramModel([], vocab_size=5, order=2)
    with pytest.raises(DataError, match="one row"):
        NGramModel([[1, 2]], vocab_size=5, order=2)
    with pytest.raises(ConfigError, match="order"):
        NGramModel([1], vocab_size=5, order=0)
    with pytest.raises(ConfigError, match="start=5"):
        NGramModel([1], vocab_size=5, order=2, start=5)
    with pytest.raises(DataError, match="symbol -1"):
        NGramModel([1], vocab_size=5, order=2).bits([-1])
