"""A text, a model and settings small enough to train in a second, shared by the tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.data import TokenData
from scalelab.train import TrainConfig

VOCAB = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two test processes with as many threads as cores each would be slower than one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def chain() -> TokenData:
    """A random first-order chain over 64 symbols, of which one byte each is made."""
    rng = np.random.default_rng(0)
    cumulative = rng.dirichlet(np.full(VOCAB, 0.05), size=VOCAB).cumsum(axis=1)
    tokens = np.zeros(24_000, dtype=np.uint16)
    for place, draw in enumerate(rng.random(len(tokens) - 1)):
        tokens[place + 1] = min(VOCAB - 1, np.searchsorted(cumulative[tokens[place]], draw))
    return TokenData(
        name="chain",
        tokenizer_name="symbols",
        train=tokens[:-4_000],
        held_out=tokens[-4_000:],
        vocab_size=VOCAB,
        end_of_text=0,
        bytes_per_token=np.ones(VOCAB, dtype=np.int64),
    )


@pytest.fixture(scope="session")
def small() -> DecoderConfig:
    """29 thousand parameters; dropout on, so that a forgotten random state shows."""
    return DecoderConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=VOCAB, seq_len=32, dropout=0.1)


@pytest.fixture
def settings() -> Any:
    """Makes a TrainConfig of so many steps of 8 × 32 tokens."""

    def make(n_steps: int = 12, **changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "batch_size": 8, "seq_len": 32, "learning_rate": 3e-3, "n_evals": 3, "eval_tokens": 512,
        }  # fmt: skip
        values |= changes
        return TrainConfig(n_tokens=n_steps * values["batch_size"] * values["seq_len"], **values)

    return make
