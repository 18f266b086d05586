"""The loss is minus the mean logarithm of what each target was given, and nothing else."""

from __future__ import annotations

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models import Decoder, loss_nats

CONFIG = DecoderConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=11, seq_len=8)


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(3, 5, 11).normal_(0, 3, generator=generator)
    return logits, torch.randint(11, (3, 5), generator=generator)


def test_loss_equals_the_formula_written_out() -> None:
    logits, targets = case()
    exact = logits.double()
    terms = exact.logsumexp(-1) - exact.gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(loss_nats(logits, targets).double(), terms.mean())
    torch.testing.assert_close(loss_nats(logits, targets, "sum").double(), terms.sum())
    torch.testing.assert_close(loss_nats(logits, targets, "none").double(), terms)


def test_ignored_targets_count_neither_above_nor_below_the_line() -> None:
    logits, targets = case()
    padded = targets.clone()
    padded[:, 3:] = -100
    torch.testing.assert_close(loss_nats(logits, padded), loss_nats(logits[:, :3], targets[:, :3]))
    assert loss_nats(logits, padded, "none")[:, 3:].eq(0).all()


def test_decoder_loss_is_the_loss_of_its_logits() -> None:
    decoder = Decoder(CONFIG, seed=0)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            decoder.loss(inputs, targets, reduction), loss_nats(decoder(inputs), targets, reduction)
        )


def test_loss_is_computed_in_fp32_under_bf16_autocast() -> None:
    decoder = Decoder(CONFIG, seed=0)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.loss(tokens, tokens).dtype == torch.float32


def test_targets_outside_the_vocabulary_or_of_another_shape_are_refused() -> None:
    logits, targets = case()
    with pytest.raises(DataError, match="vocabulary of 11"):
        loss_nats(logits, targets + 11)
    with pytest.raises(DataError, match=r"\(3, 4\)"):
        loss_nats(logits, targets[:, :4])


def test_another_reduction_and_targets_that_are_no_ids_are_refused() -> None:
    logits, targets = case()
    with pytest.raises(ConfigError, match="reduction must be one of mean, sum, none; got 'avg'"):
        loss_nats(logits, targets, "avg")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"whole numbers, got torch\.float32"):
        loss_nats(logits, targets.float())
