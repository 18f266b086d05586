from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import DataError
from scalelab.data import TokenData
from scalelab.models import Decoder
from scalelab.train import evaluate


class Uniform(nn.Module):
    """Knows nothing: every token is as likely as every other."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(vocab_size))

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        logits = self.logits.expand(*tokens.shape, -1).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction=reduction)


def text_of(vocab_size: int, bytes_per_token: int) -> TokenData:
    tokens = np.random.default_rng(0).integers(0, vocab_size, 1000).astype(np.uint16)
    return TokenData(
        name="noise",
        tokenizer_name="none",
        train=tokens,
        held_out=tokens,
        vocab_size=vocab_size,
        end_of_text=0,
        bytes_per_token=np.full(vocab_size, bytes_per_token, dtype=np.int64),
    )


def test_guessing_bytes_costs_eight_bits_each_whatever_the_tokens_are() -> None:
    found = evaluate(Uniform(256), text_of(256, 1), seq_len=10)
    assert found.loss_nats == pytest.approx(math.log(256), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(8.0, rel=1e-6)
    pairs = evaluate(Uniform(2**16 - 1), text_of(2**16 - 1, 2), seq_len=10)
    assert pairs.bits_per_byte == pytest.approx(8.0, rel=1e-4)
    assert pairs.n_bytes == 2 * pairs.n_tokens


def test_the_loss_is_the_mean_cross_entropy_of_every_window(small: DecoderConfig, chain: TokenData) -> None:
    model = Decoder(small, seed=0)
    found = evaluate(model, chain, seq_len=32, batch_size=7)
    n_windows = (len(chain.held_out) - 1) // 32
    text = torch.from_numpy(chain.held_out[: n_windows * 32 + 1].astype(np.int64))
    model.eval()
    with torch.no_grad():
        logits = model(text[:-1].view(n_windows, 32))
    expected = F.cross_entropy(logits.flatten(0, 1), text[1:]).item()
    assert found.loss_nats == pytest.approx(expected, rel=1e-6)
    assert found.n_tokens == found.n_bytes == n_windows * 32


def test_dropout_is_off_while_evaluating_and_the_models_mode_comes_back(
    small: DecoderConfig, chain: TokenData
) -> None:
    model = Decoder(small, seed=0).train()
    first = evaluate(model, chain, seq_len=32, max_tokens=320)
    assert evaluate(model, chain, seq_len=32, max_tokens=320) == first
    assert model.training
    model.eval()
    evaluate(model, chain, seq_len=32, max_tokens=320)
    assert not model.training


def test_a_limit_on_tokens_holds(small: DecoderConfig, chain: TokenData) -> None:
    assert evaluate(Decoder(small, seed=0), chain, seq_len=32, max_tokens=330).n_tokens == 320


def test_text_that_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(DataError, match="spell no text"):
        evaluate(Uniform(16), text_of(16, 0), seq_len=10)
    with pytest.raises(DataError, match="too few"):
        evaluate(Uniform(16), text_of(16, 1), seq_len=1000)
