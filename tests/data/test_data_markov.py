"""The language whose entropy is known: that it is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import MarkovSource, byte_tokenizer, corpus, encode_corpus, symbol_tokenizer


def test_transitions_are_probabilities_with_the_planted_spectrum() -> None:
    source = MarkovSource(3)
    assert source.transitions.shape == (128, 128)
    np.testing.assert_allclose(source.transitions.sum(axis=1), 1, rtol=1e-12)
    # A row's softmax hides one constant: centring rows of log-probabilities removes it from logits alike.
    logits = np.log(source.transitions)
    centred = logits - logits.mean(axis=1, keepdims=True)
    singular = np.linalg.svd(centred, compute_uv=False)
    slope = np.polyfit(np.log(np.arange(2, 60)), np.log(singular[1:59]), 1)[0]
    assert slope == pytest.approx(-0.8, abs=0.05)


def test_stationary_distribution_is_where_powers_of_the_matrix_end() -> None:
    source = MarkovSource(0)
    power = np.linalg.matrix_power(source.transitions, 4096)
    np.testing.assert_allclose(power[0], source.stationary, atol=1e-12)
    np.testing.assert_allclose(power[77], source.stationary, atol=1e-12)


def test_entropy_rate_is_the_difference_of_block_entropies() -> None:
    # H(X1..X3) - H(X1, X2) over all blocks: the definition, with no formula for chains.
    source = MarkovSource(0)
    pairs = source.stationary[:, None] * source.transitions
    triples = pairs[:, :, None] * source.transitions[None]
    h2, h3 = (-(p * np.log(p)).sum() for p in (pairs, triples))
    assert source.entropy_rate_nats == pytest.approx(h3 - h2, abs=1e-9)
    assert 2 < source.entropy_rate_nats < math.log(128)


def test_exact_loss_of_samples_approaches_the_entropy_rate() -> None:
    source = MarkovSource(0)
    losses = source.token_losses_nats(source.sample(200_000, seed=5))
    standard_error = losses.std() / math.sqrt(losses.size)
    assert abs(losses.mean() - source.entropy_rate_nats) < 5 * standard_error < 0.05


def test_exact_loss_of_a_short_text_is_the_sum_by_hand() -> None:
    source = MarkovSource(1)
    p = source.transitions
    by_hand = -(math.log(p[5, 9]) + math.log(p[9, 9]) + math.log(p[9, 0])) / 3
    assert source.exact_loss_nats([5, 9, 9, 0]) == pytest.approx(by_hand, rel=1e-12)


def test_no_counted_model_beats_the_exact_loss_on_held_out_text() -> None:
    source = MarkovSource(0)
    train, held_out = source.sample(400_000, seed=0), source.sample(50_000, seed=1)
    counts = np.full((128, 128), 0.1)
    np.add.at(counts, (train[:-1], train[1:]), 1)
    model = counts / counts.sum(axis=1, keepdims=True)
    loss = -np.log(model[held_out[:-1], held_out[1:]]).mean()
    exact = source.exact_loss_nats(held_out)
    assert exact < loss < exact + 0.05


def test_frequencies_of_samples_are_the_transitions() -> None:
    source = MarkovSource(2)
    tokens = source.sample(300_000, seed=0)
    counts = np.zeros((128, 128))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    visits = counts.sum(axis=1, keepdims=True)
    # Each entry is binomial: standardised errors have a variance of 1.
    expected = visits * source.transitions
    errors = ((counts - expected) / np.sqrt(expected * (1 - source.transitions)))[expected > 20]
    assert errors.size > 1_000
    assert errors.var() == pytest.approx(1, abs=0.1)


def test_shorter_sample_is_a_prefix_and_seeds_differ() -> None:
    source = MarkovSource(0)
    np.testing.assert_array_equal(source.sample(500, seed=1), source.sample(2_000, seed=1)[:500])
    assert not np.array_equal(source.sample(500, seed=1), source.sample(500, seed=2))
    assert not np.allclose(source.transitions, MarkovSource(1).transitions)


def test_corpus_round_trips_to_the_very_tokens_and_floor() -> None:
    made = corpus("markov", seed=4, max_bytes=20_000)
    data = encode_corpus(made, symbol_tokenizer())
    source = MarkovSource(4)
    np.testing.assert_array_equal(data.train, source.sample(10_000, seed=0))
    np.testing.assert_array_equal(data.held_out, source.sample(200_000, seed=1))
    assert data.held_out_bytes == 2 * data.held_out.size == made.held_out_bytes
    assert source.exact_loss_nats(data.held_out) == pytest.approx(source.entropy_rate_nats, abs=0.03)
    assert f"{source.entropy_rate_nats:.4f}" in made.describe()


def test_smaller_markov_corpus_is_a_prefix() -> None:
    sizes = [corpus("markov", max_bytes=n).train[0].text for n in (100, 1_000, 10_000)]
    for small, large in itertools.pairwise(sizes):
        assert large.startswith(small)


@pytest.mark.parametrize("tokens", [[1], [], 3, [1.5, 2.5], [0, 128], [-1, 0], [[1], [2]]])
def test_tokens_of_another_language_are_refused(tokens) -> None:
    with pytest.raises(DataError):
        MarkovSource(0).exact_loss_nats(tokens)


@pytest.mark.parametrize("seed", [-1, 1.0, "a", True])
def test_impossible_seed_is_refused(seed) -> None:
    with pytest.raises(ConfigError):
        MarkovSource(seed)


def test_other_tokenizers_spell_markov_too() -> None:
    data = encode_corpus(corpus("markov", max_bytes=1_000), byte_tokenizer(), cache=None)
    assert data.train.size == data.train_bytes == 1_000
