"""Models cut over thread ranks, and what they find: for tests of tensor and sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from equality import Batch, Found, alone, make_adamw, make_batch, make_model, summed_loss
from torch import Tensor

from scalelab.core.config import DecoderConfig
from scalelab.models import Decoder
from scalelab.parallel.scratch.group import Group, Traffic
from scalelab.parallel.scratch.tensor_decoder import ParallelDecoder
from scalelab.parallel.scratch.threads import run_threads

# F, V and T (11 of 12 places) divide by no number of ranks that is tried; heads have to.
GPT = DecoderConfig(n_layers=2, d_model=24, n_heads=12, d_ff=37, vocab_size=61, seq_len=12)
LLAMA = DecoderConfig(
    n_layers=2, d_model=24, n_heads=12, n_kv_heads=6, d_ff=37, vocab_size=61, seq_len=12, norm="rmsnorm",
    positions="rope", feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
    tie_embeddings=False,
)  # fmt: skip
WAVES = DecoderConfig(
    n_layers=2, d_model=24, n_heads=12, d_ff=37, vocab_size=61, seq_len=12, positions="sinusoidal",
    feed_forward="relu", norm_bias=False,
)  # fmt: skip
CONFIGS = {"gpt": GPT, "llama": LLAMA, "waves": WAVES}
WAYS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "sequence": {"sequence_parallel": True},
    "sequence, gathered kept": {"sequence_parallel": True, "keeps_own": False},
}


def lively(config: DecoderConfig, *, double: bool = False) -> Decoder:
    """A model none of whose biases is zero and no norm's weight one: what is added twice shows."""
    model = make_model(double=double, config=config)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


def batch_of(seed: int = 1, n_rows: int = 3) -> Batch:
    return make_batch(n_rows, seed=seed, seq_len=11)


def found_alone(config: DecoderConfig) -> Found:
    return alone(lively(config), batch_of())


def found_on(group: Group, config: DecoderConfig, **way: Any) -> tuple[Found, Traffic]:
    """Loss and whole gradients as a rank has them, and what it sent for one forward and backward pass."""
    model = ParallelDecoder(config, group, lively(config).state_dict(), **way)
    batch = batch_of()
    with group.counted() as sent:
        loss = summed_loss(model, batch) / batch.n_targets
        loss.backward()
        model.finish_gradients()
    return Found(loss.item(), model.whole_gradients()), sent.traffic


def found_by(size: int, config: DecoderConfig, **way: Any) -> list[Found]:
    """What each of so many ranks has."""
    return [found for found, _ in run_threads(size, found_on_way, config, way)]


def found_on_way(group: Group, config: DecoderConfig, way: dict[str, Any]) -> tuple[Found, Traffic]:
    return found_on(group, config, **way)


def trained_on(
    group: Group, config: DecoderConfig, batches: list[Batch], way: dict[str, Any]
) -> dict[str, Tensor]:
    """Whole weights in fp64 after an AdamW step on each batch."""
    model = ParallelDecoder(config, group, lively(config, double=True).state_dict(), **way)
    optimizer = make_adamw(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        (summed_loss(model, batch) / batch.n_targets).backward()
        model.finish_gradients()
        optimizer.step()
    return model.whole_weights()
