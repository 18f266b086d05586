"""Pairs of passages: the second question, and losses over what is hidden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalelab.core.errors import ConfigError
from scalelab.data import (
    Corpus,
    Document,
    SentencePairs,
    encode_corpus,
    next_sentence_pairs,
    train_bpe,
)
from scalelab.lab.transformers.architectures import (
    KINDS,
    Model,
    kin,
    make,
    specials,
)
from scalelab.lab.transformers.sentences import (
    next_accuracy,
    pair_losses,
    pair_mlm_nats,
    pair_states,
    train_on_pairs,
)
from scalelab.models import Encoder
from scalelab.train import TrainConfig

VOCAB, SEQ_LEN = 40, 32
SIZE: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": VOCAB, "seq_len": SEQ_LEN}
SPECIAL = specials(VOCAB, SEQ_LEN)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return make(kin(request.param, **SIZE), seed=0)


def windows(n: int = 6, length: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPECIAL.n_ordinary, size=(n, length))


@pytest.mark.parametrize("place", [3, 14, 15, 22])
def test_a_window_given_as_a_pair_keeps_each_tokens_place_and_part(place: int) -> None:
    model = make(kin("encoder", **SIZE, sentences=True), seed=0)
    assert isinstance(model, Encoder)
    model.blocks = torch.nn.ModuleList()  # so that a state is its token's and its part's rows, normed
    rows = windows(5, 30)
    found = pair_states(model, rows, np.full(5, place), SPECIAL)
    token = model.token_embedding.weight[torch.from_numpy(rows[:, place])]
    expected = model.final_norm(token + model.segment_embedding.weight[int(place >= 15)])
    assert torch.allclose(found, expected, atol=1e-6)


def tiny_pairs() -> tuple[SentencePairs, Encoder]:
    documents = tuple(Document(f"{n}.py", f"{n * 7} = {letter}\n" * 30) for n, letter in enumerate("xyz"))
    text = Corpus("made", documents, documents)
    tokenizer = train_bpe(text, 290, cache=None)
    data = encode_corpus(text, tokenizer, cache=None)
    special = specials(tokenizer.vocab_size, SEQ_LEN)
    pairs = next_sentence_pairs(data, tokenizer, special, side="train", n_pairs=64, seq_len=SEQ_LEN, seed=0)
    config = kin("encoder", **{**SIZE, "vocab_size": tokenizer.vocab_size}, sentences=True)
    model = make(config, seed=0)
    assert isinstance(model, Encoder)
    return pairs, model


def test_the_second_loss_is_ln_2_before_training_and_falls_with_it() -> None:
    pairs, model = tiny_pairs()
    before = pair_losses(model, pairs, list(range(64)), np.random.default_rng(0), with_next=True)
    assert abs(float(before[1].detach()) - np.log(2)) < 0.35
    run = TrainConfig(
        n_tokens=300 * 16 * SEQ_LEN, objective="mlm", batch_size=16, seq_len=SEQ_LEN, learning_rate=1e-2
    )
    train_on_pairs(model, pairs, run, with_next=True)
    after = pair_losses(model, pairs, list(range(64)), np.random.default_rng(0), with_next=True)
    assert bool((after < before - 0.2).all())
    assert next_accuracy(model, pairs) > 0.75, "a letter of its own gives each document away"
    assert pair_mlm_nats(model, pairs) == pair_mlm_nats(model, pairs, batch_size=64)


def test_the_loss_of_hidden_tokens_is_their_mean_whatever_the_batches() -> None:
    pairs, model = tiny_pairs()
    batch = pairs.masked(np.arange(64), np.random.default_rng(5))
    inputs, targets, segments, padding, _ = map(torch.from_numpy, batch)
    with torch.no_grad():
        logits = model.eval().logits(model.hidden(inputs, segments, padding=padding))
    expected = float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    for batch_size in (64, 63, 7, 1, 1000):
        found = pair_mlm_nats(model, pairs, seed=5, batch_size=batch_size)
        assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="batch_size"):
        pair_mlm_nats(model, pairs, batch_size=0)


# --- respelling -------------------------------------------------------------------------------------------
